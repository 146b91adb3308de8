//! The CPU reference of the shared modulation.

use rayon::prelude::*;

use super::Part;
use crate::{
    engine::{Float, Tensor, ops::three_dims},
    error::Result,
};

/// Each row of the table beside the last.
///
/// # Errors
/// If the table holds another type than `T`.
pub fn level_pairs<T: Float>(table: &Tensor) -> Result<Tensor> {
    let (levels, channels) = (table.dim(0), table.dim(1));
    let rows = table.as_slice::<T>()?;
    let last = &rows[(levels - 1) * channels..];
    let pairs = rows.chunks(channels).flat_map(|row| row.iter().chain(last)).copied().collect();
    Tensor::new(&[levels, 2 * channels], pairs)
}

/// Condition plus table, and `x` modulated by it.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn forward<T: Float>(
    x: &Tensor,
    condition: &Tensor,
    own: &Tensor,
    part: Part,
    levels: &[u32],
) -> Result<(Tensor, Tensor)> {
    let [_, tokens, channels] = three_dims("modulate", "x", x)?;
    let own = own.as_slice::<T>()?;
    let rows = condition.as_slice::<T>()?.chunks(6 * channels);
    let sum: Vec<T> = rows.flat_map(|row| row.iter().zip(own).map(|(a, b)| *a + *b)).collect();
    let mut y = x.as_slice::<T>()?.to_vec();
    y.par_chunks_mut(tokens * channels).for_each(|y| {
        for (row, &level) in y.chunks_mut(channels).zip(levels) {
            let at = |part: usize| &sum[(level as usize * 6 + part) * channels..][..channels];
            match part {
                Part::ScaleShift(scale, shift) => {
                    for ((y, scale), shift) in row.iter_mut().zip(at(scale)).zip(at(shift)) {
                        *y = *y * (T::ONE + *scale) + *shift;
                    }
                }
                Part::Gate(gate) => {
                    for (y, gate) in row.iter_mut().zip(at(gate)) {
                        *y *= *gate;
                    }
                }
            }
        }
    });
    Ok((Tensor::new(condition.shape(), sum)?, Tensor::new(x.shape(), y)?))
}

/// The gradients of `x` and of the sum of condition and table.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn backward<T: Float>(
    input: &Tensor,
    sum: &Tensor,
    part: Part,
    levels: &[u32],
    mut d_output: Tensor,
) -> Result<[Tensor; 2]> {
    let [_, tokens, channels] = three_dims("modulate", "x", input)?;
    let shape = sum.shape();
    let (x, sum) = (input.as_slice::<T>()?, sum.as_slice::<T>()?);
    let mut d_sum = vec![T::ZERO; sum.len()];
    let rows = d_output.as_mut_slice::<T>()?.chunks_mut(channels).zip(x.chunks(channels));
    for (token, (d, x)) in rows.enumerate() {
        let level = levels[token % tokens] as usize;
        let place = |part: usize| (level * 6 + part) * channels;
        let factor = match part {
            Part::ScaleShift(scale, shift) => {
                for (sum, d) in d_sum[place(shift)..][..channels].iter_mut().zip(d.iter()) {
                    *sum += *d;
                }
                scale
            }
            Part::Gate(gate) => gate,
        };
        let one = if matches!(part, Part::Gate(_)) { T::ZERO } else { T::ONE };
        let (values, sums) = (&sum[place(factor)..][..channels], &mut d_sum[place(factor)..][..channels]);
        for (((d, x), value), sum) in d.iter_mut().zip(x).zip(values).zip(sums) {
            *sum += *d * *x;
            *d *= one + *value;
        }
    }
    Ok([d_output, Tensor::new(shape, d_sum)?])
}
