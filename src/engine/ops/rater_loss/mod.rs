//! The exchange between the two networks of a bilevel step (method.md, the table of rules): the rater's weights seed
//! the proxy's backward, and one constant per sample, which a rule computes from the proxy's measurements, seeds the
//! rater's. Nothing is differentiated through this. A sample whose constant is not finite is left out of the rater's
//! update.

#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{DType, Tensor, autograd::contributions::cuda::add_scaled, ops::expect_shape},
    error::{Error, Result},
};

const OP: &str = "rater_loss";

/// The factors of one micro-batch: in f64 on the host, in f32 on a device.
#[derive(Clone, Debug)]
pub struct RaterLoss(Tensor);

/// See [`RaterLoss`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RaterLossFactors {
    /// Multiplies the weights: the share of the weighted training loss in the proxy's loss.
    pub seed: f64,
    /// Multiplies the constants.
    pub constant: f64,
    /// Multiplies the upstream entropy term; 0 disables it.
    pub entropy: f64,
}

impl RaterLoss {
    /// The factors on the host.
    ///
    /// # Errors
    /// Never: there are three factors.
    pub fn new(factors: RaterLossFactors) -> Result<Self> {
        let RaterLossFactors { seed, constant, entropy } = factors;
        Ok(Self(Tensor::new(&[3], vec![seed, constant, entropy])?))
    }

    /// The factors `[3]`, so that they can be moved to a device, where they are f32.
    pub(crate) fn factors_mut(&mut self) -> &mut Tensor {
        &mut self.0
    }

    /// The seeds: the gradient of each sample's loss, `[B]`, from the weights `[B, 1]`.
    ///
    /// # Errors
    /// If they are on different devices.
    pub(crate) fn seeds(&self, weights: &Tensor, dtype: DType) -> Result<Tensor> {
        let samples = [weights.len()];
        if weights.device().is_none() {
            return cpu::seeds(weights, self.0.as_slice()?)?.cast(dtype);
        }
        let (weights, factors) = (weights.buffer::<f32>()?, self.0.buffer::<f32>()?);
        Tensor::written(weights.device(), &samples, |seeds| cuda::rater_loss_seeds(seeds, weights, factors))
    }

    /// The gradient of each weight, `[B, 1]`, from the rule's constants `[B]` and the weights `[B, 1]`.
    ///
    /// # Errors
    /// If they are on different devices.
    pub fn d_weights(&self, constants: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if weights.device().is_none() {
            return cpu::d_weights(constants, weights, self.0.as_slice()?)?.cast(weights.dtype());
        }
        let (constants, factors) = (constants.buffer::<f32>()?, self.0.buffer::<f32>()?);
        let (shape, weights) = (weights.shape(), weights.buffer::<f32>()?);
        Tensor::written(weights.device(), shape, |d| {
            cuda::rater_loss_backward(d, constants, weights, factors)
        })
    }
}

/// `Σ factor·x` of tensors `[B]` on one device, in the dtype of the first.
///
/// # Errors
/// If there are none, or they differ in size or device.
pub fn linear_combination(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let Some((_, first)) = terms.first() else {
        return Err(Error::invalid("a linear combination needs at least one term"));
    };
    for (_, term) in terms {
        expect_shape(OP, "a term", term, first.shape())?;
    }
    if first.device().is_none() {
        return cpu::linear_combination(terms)?.cast(first.dtype());
    }
    let samples = first.buffer::<f32>()?;
    Tensor::written::<f32>(samples.device(), first.shape(), |sum| {
        sum.clear()?;
        terms.iter().try_for_each(|(factor, term)| add_scaled(sum, term.buffer::<f32>()?, narrowed(*factor)))
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a device computes in f32")]
fn narrowed(factor: f64) -> f32 {
    factor as f32
}

/// Subtracts the mean of a batch's constants and, with `deviation`, divides by their standard deviation (all zeros if
/// it is 0). Values that are not finite are unchanged and do not count.
///
/// # Errors
/// If a device fails.
pub fn standardize(constants: &Tensor, deviation: bool) -> Result<Tensor> {
    if constants.device().is_none() {
        return cpu::standardize(constants, deviation)?.cast(constants.dtype());
    }
    let from = constants.buffer::<f32>()?;
    Tensor::written(from.device(), constants.shape(), |to| cuda::rater_loss_standardize(to, from, deviation))
}

/// The regression targets of the rater's logits for one batch: in f64 on the host, in f32 on a device.
#[derive(Clone, Debug)]
pub struct RegressionTargets {
    /// `[B, 2]`: a sample's running average so far, and the share of a new value in it.
    pub averages: Tensor,
    /// `[3]`: the mean of the averages over the corpus, the inverse of their deviation, and the factor of the loss.
    pub corpus: Tensor,
}

impl RegressionTargets {
    /// The gradient of `factor·Σ_i (logit_i − t_i)²` with respect to the logits `[B, 1]`, in their dtype, and the
    /// targets `t` `[B]`: the running averages updated with `−c_i`, standardized. Samples whose constant is not finite
    /// have no gradient, and a target of NaN.
    ///
    /// # Errors
    /// If the sizes do not match or the tensors are on different devices.
    pub fn d_logits(&self, logits: &Tensor, constants: &Tensor) -> Result<[Tensor; 2]> {
        let samples = constants.len();
        expect_shape(OP, "the logits", logits, &[samples, 1])?;
        expect_shape(OP, "the averages", &self.averages, &[samples, 2])?;
        expect_shape(OP, "the corpus statistics", &self.corpus, &[3])?;
        if logits.device().is_none() {
            let [d, targets] =
                cpu::d_logits(logits, constants, self.averages.as_slice()?, self.corpus.as_slice()?)?;
            return Ok([d.cast(logits.dtype())?, targets]);
        }
        let wide = logits.cast(DType::F32)?;
        let device = constants.buffer::<f32>()?.device();
        let mut targets = device.uninitialized::<f32>(samples)?;
        let d = Tensor::written::<f32>(device, logits.shape(), |d| {
            cuda::rater_loss_regression(
                [d, &mut targets],
                wide.buffer()?,
                constants.buffer()?,
                self.averages.buffer()?,
                self.corpus.buffer()?,
            )
        })?;
        Ok([d.cast(logits.dtype())?, Tensor::from_buffer(&[samples], targets)?])
    }
}

/// Factor of the upstream entropy term.
const REGULARIZATION: f64 = 0.01;
/// Lower bound inside its logarithms.
const FLOOR: f64 = 1e-8;

/// The upstream term: 0.01 times minus the mean Bernoulli entropy of the weights, and its gradient with respect to each
/// weight.
pub(crate) fn entropy_term(weights: &[f64]) -> (f64, Vec<f64>) {
    let share = REGULARIZATION / weights.len() as f64;
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(weights.len()));
    for &w in weights {
        let (yes, no) = (w + FLOOR, 1.0 - w + FLOOR);
        loss += share * (w * yes.ln() + (1.0 - w) * no.ln());
        gradient.push(share * (yes.ln() + w / yes - no.ln() - (1.0 - w) / no));
    }
    (loss, gradient)
}
