//! CPU reference.

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// Multiplies every element of `x` by the scalar `scale`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn scale_all<T: Float>(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scale = scale.as_slice::<T>()?[0];
    Tensor::new(x.shape(), x.as_slice::<T>()?.iter().map(|x| *x * scale).collect())
}

/// The gradients of `x` and of the scale.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn scale_all_backward<T: Float>(
    x: &Tensor,
    scale: &Tensor,
    d_output: &Tensor,
) -> Result<[Tensor; 2]> {
    let (x, d) = (x.as_slice::<T>()?, d_output.as_slice::<T>()?);
    let scale = scale.as_slice::<T>()?[0];
    let d_scale: T = x.iter().zip(d).map(|(x, d)| *x * *d).sum();
    let dx = d.iter().map(|d| *d * scale).collect();
    Ok([Tensor::new(d_output.shape(), dx)?, Tensor::new(&[1, 1], vec![d_scale])?])
}
