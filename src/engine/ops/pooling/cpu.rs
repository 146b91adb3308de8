//! The CPU reference of means, batch statistics and the softmax over the batch.

use crate::{
    engine::{Float, Tensor, ops::three_dims},
    error::Result,
};

/// The mean over tokens: `[B, L, C]` to `[B, C]`.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn mean_tokens<T: Float>(x: &Tensor) -> Result<Tensor> {
    let [batch, tokens, channels] = three_dims("mean_tokens", "x", x)?;
    let share = T::of(1.0 / tokens as f64);
    let mut y = vec![T::ZERO; batch * channels];
    for (y, x) in y.chunks_mut(channels).zip(x.as_slice::<T>()?.chunks(tokens * channels)) {
        for row in x.chunks(channels) {
            for (y, x) in y.iter_mut().zip(row) {
                *y += *x;
            }
        }
        for y in y {
            *y *= share;
        }
    }
    Tensor::new(&[batch, channels], y)
}

/// The gradient of each token: its share of the mean's.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn mean_tokens_backward<T: Float>(d_output: &Tensor, tokens: usize) -> Result<Tensor> {
    let (batch, channels) = (d_output.dim(0), d_output.dim(1));
    let share = T::of(1.0 / tokens as f64);
    let mut dx = T::numbers(batch * tokens * channels);
    let samples = dx.chunks_mut((tokens * channels).max(1)).zip(d_output.as_slice::<T>()?.chunks(channels));
    for (dx, row) in samples {
        let scaled: Vec<T> = row.iter().map(|value| *value * share).collect();
        dx.chunks_mut(channels).for_each(|dx| dx.copy_from_slice(&scaled));
    }
    Tensor::new(&[batch, tokens, channels], dx)
}

/// Mean and biased variance over the batch, side by side.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn batch_statistics<T: Float>(x: &Tensor, batch: usize, channels: usize) -> Result<Tensor> {
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
/// If a tensor holds another type than `T`.
pub fn batch_statistics_backward<T: Float>(x: &Tensor, d_output: &Tensor) -> Result<Tensor> {
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

/// Softmax of `x / temperature` over all elements.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn batch_softmax<T: Float>(x: &Tensor, temperature: f64) -> Result<Tensor> {
    // In f64 whatever the type: weights hardly differ, so their gradients are small differences of large terms.
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
/// If a tensor holds another type than `T`.
pub fn batch_softmax_backward<T: Float>(
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

/// Every element of `x` times the single number `scale`.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn scale_all<T: Float>(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scale = scale.as_slice::<T>()?[0];
    Tensor::new(x.shape(), x.as_slice::<T>()?.iter().map(|x| *x * scale).collect())
}

/// The gradients of `x` and of the scale.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn scale_all_backward<T: Float>(x: &Tensor, scale: &Tensor, d_output: &Tensor) -> Result<[Tensor; 2]> {
    let (x, d) = (x.as_slice::<T>()?, d_output.as_slice::<T>()?);
    let scale = scale.as_slice::<T>()?[0];
    let d_scale: T = x.iter().zip(d).map(|(x, d)| *x * *d).sum();
    let dx = d.iter().map(|d| *d * scale).collect();
    Ok([Tensor::new(d_output.shape(), dx)?, Tensor::new(&[1, 1], vec![d_scale])?])
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
