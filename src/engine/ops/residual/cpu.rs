//! The CPU reference of the additions.

use rayon::prelude::*;

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// `x + keep_i·branch`.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn residual<T: Float>(x: &Tensor, branch: &Tensor, keep: Option<&[f64]>) -> Result<Tensor> {
    let share = x.len() / x.dim(0).max(1);
    let mut y = T::numbers(x.len());
    y.par_chunks_mut(share.max(1))
        .zip(x.as_slice::<T>()?.par_chunks(share.max(1)))
        .zip(branch.as_slice::<T>()?.par_chunks(share.max(1)))
        .enumerate()
        .for_each(|(sample, ((y, x), branch))| {
            let keep = T::of(keep.map_or(1.0, |keep| keep[sample]));
            for ((y, x), branch) in y.iter_mut().zip(x).zip(branch) {
                *y = *x + keep * *branch;
            }
        });
    Tensor::new(x.shape(), y)
}

/// The first rows of `x`, as many as `shape` holds.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn first_sample<T: Float>(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    Tensor::new(shape, x.as_slice::<T>()?[..shape.iter().product()].to_vec())
}

/// The gradient of a batch of which only the first sample was used.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn first_sample_backward<T: Float>(d_output: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut dx = vec![T::ZERO; shape.iter().product()];
    dx[..d_output.len()].copy_from_slice(d_output.as_slice::<T>()?);
    Tensor::new(shape, dx)
}

/// `y` added to every sample of `x`.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn add_to_all<T: Float>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let y = y.as_slice::<T>()?;
    let mut sum = x.as_slice::<T>()?.to_vec();
    sum.par_chunks_mut(y.len().max(1)).for_each(|sum| {
        for (sum, y) in sum.iter_mut().zip(y) {
            *sum += *y;
        }
    });
    Tensor::new(x.shape(), sum)
}

/// The sum over samples: `[B, ..]` to `[1, ..]`.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn sum_samples<T: Float>(d_output: &Tensor) -> Result<Tensor> {
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
