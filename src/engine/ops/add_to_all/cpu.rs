//! CPU reference.

use rayon::prelude::*;

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// Adds `y` to every sample of `x`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn add_to_all<T: Float>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let y = y.as_slice::<T>()?;
    let mut sum = x.as_slice::<T>()?.to_vec();
    sum.par_chunks_mut(y.len().max(1)).for_each(|sum| {
        for (sum, y) in sum.iter_mut().zip(y) {
            *sum += *y;
        }
    });
    Tensor::new(x.shape(), sum)
}

/// Sums over samples: `[B, ..]` to `[1, ..]`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn sum_samples<T: Float>(d_output: &Tensor) -> Result<Tensor> {
    let mut shape = d_output.shape().to_vec();
    shape[0] = 1;
    let mut sum = vec![T::ZERO; shape.iter().product()];
    for sample in d_output.as_slice::<T>()?.chunks(sum.len().max(1)) {
        for (sum, value) in sum.iter_mut().zip(sample) {
            *sum += *value;
        }
    }
    Tensor::new(&shape, sum)
}
