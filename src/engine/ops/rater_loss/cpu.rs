//! The CPU reference, in f64 whatever the networks compute in.

use super::entropy_term;
use crate::{engine::Tensor, error::Result};

/// The factor times each weight.
///
/// # Errors
/// If the weights are elsewhere.
pub fn seeds(weights: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let seeds = weights.to_f64_vec()?.iter().map(|weight| factors[0] * weight).collect::<Vec<f64>>();
    Tensor::new(&[weights.len()], seeds)
}

/// The gradient of each weight.
///
/// # Errors
/// If losses or weights are elsewhere.
pub fn d_weights(losses: &Tensor, weights: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let mut d: Vec<f64> = losses.to_f64_vec()?.iter().map(|loss| factors[1] * loss).collect();
    if factors[2] != 0.0 {
        let (_, gradient) = entropy_term(&weights.to_f64_vec()?);
        for (d, gradient) in d.iter_mut().zip(gradient) {
            *d += factors[2] * gradient;
        }
    }
    Tensor::new(weights.shape(), d)
}
