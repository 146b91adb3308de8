//! CPU reference of layer norm, and sums in lanes shared with other references.

use rayon::prelude::*;

use crate::{
    engine::{Float, Tensor, float::vectorized, ops::last_dim},
    error::Result,
};

/// Rows per task.
const ROWS: usize = 64;

/// The normalized rows, and `1 / √(variance + ε)` per row.
///
/// # Errors
/// If `x` has no channels or its dtype is not `T`.
pub(crate) fn forward<T: Float>(x: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let channels = last_dim("layer_norm", x)?;
    let rows = x.len() / channels;
    let share = T::of(1.0 / channels as f64);
    let mut y = T::numbers(x.len());
    let mut inverse = vec![T::ZERO; rows];
    y.par_chunks_mut(ROWS * channels)
        .zip(x.as_slice::<T>()?.par_chunks(ROWS * channels))
        .zip(inverse.par_chunks_mut(ROWS))
        .for_each(|((y, x), inverse)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, x), inverse) in y.chunks_mut(channels).zip(x.chunks(channels)).zip(inverse) {
                        let mean = sum(x, |value| value) * share;
                        let variance = sum(x, |value| (value - mean) * (value - mean)) * share;
                        *inverse = T::ONE / (variance + T::of(epsilon)).sqrt();
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = (*x - mean) * *inverse;
                        }
                    }
                },
            );
        });
    Ok((Tensor::new(x.shape(), y)?, Tensor::new(&[rows], inverse)?))
}

/// The gradient of the input from that of the output, the output itself and the inverse deviations.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn backward<T: Float>(output: &Tensor, inverse: &Tensor, mut d_output: Tensor) -> Result<Tensor> {
    let channels = last_dim("layer_norm", &d_output)?;
    let share = T::of(1.0 / channels as f64);
    let (y, inverse) = (output.as_slice::<T>()?, inverse.as_slice::<T>()?);
    d_output
        .as_mut_slice::<T>()?
        .par_chunks_mut(ROWS * channels)
        .zip(y.par_chunks(ROWS * channels))
        .zip(inverse.par_chunks(ROWS))
        .for_each(|((d, y), inverse)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((d, y), inverse) in d.chunks_mut(channels).zip(y.chunks(channels)).zip(inverse) {
                        let mean = sum(d, |value| value) * share;
                        let slope = dot(d, y) * share;
                        for (d, y) in d.iter_mut().zip(y) {
                            *d = (*d - mean - *y * slope) * *inverse;
                        }
                    }
                },
            );
        });
    Ok(d_output)
}

/// A sum in 16 lanes, so that it vectorizes and its order is fixed.
#[inline(always)]
pub(crate) fn sum<T: Float>(values: &[T], map: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; 16];
    let (body, tail) = values.as_chunks::<16>();
    for chunk in body {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += map(*value);
        }
    }
    let mut total = T::ZERO;
    for lane in lanes {
        total += lane;
    }
    for value in tail {
        total += map(*value);
    }
    total
}

/// An inner product in 16 lanes.
#[inline(always)]
pub(crate) fn dot<T: Float>(left: &[T], right: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let ((left, left_tail), (right, right_tail)) = (left.as_chunks::<16>(), right.as_chunks::<16>());
    for (left, right) in left.iter().zip(right) {
        for ((lane, left), right) in lanes.iter_mut().zip(left).zip(right) {
            *lane += *left * *right;
        }
    }
    let mut total = T::ZERO;
    for lane in lanes {
        total += lane;
    }
    for (left, right) in left_tail.iter().zip(right_tail) {
        total += *left * *right;
    }
    total
}
