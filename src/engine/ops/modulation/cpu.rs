//! CPU reference of the shared modulation. Parts are `[S, 6C]`, shared by the samples, or `[B, S, 6C]`, per sample.

use rayon::prelude::*;

use super::own_samples;
use crate::{
    engine::{Float, Tensor, ops::three_dims},
    error::Result,
};

/// Concatenates each row of the table with the last; with `samples`, repeated for each of them.
///
/// # Errors
/// If the dtype of the table is not `T`.
pub(crate) fn level_pairs<T: Float>(table: &Tensor, samples: Option<usize>) -> Result<Tensor> {
    let (levels, channels) = (table.dim(0), table.dim(1));
    let rows = table.as_slice::<T>()?;
    let last = &rows[(levels - 1) * channels..];
    let pairs: Vec<T> = rows.chunks(channels).flat_map(|row| row.iter().chain(last)).copied().collect();
    match samples {
        None => Tensor::new(&[levels, 2 * channels], pairs),
        Some(samples) => Tensor::new(&[samples, levels, 2 * channels], pairs.repeat(samples)),
    }
}

/// Stride between the parts of samples, in elements; 0 if they share them.
fn sample_stride(parts: &Tensor) -> usize {
    own_samples(parts).map_or(0, |samples| parts.len() / samples.max(1))
}

/// Condition plus table.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn parts<T: Float>(condition: &Tensor, own: &Tensor) -> Result<Tensor> {
    let own = own.as_slice::<T>()?;
    let rows = condition.as_slice::<T>()?.chunks(own.len().max(1));
    let sum = rows.flat_map(|row| row.iter().zip(own).map(|(a, b)| *a + *b)).collect();
    Tensor::new(condition.shape(), sum)
}

/// `x·(1 + scale) + shift` with these part indices.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn scale_shift<T: Float>(
    x: &Tensor,
    parts: &Tensor,
    [scale, shift]: [usize; 2],
    levels: &[u32],
) -> Result<Tensor> {
    let [_, tokens, channels] = three_dims("modulate", "x", x)?;
    let (stride, parts) = (sample_stride(parts), parts.as_slice::<T>()?);
    let mut y = x.as_slice::<T>()?.to_vec();
    y.par_chunks_mut(tokens * channels).enumerate().for_each(|(sample, y)| {
        let parts = &parts[sample * stride..];
        for (row, &level) in y.chunks_mut(channels).zip(levels) {
            let at = |part: usize| &parts[(level as usize * 6 + part) * channels..][..channels];
            for ((y, scale), shift) in row.iter_mut().zip(at(scale)).zip(at(shift)) {
                *y = *y * (T::ONE + *scale) + *shift;
            }
        }
    });
    Tensor::new(x.shape(), y)
}

/// The gradients of `x` and of all parts, in the parts' shape.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn scale_shift_backward<T: Float>(
    x: &Tensor,
    parts: &Tensor,
    [scale, shift]: [usize; 2],
    levels: &[u32],
    mut d_output: Tensor,
) -> Result<(Tensor, Tensor)> {
    let [_, tokens, channels] = three_dims("modulate", "x", x)?;
    let (shape, stride) = (parts.shape(), sample_stride(parts));
    let (x, parts) = (x.as_slice::<T>()?, parts.as_slice::<T>()?);
    let mut d_parts = vec![T::ZERO; parts.len()];
    let rows = d_output.as_mut_slice::<T>()?.chunks_mut(channels).zip(x.chunks(channels));
    for (token, (d, x)) in rows.enumerate() {
        let level = levels[token % tokens] as usize;
        let offset = |part: usize| token / tokens * stride + (level * 6 + part) * channels;
        for (sum, d) in d_parts[offset(shift)..][..channels].iter_mut().zip(d.iter()) {
            *sum += *d;
        }
        let (values, sums) = (&parts[offset(scale)..][..channels], &mut d_parts[offset(scale)..][..channels]);
        for (((d, x), value), sum) in d.iter_mut().zip(x).zip(values).zip(sums) {
            *sum += *d * *x;
            *d *= T::ONE + *value;
        }
    }
    Ok((d_output, Tensor::new(shape, d_parts)?))
}

/// `x·gate` with this part index.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn gate<T: Float>(x: &Tensor, parts: &Tensor, part: usize, levels: &[u32]) -> Result<Tensor> {
    let [_, tokens, channels] = three_dims("gate", "x", x)?;
    let (stride, parts) = (sample_stride(parts), parts.as_slice::<T>()?);
    let mut y = x.as_slice::<T>()?.to_vec();
    y.par_chunks_mut(tokens * channels).enumerate().for_each(|(sample, y)| {
        let parts = &parts[sample * stride..];
        for (row, &level) in y.chunks_mut(channels).zip(levels) {
            let gate = &parts[(level as usize * 6 + part) * channels..][..channels];
            for (y, gate) in row.iter_mut().zip(gate) {
                *y *= *gate;
            }
        }
    });
    Tensor::new(x.shape(), y)
}

/// The gradients of `x` and of all parts, in the parts' shape.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn gate_backward<T: Float>(
    x: &Tensor,
    parts: &Tensor,
    part: usize,
    levels: &[u32],
    mut d_output: Tensor,
) -> Result<[Tensor; 2]> {
    let [_, tokens, channels] = three_dims("gate", "x", x)?;
    let (shape, stride) = (parts.shape(), sample_stride(parts));
    let (x, parts) = (x.as_slice::<T>()?, parts.as_slice::<T>()?);
    let mut d_parts = vec![T::ZERO; parts.len()];
    let rows = d_output.as_mut_slice::<T>()?.chunks_mut(channels).zip(x.chunks(channels));
    for (token, (d, x)) in rows.enumerate() {
        let offset = token / tokens * stride + (levels[token % tokens] as usize * 6 + part) * channels;
        let (values, sums) = (&parts[offset..][..channels], &mut d_parts[offset..][..channels]);
        for (((d, x), value), sum) in d.iter_mut().zip(x).zip(values).zip(sums) {
            *sum += *d * *x;
            *d *= *value;
        }
    }
    Ok([d_output, Tensor::new(shape, d_parts)?])
}
