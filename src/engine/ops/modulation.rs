//! The shared modulation (`saln`): scale, shift and gate of each level, from the level embeddings and a block's own table.
//!
//! Order of the six parts, as released: gate 1, gate 2, scale 1, scale 2, shift 1, shift 2.

pub mod cuda;

use std::sync::Arc;

use rayon::prelude::*;

use crate::{
    engine::{
        Float, ParameterId, RowOwner, Tape, Tensor, Var,
        ops::{expect_shape, three_dims},
        tape::{Operation, Sink, Slot},
        visitors::Contribution,
    },
    error::Result,
    with_float,
};

struct LevelPairs {
    level: ParameterId,
    levels: usize,
}

/// Each level's embedding beside the last level's: `[S, C]` to `[S, 2C]`, the input of `lvl_embed_proj`.
///
/// # Errors
/// If the table is not a matrix.
pub fn level_pairs(tape: &mut Tape<'_>, level: ParameterId) -> Result<Var> {
    fn run<T: Float>(table: &Tensor) -> Result<Tensor> {
        let (levels, channels) = (table.dim(0), table.dim(1));
        let rows = table.as_slice::<T>()?;
        let last = &rows[(levels - 1) * channels..];
        let pairs = rows.chunks(channels).flat_map(|row| row.iter().chain(last)).copied().collect();
        Tensor::new(&[levels, 2 * channels], pairs)
    }
    let table = tape.parameters().value(level);
    let value = with_float!(table.dtype(), "level_pairs", T => run::<T>(table))?;
    let levels = table.dim(0);
    Ok(tape.push(value, RowOwner::Batch, &[], true, || LevelPairs { level, levels }))
}

impl Operation for LevelPairs {
    fn name(&self) -> &'static str {
        "level_pairs"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let last = u32::try_from(self.levels - 1).unwrap_or(u32::MAX);
        // Each row is two rows of the table: its own and the last.
        let index: Vec<u32> = (0..=last).flat_map(|level| [level, last]).collect();
        let rows = d_output.reshape(&[2 * self.levels, d_output.dim(1) / 2])?;
        sink.parameter(self.level, RowOwner::Batch, &Contribution::Gather { d_output: &rows, index: &index })
    }
}

/// Which of the six parts of the modulation an op reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `x·(1 + scale) + shift` with the parts numbered so.
    ScaleShift(usize, usize),
    /// `x·gate` with the part numbered so.
    Gate(usize),
}

struct Modulate {
    input: Tensor,
    /// Condition plus the block's table, `[S, 6C]`.
    sum: Tensor,
    table: ParameterId,
    part: Part,
    levels: Arc<Vec<u32>>,
    slots: [Slot; 2],
}

/// Modulates `x` `[B, L, C]` by the level of each token: `condition` `[S, 6C]` plus the block's `table` (`ada_gss`,
/// `[1, 1, 6, C]`).
///
/// # Errors
/// If the sizes do not fit.
pub fn modulate(
    tape: &mut Tape<'_>,
    x: &Var,
    condition: &Var,
    table: ParameterId,
    part: Part,
    levels: &Arc<Vec<u32>>,
) -> Result<Var> {
    let [_, _, channels] = three_dims("modulate", "x", x.value())?;
    let scales = condition.value().dim(0);
    expect_shape("modulate", "the condition", condition.value(), &[scales, 6 * channels])?;
    let own = tape.parameters().value(table);
    let (sum, value) = with_float!(x.value().dtype(), "modulate", T => {
        forward::<T>(x.value(), condition.value(), own, part, levels)
    })?;
    let slots = [tape.slot(x), tape.slot(condition)];
    let (input, levels) = (x.value().clone(), Arc::clone(levels));
    Ok(tape.push(value, x.owner(), &slots, true, || Modulate { input, sum, table, part, levels, slots }))
}

fn forward<T: Float>(
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

impl Operation for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(op: &Modulate, mut d_output: Tensor) -> Result<[Tensor; 2]> {
            let [_, tokens, channels] = three_dims("modulate", "x", &op.input)?;
            let (x, sum) = (op.input.as_slice::<T>()?, op.sum.as_slice::<T>()?);
            let mut d_sum = vec![T::ZERO; sum.len()];
            let rows = d_output.as_mut_slice::<T>()?.chunks_mut(channels).zip(x.chunks(channels));
            for (token, (d, x)) in rows.enumerate() {
                let level = op.levels[token % tokens] as usize;
                let place = |part: usize| (level * 6 + part) * channels;
                let factor = match op.part {
                    Part::ScaleShift(scale, shift) => {
                        for (sum, d) in d_sum[place(shift)..][..channels].iter_mut().zip(d.iter()) {
                            *sum += *d;
                        }
                        scale
                    }
                    Part::Gate(gate) => gate,
                };
                let one = if matches!(op.part, Part::Gate(_)) { T::ZERO } else { T::ONE };
                let (values, sums) =
                    (&sum[place(factor)..][..channels], &mut d_sum[place(factor)..][..channels]);
                for (((d, x), value), sum) in d.iter_mut().zip(x).zip(values).zip(sums) {
                    *sum += *d * *x;
                    *d *= one + *value;
                }
            }
            Ok([d_output, Tensor::new(op.sum.shape(), d_sum)?])
        }
        let [dx, d_sum] = with_float!(d_output.dtype(), "modulate", T => run::<T>(&self, d_output))?;
        sink.parameter(self.table, RowOwner::Batch, &Contribution::PerSample { d_value: &d_sum })?;
        sink.input(self.slots[0], dx)?;
        sink.input(self.slots[1], d_sum)
    }
}
