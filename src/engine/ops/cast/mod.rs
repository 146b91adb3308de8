//! Conversions between the types that a device stores numbers in.

pub mod cuda;

use half::{bf16, f16};

use crate::{
    engine::{DType, Tensor, cuda::device::Factor, tensor::DeviceElement},
    error::{Error, Result},
};

/// The numbers of a tensor on a device in another type; between the two 16-bit types by way of f32.
///
/// # Errors
/// If there is no such conversion, or the device fails.
pub(crate) fn cast_on_device(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    match (tensor.dtype(), dtype) {
        (DType::F32, DType::Bf16) => narrow::<bf16>(tensor),
        (DType::F32, DType::F16) => narrow::<f16>(tensor),
        (DType::Bf16, DType::F32) => widen::<bf16>(tensor),
        (DType::F16, DType::F32) => widen::<f16>(tensor),
        (DType::Bf16 | DType::F16, DType::Bf16 | DType::F16) => {
            cast_on_device(&cast_on_device(tensor, DType::F32)?, dtype)
        }
        (from, to) => Err(Error::shape("cast", format!("devices do not turn {from:?} into {to:?}"))),
    }
}

fn narrow<T: Factor + DeviceElement>(tensor: &Tensor) -> Result<Tensor> {
    let from = tensor.buffer::<f32>()?;
    let mut to = from.device().uninitialised::<T>(from.len())?;
    cuda::narrow(&mut to, from)?;
    Tensor::from_buffer(tensor.shape(), to)
}

fn widen<T: Factor + DeviceElement>(tensor: &Tensor) -> Result<Tensor> {
    let from = tensor.buffer::<T>()?;
    let mut to = from.device().uninitialised::<f32>(from.len())?;
    cuda::widen(&mut to, from)?;
    Tensor::from_buffer(tensor.shape(), to)
}
