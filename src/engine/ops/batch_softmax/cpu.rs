//! CPU reference.

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// Softmax of `x / temperature` over all elements.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn batch_softmax<T: Float>(x: &Tensor, temperature: f64) -> Result<Tensor> {
    // In f64 for any dtype: weights are nearly equal, so their gradients are small differences of large terms.
    let mut y: Vec<f64> = x.as_slice::<T>()?.iter().map(|value| value.to_f64() / temperature).collect();
    let largest = y.iter().fold(f64::NEG_INFINITY, |most, value| most.max(*value));
    for value in &mut y {
        *value = (*value - largest).exp();
    }
    let total: f64 = y.iter().sum();
    Tensor::new(x.shape(), y.iter().map(|value| T::of(value / total)).collect())
}

/// The gradient of the input of [`batch_softmax`].
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn batch_softmax_backward<T: Float>(
    output: &Tensor,
    temperature: f64,
    d_output: &Tensor,
) -> Result<Tensor> {
    let (y, d) = (output.as_slice::<T>()?, d_output.as_slice::<T>()?);
    let total: f64 = y.iter().map(|y| y.to_f64()).sum();
    let mean = y.iter().zip(d).map(|(y, d)| y.to_f64() * d.to_f64()).sum::<f64>() / total;
    let one = |(y, d): (&T, &T)| T::of(y.to_f64() * (d.to_f64() - mean) / temperature);
    Tensor::new(output.shape(), y.iter().zip(d).map(one).collect())
}
