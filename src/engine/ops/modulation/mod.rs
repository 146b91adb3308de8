//! Shared adaptive layer norm (`saln`): scale, shift and gate per level, from the level embeddings and a block's own
//! table. Scale and shift are applied by the layer norm that they follow.
//!
//! Order of the six parts, as in the upstream code: gate 1, gate 2, scale 1, scale 2, shift 1, shift 2. On a device the
//! parts are f32 for any dtype of the activations: they are few, and many gradients are accumulated in them.
//!
//! All samples share the parts, `[S, 6C]`, so that their gradient has no per-sample parts. On a tape [with per-sample
//! parts](Tape::with_per_sample_parts), each sample has its own, `[B, S, 6C]`, starting from its own pairs of levels:
//! the same values, but rows that belong to samples.

pub mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::sync::Arc;

use crate::{
    engine::{
        ParameterId, RowOwner, Tape, Tensor, Var,
        autograd::{
            contributions::Contribution,
            tape::{Operation, Sink, Slot},
        },
        cuda::{Device, DeviceFloat},
        dispatch::{dispatch, with_float, with_number},
        ops::{add_to_all::cuda::add_to_all, expect_shape, last_dim, levels::Levels, three_dims},
    },
    error::Result,
};
use cuda::ModulationTable;

/// Which parts of the modulation to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModulationPart {
    /// `x·(1 + scale) + shift` with these part indices.
    ScaleShift(usize, usize),
    /// `x·gate` with this part index.
    Gate(usize),
}

struct LevelPairs {
    level: ParameterId,
    levels: Arc<Levels>,
    samples: Option<usize>,
}

/// Concatenates each level's embedding with the last level's, the input of `lvl_embed_proj`: `[S, C]` to `[S, 2C]`,
/// shared by the `batch` samples, or, on a tape with per-sample parts, to `[B, S, 2C]`.
///
/// # Errors
/// If the number of rows of the table is not the number of levels.
pub fn level_pairs(
    tape: &mut Tape<'_>,
    level: ParameterId,
    levels: &Arc<Levels>,
    batch: usize,
) -> Result<Var> {
    let table = tape.parameters().value(level);
    expect_shape("level_pairs", "the table", table, &[levels.count(), last_dim("level_pairs", table)?])?;
    let samples = tape.per_sample_parts().then_some(batch);
    let value = dispatch!("level_pairs", table,
        cpu T => cpu::level_pairs::<T>(table, samples),
        cuda T => pairs_on_device::<T>(table, samples),
    )?;
    let owner = match samples {
        Some(_) => RowOwner::Samples { rows_per_sample: levels.count() },
        None => RowOwner::Batch,
    };
    let levels = Arc::clone(levels);
    Ok(tape.push(value, owner, &[], true, || LevelPairs { level, levels, samples }))
}

fn pairs_on_device<T: DeviceFloat>(table: &Tensor, samples: Option<usize>) -> Result<Tensor> {
    let (levels, channels) = (table.dim(0), table.dim(1));
    let from = table.buffer::<T>()?;
    let row = [levels, 2 * channels];
    let shape = samples.map_or(row.to_vec(), |samples| [&[samples][..], &row].concat());
    Tensor::written(from.device(), &shape, |pairs| cuda::level_pairs(pairs, from, channels))
}

impl Operation for LevelPairs {
    fn name(&self) -> &'static str {
        "level_pairs"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        // A pair consists of two rows of the table.
        let (rows, channels) = (2 * self.levels.count(), last_dim("level_pairs", &d_output)? / 2);
        let (shape, owner) = match self.samples {
            Some(samples) => (vec![samples, rows, channels], RowOwner::Samples { rows_per_sample: rows }),
            None => (vec![rows, channels], RowOwner::Batch),
        };
        let d_output = d_output.reshape(&shape)?;
        let gather = Contribution::Gather { d_output: &d_output, rows: &self.levels.pairs };
        sink.parameter(self.level, owner, &gather)
    }
}

struct Parts {
    table: ParameterId,
    slot: Slot,
    owner: RowOwner,
}

/// A block's six parts per level: `condition` `[S, 6C]`, or `[B, S, 6C]` per sample, plus the block's
/// `table` (`ada_gss`, `[1, 1, 6, C]`).
///
/// # Errors
/// If the sizes do not match.
pub fn parts(tape: &mut Tape<'_>, condition: &Var, table: ParameterId) -> Result<Var> {
    let (rows, own) = (condition.value(), tape.parameters().value(table));
    let levels = rows.shape().split_last().map_or(&[][..], |(_, levels)| levels);
    expect_shape("modulation", "the condition", rows, &[levels, &[own.len()]].concat())?;
    let value = dispatch!("modulation", rows,
        cpu T => cpu::parts::<T>(rows, own),
        cuda T => {
            let x = rows.buffer::<T>()?;
            let own = own.buffer::<T>()?;
            Tensor::written(x.device(), rows.shape(), |y| add_to_all(y, Some(x), own))
        },
    )?;
    let (slot, owner) = (tape.slot(condition), own_rows(condition));
    Ok(tape.push(value, owner, &[slot], true, || Parts { table, slot, owner }))
}

impl Operation for Parts {
    fn name(&self) -> &'static str {
        "modulation"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        // The whole table was added to the row of every level: either of each sample, or shared by all samples.
        let contribution = match self.owner {
            RowOwner::Samples { .. } => Contribution::Sum { d_output: &d_output, column: 0 },
            RowOwner::Batch => Contribution::PerSample { d_value: &d_output },
        };
        sink.parameter(self.table, self.owner, &contribution)?;
        sink.input(self.slot, d_output)
    }
}

/// The batch size if each sample has its own parts, `[B, S, 6C]`; `None` if all share them, `[S, 6C]`.
pub(crate) fn own_samples(parts: &Tensor) -> Option<usize> {
    (parts.shape().len() == 3).then(|| parts.dim(0))
}

/// The owner of the rows of a condition, from its shape: a leaf does not record whether it is per-sample.
fn own_rows(condition: &Var) -> RowOwner {
    match own_samples(condition.value()) {
        Some(_) => condition.owner(),
        None => RowOwner::Batch,
    }
}

/// Rejects parts that are neither shared, `[S, 6C]`, nor per-sample, `[B, S, 6C]`.
pub(crate) fn expect_parts(
    op: &'static str,
    parts: &Tensor,
    levels: &Levels,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    let row = [levels.count(), 6 * channels];
    let shape = own_samples(parts).map_or(row.to_vec(), |_| [&[batch][..], &row].concat());
    expect_shape(op, "the modulation", parts, &shape)
}

struct Gate {
    input: Tensor,
    parts: Tensor,
    part: usize,
    levels: Arc<Levels>,
    slots: [Slot; 2],
}

/// `x` `[B, L, C]` times part `part` of `parts`, `[S, 6C]` or `[B, S, 6C]`, by the level of each token.
///
/// # Errors
/// If the sizes do not match.
pub fn gate(tape: &mut Tape<'_>, x: &Var, parts: &Var, part: usize, levels: &Arc<Levels>) -> Result<Var> {
    let (input, of_levels) = (x.value(), parts.value());
    let [batch, tokens, channels] = three_dims("gate", "x", input)?;
    levels.expect("gate", tokens)?;
    expect_parts("gate", of_levels, levels, [batch, channels])?;
    let value = dispatch!("gate", input,
        cpu T => cpu::gate::<T>(input, of_levels, part, levels.host()),
        cuda T => gate_on_device::<T>(input, of_levels, part, levels),
    )?;
    let slots = [tape.slot(x), tape.slot(parts)];
    let (input, parts, levels) = (input.clone(), of_levels.clone(), Arc::clone(levels));
    Ok(tape.push(value, x.owner(), &slots, false, || Gate { input, parts, part, levels, slots }))
}

impl Operation for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { input, parts, part, levels, slots } = *self;
        let [dx, d_parts] = if d_output.device().is_none() {
            with_float!(d_output.dtype(), "gate", T => {
                cpu::gate_backward::<T>(&input, &parts, part, levels.host(), d_output)
            })?
        } else {
            with_number!(d_output.dtype(), "gate", T => {
                gate_backward_on_device::<T>(&input, &parts, part, &levels, &d_output)
            })?
        };
        sink.input(slots[0], dx)?;
        sink.input(slots[1], d_parts)
    }
}

/// The modulation's table for its kernels.
fn table<'a>(parts: &'a Tensor, levels: &'a Levels, device: &Device) -> Result<ModulationTable<'a>> {
    let sequence = levels.on(device)?;
    Ok(ModulationTable {
        table: parts.buffer::<f32>()?,
        levels: sequence.levels(),
        starts: sequence.starts(),
        samples: own_samples(parts),
    })
}

fn gate_on_device<T: DeviceFloat>(
    x: &Tensor,
    parts: &Tensor,
    part: usize,
    levels: &Levels,
) -> Result<Tensor> {
    let from = x.buffer::<T>()?;
    let table = table(parts, levels, from.device())?;
    Tensor::written(from.device(), x.shape(), |y| {
        cuda::modulate_forward(y, Some(from), &table, ModulationPart::Gate(part))
    })
}

fn gate_backward_on_device<T: DeviceFloat>(
    x: &Tensor,
    parts: &Tensor,
    part: usize,
    levels: &Levels,
    d_output: &Tensor,
) -> Result<[Tensor; 2]> {
    let [batch, _, channels] = three_dims("gate", "x", x)?;
    let (input, dy) = (x.buffer::<T>()?, d_output.buffer::<T>()?);
    let device = dy.device();
    let (table, part) = (table(parts, levels, device)?, ModulationPart::Gate(part));
    let dx = Tensor::written(device, x.shape(), |dx| cuda::modulate_backward(dx, Some(dy), &table, part))?;
    let mut by_sample = device.uninitialized::<f32>(batch * levels.count() * 2 * channels)?;
    let mut d_parts = device.zeros::<f32>(parts.len())?;
    cuda::modulate_backward_table(&mut d_parts, &mut by_sample, dy, input, &table, part)?;
    Ok([dx, Tensor::from_buffer(parts.shape(), d_parts)?])
}
