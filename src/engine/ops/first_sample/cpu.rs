//! CPU reference.

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// The leading rows of `x` that fill `shape`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn first_sample<T: Float>(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    Tensor::new(shape, x.as_slice::<T>()?[..shape.iter().product()].to_vec())
}

/// The gradient of a batch of which only the first sample was used.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn first_sample_backward<T: Float>(d_output: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut dx = vec![T::ZERO; shape.iter().product()];
    dx[..d_output.len()].copy_from_slice(d_output.as_slice::<T>()?);
    Tensor::new(shape, dx)
}
