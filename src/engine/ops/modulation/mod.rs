//! The shared modulation (`saln`): scale, shift and gate of each level, from the level embeddings and a block's own table.
//!
//! Order of the six parts, as released: gate 1, gate 2, scale 1, scale 2, shift 1, shift 2.

pub mod cpu;

use std::sync::Arc;

use crate::{
    engine::{
        ParameterId, RowOwner, Tape, Tensor, Var,
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
    let table = tape.parameters().value(level);
    let value = with_float!(table.dtype(), "level_pairs", T => cpu::level_pairs::<T>(table))?;
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
        cpu::forward::<T>(x.value(), condition.value(), own, part, levels)
    })?;
    let slots = [tape.slot(x), tape.slot(condition)];
    let (input, levels) = (x.value().clone(), Arc::clone(levels));
    Ok(tape.push(value, x.owner(), &slots, true, || Modulate { input, sum, table, part, levels, slots }))
}

impl Operation for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let [dx, d_sum] = with_float!(d_output.dtype(), "modulate", T => {
            cpu::backward::<T>(&self.input, &self.sum, self.part, &self.levels, d_output)
        })?;
        sink.parameter(self.table, RowOwner::Batch, &Contribution::PerSample { d_value: &d_sum })?;
        sink.input(self.slots[0], dx)?;
        sink.input(self.slots[1], d_sum)
    }
}
