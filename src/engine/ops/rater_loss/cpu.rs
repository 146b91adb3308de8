//! CPU reference, in f64 for any dtype of the networks.

use super::entropy_term;
use crate::{engine::Tensor, error::Result};

/// The factor times each weight.
///
/// # Errors
/// If the weights are on a device.
pub fn seeds(weights: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let seeds = weights.to_f64_vec()?.iter().map(|weight| factors[0] * weight).collect::<Vec<f64>>();
    Tensor::new(&[weights.len()], seeds)
}

/// The gradient of each weight.
///
/// # Errors
/// If constants or weights are on a device.
pub fn d_weights(constants: &Tensor, weights: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let (constants, weighed) = (constants.to_f64_vec()?, weights.to_f64_vec()?);
    let (mut total, mut sum) = (0.0, 0.0);
    for (constant, weight) in constants.iter().zip(&weighed).filter(|(constant, _)| constant.is_finite()) {
        total += weight;
        sum += weight * constant;
    }
    // The weighted mean: a sample that is neither better nor worse than the batch has no gradient through a softmax.
    let neutral = if total > 0.0 { sum / total } else { 0.0 };
    let constant = |constant: &f64| factors[1] * if constant.is_finite() { *constant } else { neutral };
    let mut d: Vec<f64> = constants.iter().map(constant).collect();
    if factors[2] != 0.0 {
        let (_, gradient) = entropy_term(&weighed);
        for (d, gradient) in d.iter_mut().zip(gradient) {
            *d += factors[2] * gradient;
        }
    }
    Tensor::new(weights.shape(), d)
}

/// See [`linear_combination`](super::linear_combination).
///
/// # Errors
/// If a term is on a device.
pub(crate) fn linear_combination(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum = vec![0.0; terms.first().map_or(0, |(_, term)| term.len())];
    for (factor, term) in terms {
        for (sum, value) in sum.iter_mut().zip(term.to_f64_vec()?) {
            *sum += factor * value;
        }
    }
    Tensor::new(terms.first().map_or(&[0], |(_, term)| term.shape()), sum)
}

/// See [`standardize`](super::standardize).
///
/// # Errors
/// If the constants are on a device.
pub fn standardize(constants: &Tensor, deviation: bool) -> Result<Tensor> {
    let mut values = constants.to_f64_vec()?;
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = finite.len().max(1) as f64;
    let mean = finite.iter().sum::<f64>() / count;
    let spread = (finite.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    let factor = match deviation {
        false => 1.0,
        true if spread > 0.0 => 1.0 / spread,
        true => 0.0,
    };
    for value in values.iter_mut().filter(|value| value.is_finite()) {
        *value = (*value - mean) * factor;
    }
    Tensor::new(constants.shape(), values)
}

/// The gradient of the logits and the targets.
///
/// # Errors
/// If logits or constants are on a device.
pub fn d_logits(
    logits: &Tensor,
    constants: &Tensor,
    averages: &[f64],
    corpus: &[f64],
) -> Result<[Tensor; 2]> {
    let [mean, inverse, factor] = [corpus[0], corpus[1], corpus[2]];
    let pairs = logits.to_f64_vec()?.into_iter().zip(constants.to_f64_vec()?);
    let (d, targets): (Vec<f64>, Vec<f64>) = pairs
        .zip(averages.as_chunks::<2>().0)
        .map(|((logit, constant), [kept, share])| {
            if !constant.is_finite() {
                return (0.0, f64::NAN);
            }
            let target = (kept - share * constant - mean) * inverse;
            (2.0 * factor * (logit - target), target)
        })
        .unzip();
    Ok([Tensor::new(logits.shape(), d)?, Tensor::new(&[constants.len()], targets)?])
}
