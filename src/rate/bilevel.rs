//! One bilevel step on both networks.

use crate::{encode::TextStates, engine::Tensor};

/// One batch as the networks see it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The codes to be predicted, `[B, L]` u32.
    pub codes: Tensor,
    /// The pyramid input of all scales but the first, `[B, L - L₀, Cvae]` f32, where `L₀ = patch_nums[0]²`.
    pub input: Tensor,
    /// The captions.
    pub text: TextStates,
}

/// What a step measured, all before the update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean loss of the validation batch.
    pub validation_loss: f64,
    /// Loss of each training sample.
    pub train_loss: Vec<f64>,
    /// The rater's score of each training sample.
    pub score: Vec<f64>,
    /// The weight of each training sample.
    pub weight: Vec<f64>,
    /// Weighted training loss.
    pub weighted_train_loss: f64,
    /// The loss that the proxy descends.
    pub proxy_loss: f64,
    /// The loss that the rater descends.
    pub rater_loss: f64,
    /// Norm of the proxy's gradient before clipping.
    pub proxy_gradient_norm: f64,
    /// Norm of the rater's gradient before clipping.
    pub rater_gradient_norm: f64,
    /// Validation loss over the tokens of the last scale.
    pub validation_tail_loss: f64,
    /// Share in percent of validation tokens predicted right.
    pub validation_accuracy: f64,
    /// The same over the tokens of the last scale.
    pub validation_tail_accuracy: f64,
}
