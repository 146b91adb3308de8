//! Conversions between the float types of a device.

#[doc(hidden)]
pub mod cuda;

use half::{bf16, f16};

use crate::{
    engine::{
        DType, Storage, Tensor,
        cuda::{DeviceElement, device::Factor},
    },
    error::{Error, Result},
};

impl Tensor {
    /// Converts to another dtype on the same device, rounded to nearest even where it is narrower.
    ///
    /// # Errors
    /// If the device does not support the dtype, or fails.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        if self.device().is_some() {
            return on_device(self, dtype);
        }
        let wide = self.to_f64_vec()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts by design")]
        let storage = match dtype {
            DType::F32 => Storage::F32(wide.into_iter().map(|value| value as f32).collect()),
            DType::F64 => Storage::F64(wide),
            DType::Bf16 => Storage::Bf16(wide.into_iter().map(bf16::from_f64).collect()),
            DType::F16 => Storage::F16(wide.into_iter().map(f16::from_f64).collect()),
            DType::U32 => Storage::U32(wide.into_iter().map(|value| value as u32).collect()),
        };
        Ok(Self::host(self.shape(), storage))
    }
}

/// Converts a tensor on a device; between the two 16-bit types by way of f32.
///
/// # Errors
/// If there is no such conversion, or the device fails.
fn on_device(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    match (tensor.dtype(), dtype) {
        (DType::F32, DType::Bf16) => narrow::<bf16>(tensor),
        (DType::F32, DType::F16) => narrow::<f16>(tensor),
        (DType::Bf16, DType::F32) => widen::<bf16>(tensor),
        (DType::F16, DType::F32) => widen::<f16>(tensor),
        (DType::Bf16 | DType::F16, DType::Bf16 | DType::F16) => {
            on_device(&on_device(tensor, DType::F32)?, dtype)
        }
        (from, to) => Err(Error::shape("cast", format!("devices cannot cast {from:?} to {to:?}"))),
    }
}

fn narrow<T: Factor + DeviceElement>(tensor: &Tensor) -> Result<Tensor> {
    let from = tensor.buffer::<f32>()?;
    let mut to = from.device().uninitialized::<T>(from.len())?;
    cuda::narrow(&mut to, from)?;
    Tensor::from_buffer(tensor.shape(), to)
}

fn widen<T: Factor + DeviceElement>(tensor: &Tensor) -> Result<Tensor> {
    let from = tensor.buffer::<T>()?;
    let mut to = from.device().uninitialized::<f32>(from.len())?;
    cuda::widen(&mut to, from)?;
    Tensor::from_buffer(tensor.shape(), to)
}
