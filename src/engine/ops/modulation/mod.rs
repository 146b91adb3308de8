//! The shared modulation (`saln`): scale, shift and gate of each level, from the level embeddings and a block's own table.
//! Scale and shift are applied by the layer norm that they follow.
//!
//! Order of the six parts, as released: gate 1, gate 2, scale 1, scale 2, shift 1, shift 2. On a device the parts are made
//! and kept in f32 whatever the activations are: there are few of them, and many gradients meet in them.

pub mod cpu;
pub mod cuda;

use std::sync::Arc;

use crate::{
    dispatch,
    engine::{
        Constant, ParameterId, RowOwner, Tape, Tensor, Var,
        cuda::{Buffer, Device},
        ops::{
            accumulate::{Rows, cuda::sum_samples},
            expect_shape, last_dim,
            residual::cuda::add_to_all,
            three_dims,
        },
        tape::{Operation, Sink, Slot},
        tensor::DeviceFloat,
        visitors::Contribution,
    },
    error::{Error, Result},
    with_float, with_number,
};
use cuda::GatePlace;

/// The level of each token of a sample.
#[derive(Debug)]
pub struct Levels {
    of_tokens: Constant<u32>,
    /// Where each level's tokens begin and, last, the number of tokens.
    starts: Constant<u32>,
    /// The rows of the table of level vectors that make a pair: a level's own and the last.
    pairs: Rows,
}

impl Levels {
    /// Levels that follow each other: `counts[s]` tokens of level `s`.
    #[expect(clippy::cast_possible_truncation, reason = "a pyramid has some hundred tokens")]
    pub fn new(counts: &[usize]) -> Self {
        let (mut of_tokens, mut starts) = (Vec::new(), vec![0]);
        for (level, &count) in counts.iter().enumerate() {
            of_tokens.extend(std::iter::repeat_n(level as u32, count));
            starts.push(of_tokens.len() as u32);
        }
        let last = starts.len().saturating_sub(2) as u32;
        let pairs = Rows::new((0..=last).flat_map(|level| [level, last]).collect(), last as usize + 1);
        Self { of_tokens: of_tokens.into(), starts: starts.into(), pairs }
    }

    /// The level of each token.
    pub fn host(&self) -> &[u32] {
        self.of_tokens.host()
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.host().len()
    }

    /// How many levels, `S`.
    pub fn count(&self) -> usize {
        self.starts.host().len() - 1
    }

    pub(crate) fn on(&self, device: &Device) -> Result<&Buffer<u32>> {
        self.of_tokens.on(device)
    }

    pub(crate) fn starts_on(&self, device: &Device) -> Result<&Buffer<u32>> {
        self.starts.on(device)
    }

    /// Refuses unless there are as many tokens.
    pub(crate) fn expect(&self, op: &'static str, tokens: usize) -> Result<()> {
        if tokens == self.tokens() {
            return Ok(());
        }
        Err(Error::shape(op, format!("{tokens} tokens, but levels of {}", self.tokens())))
    }
}

struct LevelPairs {
    level: ParameterId,
    levels: Arc<Levels>,
}

/// Each level's embedding beside the last level's: `[S, C]` to `[S, 2C]`, the input of `lvl_embed_proj`.
///
/// # Errors
/// If the table has not as many rows as there are levels.
pub fn level_pairs(tape: &mut Tape<'_>, level: ParameterId, levels: &Arc<Levels>) -> Result<Var> {
    let table = tape.parameters().value(level);
    expect_shape("level_pairs", "the table", table, &[levels.count(), last_dim("level_pairs", table)?])?;
    let value = dispatch!("level_pairs", table,
        cpu T => cpu::level_pairs::<T>(table),
        cuda T => pairs_on_device::<T>(table),
    )?;
    let levels = Arc::clone(levels);
    Ok(tape.push(value, RowOwner::Batch, &[], true, || LevelPairs { level, levels }))
}

fn pairs_on_device<T: DeviceFloat>(table: &Tensor) -> Result<Tensor> {
    let (levels, channels) = (table.dim(0), table.dim(1));
    let from = table.buffer::<T>()?;
    Tensor::written(from.device(), &[levels, 2 * channels], |pairs| {
        for level in 0..levels {
            for (place, row) in [(2 * level, level), (2 * level + 1, levels - 1)] {
                pairs.copy_range(place * channels, from, row * channels..(row + 1) * channels)?;
            }
        }
        Ok(())
    })
}

impl Operation for LevelPairs {
    fn name(&self) -> &'static str {
        "level_pairs"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let d_output = d_output.reshape(&[2 * d_output.dim(0), d_output.dim(1) / 2])?;
        let gather = Contribution::Gather { d_output: &d_output, rows: &self.levels.pairs };
        sink.parameter(self.level, RowOwner::Batch, &gather)
    }
}

struct Parts {
    table: ParameterId,
    slot: Slot,
}

/// A block's six parts of every level: `condition` `[S, 6C]` plus the block's `table` (`ada_gss`, `[1, 1, 6, C]`).
///
/// # Errors
/// If the sizes do not fit.
pub fn parts(tape: &mut Tape<'_>, condition: &Var, table: ParameterId) -> Result<Var> {
    let (rows, own) = (condition.value(), tape.parameters().value(table));
    expect_shape("modulation", "the condition", rows, &[rows.dim(0), own.len()])?;
    let value = dispatch!("modulation", rows,
        cpu T => cpu::parts::<T>(rows, own),
        cuda T => {
            let x = rows.buffer::<T>()?;
            let own = own.buffer::<T>()?;
            Tensor::written(x.device(), rows.shape(), |y| add_to_all(y, Some(x), own))
        },
    )?;
    let slot = tape.slot(condition);
    Ok(tape.push(value, RowOwner::Batch, &[slot], true, || Parts { table, slot }))
}

impl Operation for Parts {
    fn name(&self) -> &'static str {
        "modulation"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        sink.parameter(self.table, RowOwner::Batch, &Contribution::PerSample { d_value: &d_output })?;
        sink.input(self.slot, d_output)
    }
}

struct Gate {
    input: Tensor,
    parts: Tensor,
    part: usize,
    levels: Arc<Levels>,
    slots: [Slot; 2],
}

/// `x` `[B, L, C]` times part number `part` of `parts` `[S, 6C]` by the level of each token.
///
/// # Errors
/// If the sizes do not fit.
pub fn gate(tape: &mut Tape<'_>, x: &Var, parts: &Var, part: usize, levels: &Arc<Levels>) -> Result<Var> {
    let (input, of_levels) = (x.value(), parts.value());
    let [_, tokens, channels] = three_dims("gate", "x", input)?;
    levels.expect("gate", tokens)?;
    expect_shape("gate", "the modulation", of_levels, &[levels.count(), 6 * channels])?;
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

fn gate_on_device<T: DeviceFloat>(
    x: &Tensor,
    parts: &Tensor,
    part: usize,
    levels: &Levels,
) -> Result<Tensor> {
    let (from, channels) = (x.buffer::<T>()?, parts.dim(1) / 6);
    let (parts, place) = (parts.buffer::<f32>()?, GatePlace { stride: 6 * channels, at: part * channels });
    Tensor::written(from.device(), x.shape(), |y| {
        cuda::gate(y, from, parts, place, levels.on(from.device())?, channels)
    })
}

fn gate_backward_on_device<T: DeviceFloat>(
    x: &Tensor,
    parts: &Tensor,
    part: usize,
    levels: &Levels,
    d_output: &Tensor,
) -> Result<[Tensor; 2]> {
    let dx = gate_on_device::<T>(d_output, parts, part, levels)?;
    let sizes = three_dims("gate", "x", x)?;
    let [batch, _, channels] = sizes;
    let (x, dy) = (x.buffer::<T>()?, d_output.buffer::<T>()?);
    let place = GatePlace { stride: 6 * channels, at: part * channels };
    // Each sample's part first, then the sum over samples: the order of the sum does not depend on the grid.
    let mut samples = x.device().zeros::<f32>(batch * parts.len())?;
    cuda::gate_backward(&mut samples, place, dy, x, levels.starts_on(x.device())?, sizes)?;
    let d_parts = Tensor::written::<f32>(x.device(), parts.shape(), |sum| {
        sum_samples(sum, &samples, None, parts.len(), false)
    })?;
    Ok([dx, d_parts])
}
