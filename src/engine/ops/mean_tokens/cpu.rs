//! CPU reference.

use crate::{
    engine::{Float, Tensor, ops::three_dims},
    error::Result,
};

/// The mean over tokens: `[B, L, C]` to `[B, C]`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn mean_tokens<T: Float>(x: &Tensor) -> Result<Tensor> {
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
/// If a tensor's dtype is not `T`.
pub(crate) fn mean_tokens_backward<T: Float>(d_output: &Tensor, tokens: usize) -> Result<Tensor> {
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
