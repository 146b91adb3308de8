//! What passes between the two networks of a bilevel step with the rule `loss` (method.md, eq. 9): the rater's weights seed
//! the proxy's backward, and the proxy's losses seed the rater's. Nothing is differentiated through this.

pub mod cpu;
pub mod cuda;

use crate::{
    engine::{DType, Tensor},
    error::Result,
};

/// The factors of one micro-batch: in f64 on the host, in f32 on a device.
#[derive(Clone, Debug)]
pub struct RaterLoss(Tensor);

/// See [`RaterLoss`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RaterLossFactors {
    /// Multiplies the weights: the share of the weighted training loss in the proxy's.
    pub seed: f64,
    /// Multiplies the losses.
    pub loss: f64,
    /// Multiplies the released entropy term; 0 leaves it out.
    pub entropy: f64,
}

impl RaterLoss {
    /// The factors on the host.
    ///
    /// # Errors
    /// Never, as they are three.
    pub fn new(factors: RaterLossFactors) -> Result<Self> {
        let RaterLossFactors { seed, loss, entropy } = factors;
        Ok(Self(Tensor::new(&[3], vec![seed, loss, entropy])?))
    }

    /// The factors `[3]`, to be taken to a device, in f32 there.
    pub fn factors_mut(&mut self) -> &mut Tensor {
        &mut self.0
    }

    /// The gradient of each sample's loss, `[B]`, from the weights `[B, 1]`.
    ///
    /// # Errors
    /// If they are elsewhere.
    pub fn seeds(&self, weights: &Tensor, dtype: DType) -> Result<Tensor> {
        let samples = [weights.len()];
        if weights.device().is_none() {
            return cpu::seeds(weights, self.0.as_slice()?)?.cast(dtype);
        }
        let (weights, factors) = (weights.buffer::<f32>()?, self.0.buffer::<f32>()?);
        Tensor::written(weights.device(), &samples, |seeds| cuda::rater_loss_seeds(seeds, weights, factors))
    }

    /// The gradient of each weight, `[B, 1]`, from the losses `[B]` and the weights `[B, 1]`.
    ///
    /// # Errors
    /// If they are elsewhere.
    pub fn d_weights(&self, losses: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if weights.device().is_none() {
            return cpu::d_weights(losses, weights, self.0.as_slice()?)?.cast(weights.dtype());
        }
        let (losses, factors) = (losses.buffer::<f32>()?, self.0.buffer::<f32>()?);
        let (shape, weights) = (weights.shape(), weights.buffer::<f32>()?);
        Tensor::written(weights.device(), shape, |d| cuda::rater_loss_backward(d, losses, weights, factors))
    }
}

/// Factor of the released entropy term.
const REGULARISATION: f64 = 0.01;
/// Floor inside its logarithms.
const FLOOR: f64 = 1e-8;

/// The released term: 0.01 times minus the mean Bernoulli entropy of the weights, and its gradient by each weight.
pub fn entropy_term(weights: &[f64]) -> (f64, Vec<f64>) {
    let share = REGULARISATION / weights.len() as f64;
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(weights.len()));
    for &w in weights {
        let (yes, no) = (w + FLOOR, 1.0 - w + FLOOR);
        loss += share * (w * yes.ln() + (1.0 - w) * no.ln());
        gradient.push(share * (yes.ln() + w / yes - no.ln() - (1.0 - w) / no));
    }
    (loss, gradient)
}
