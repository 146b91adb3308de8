//! CPU reference of the update.

use rayon::prelude::*;

use super::Factors;
use crate::{
    engine::{Float, Tensor, float::vectorized},
    error::Result,
};

/// Elements per task; also the fixed chunk in which squares are summed.
const CHUNK: usize = 16_384;

/// The sum of squares in f64, in a fixed order.
///
/// # Errors
/// If the dtype of the gradient is not `T`.
pub(crate) fn squares<T: Float>(gradient: &Tensor) -> Result<f64> {
    let parts: Vec<f64> = gradient
        .as_slice::<T>()?
        .par_chunks(CHUNK)
        .map(|chunk| {
            vectorized(
                #[inline(always)]
                || {
                    let mut lanes = [0.0f64; 8];
                    for values in chunk.chunks(8) {
                        for (lane, value) in lanes.iter_mut().zip(values) {
                            *lane += value.to_f64() * value.to_f64();
                        }
                    }
                    lanes.iter().sum()
                },
            )
        })
        .collect();
    Ok(parts.iter().sum())
}

/// Updates a value and its moments in place, with the gradient multiplied by `clip`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn update<T: Float>(
    factors: &Factors,
    clip: f64,
    decays: bool,
    value: &mut Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    g: &Tensor,
) -> Result<()> {
    let keep = if decays { factors.keep } else { 1.0 };
    let (clip, keep, rest1) = (T::of(clip), T::of(keep), T::of(factors.rest1));
    let (beta2, rest2) = (T::of(factors.beta2), T::of(1.0 - factors.beta2));
    let (root2, epsilon, rate) = (T::of(factors.root2), T::of(factors.epsilon), T::of(factors.rate));
    let values = value.as_mut_slice::<T>()?.par_chunks_mut(CHUNK);
    let moments = first
        .as_mut_slice::<T>()?
        .par_chunks_mut(CHUNK)
        .zip(second.as_mut_slice::<T>()?.par_chunks_mut(CHUNK));
    values.zip(moments).zip(g.as_slice::<T>()?.par_chunks(CHUNK)).for_each(|((value, (m, v)), g)| {
        vectorized(
            #[inline(always)]
            || {
                for (((value, m), v), g) in value.iter_mut().zip(m).zip(v).zip(g) {
                    let g = *g * clip;
                    *m += (g - *m) * rest1;
                    *v = *v * beta2 + g * g * rest2;
                    *value = *value * keep - rate * (*m / (v.sqrt() / root2 + epsilon));
                }
            },
        );
    });
    Ok(())
}
