//! Elementwise products, forward only, for the gated feed-forward layers of the frozen T5.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{engine::Tensor, error::Result};

/// Elementwise product `x·z`.
///
/// # Errors
/// If the sizes do not match, a tensor is not f32, or the device fails.
pub(crate) fn multiply(x: &Tensor, z: &Tensor) -> Result<Tensor> {
    match x.device() {
        None => Tensor::new(x.shape(), cpu::multiply(x.as_slice()?, z.as_slice()?)),
        Some(device) => {
            let (x_buffer, z_buffer) = (x.buffer::<f32>()?, z.buffer::<f32>()?);
            Tensor::written(device, x.shape(), |y| cuda::multiply(y, x_buffer, z_buffer))
        }
    }
}
