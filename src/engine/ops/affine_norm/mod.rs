//! Norms with a learned factor per channel, forward only: those of text encoders and of CLIP's image tower, which are never trained.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{engine::Tensor, error::Result};

/// The norm of the rows `[R, C]` of `x`. With a `bias` `[C]` a layer norm times `weight` `[C]` plus the bias (CLIP); without, a
/// root-mean-square norm times the weight (T5).
///
/// # Errors
/// If the sizes do not fit, a tensor is not f32, or the device fails.
pub(crate) fn affine_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f32,
) -> Result<Tensor> {
    match x.device() {
        None => {
            let bias = bias.map(Tensor::as_slice::<f32>).transpose()?;
            Tensor::new(x.shape(), cpu::affine_norm(x.as_slice()?, weight.as_slice()?, bias, epsilon))
        }
        Some(device) => {
            let bias = bias.map(Tensor::buffer::<f32>).transpose()?;
            Tensor::written(device, x.shape(), |y| {
                cuda::affine_norm(y, x.buffer()?, weight.buffer()?, bias, epsilon)
            })
        }
    }
}
