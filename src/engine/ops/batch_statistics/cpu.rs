//! CPU reference.

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// Mean and biased variance over the batch, concatenated.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn batch_statistics<T: Float>(x: &Tensor, batch: usize, channels: usize) -> Result<Tensor> {
    let share = T::of(1.0 / batch as f64);
    let (mean, x) = (means::<T>(x, channels, share)?, x.as_slice::<T>()?);
    let mut variance = vec![T::ZERO; channels];
    for row in x.chunks(channels) {
        for ((variance, mean), x) in variance.iter_mut().zip(&mean).zip(row) {
            *variance += (*x - *mean) * (*x - *mean) * share;
        }
    }
    Tensor::new(&[1, 2 * channels], [mean, variance].concat())
}

/// The gradient of the input of [`batch_statistics`].
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn batch_statistics_backward<T: Float>(x: &Tensor, d_output: &Tensor) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0), x.dim(1));
    let share = T::of(1.0 / batch as f64);
    let mean = means::<T>(x, channels, share)?;
    let (d_mean, d_variance) = d_output.as_slice::<T>()?.split_at(channels);
    let mut dx = Vec::with_capacity(x.len());
    for row in x.as_slice::<T>()?.chunks(channels) {
        for (at, x) in row.iter().enumerate() {
            dx.push(share * (d_mean[at] + T::of(2.0) * (*x - mean[at]) * d_variance[at]));
        }
    }
    Tensor::new(&[batch, channels], dx)
}

fn means<T: Float>(x: &Tensor, channels: usize, share: T) -> Result<Vec<T>> {
    let mut mean = vec![T::ZERO; channels];
    for row in x.as_slice::<T>()?.chunks(channels) {
        for (mean, x) in mean.iter_mut().zip(row) {
            *mean += *x * share;
        }
    }
    Ok(mean)
}
