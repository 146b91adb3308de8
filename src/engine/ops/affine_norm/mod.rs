//! Layer norm and RMS norm with a learned weight, forward only, for the frozen text encoders and CLIP's image tower.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{engine::Tensor, error::Result};

/// Normalizes the rows `[R, C]` of `x`. With a `bias` `[C]`, layer norm with `weight` `[C]` (CLIP); without,
/// RMS norm with `weight` (T5).
///
/// # Errors
/// If the sizes do not match, a tensor is not f32, or the device fails.
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
