//! Launchers for `kernels/modulation.cu`. Scale and shift right after a layer norm are part of
//! [`layer_norm_forward`](crate::engine::ops::layer_norm::cuda::layer_norm_forward).
//!
//! The table `[S, 6C]`, or `[B, S, 6C]` with one per sample, is the condition plus the block's own
//! row: [`add_to_all`](crate::engine::ops::add_to_all::cuda::add_to_all). The gradient of the pairs' table is
//! [`gather_sum`](crate::engine::autograd::contributions::cuda::gather_sum) with the index `[0, S − 1, 1, S − 1, ..]`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use super::ModulationPart;
use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "modulation";
const ROWS: usize = 8;
const THREADS: u32 = 256;
/// Channels per block of the modulation's gradient.
const COLUMNS: u32 = 128;

/// The modulation's table and the levels of the tokens.
#[derive(Clone, Copy, Debug)]
pub struct ModulationTable<'a> {
    /// `[S, 6C]`, or `[B, S, 6C]`
    pub table: &'a Buffer<f32>,
    /// The level of each token, `[L]`, each below `S`.
    pub levels: &'a Buffer<u32>,
    /// The first token of each level, followed by `L`; `[S + 1]`.
    pub starts: &'a Buffer<u32>,
    /// `B` if each sample has its own table; `None` if all samples share it.
    pub samples: Option<usize>,
}

impl ModulationTable<'_> {
    fn level_count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Channels, from the sizes of the table and `x`, and the batch size.
    fn sizes(&self, numbers: usize) -> Result<[usize; 2]> {
        let (levels, tokens) = (self.level_count(), self.levels.len());
        let rows = levels * self.samples.unwrap_or(1);
        let channels = self.table.len().checked_div(6 * rows).unwrap_or(0);
        let sample = channels * tokens;
        let fits = sample > 0
            && self.table.len() == 6 * rows * channels
            && numbers.is_multiple_of(sample)
            && self.samples.is_none_or(|samples| numbers == samples * sample);
        if !fits {
            return Err(Error::shape(
                OP,
                format!(
                    "{numbers} elements do not match {tokens} tokens and a table of {} elements for {rows} levels",
                    self.table.len()
                ),
            ));
        }
        Ok([numbers / sample, channels])
    }

    /// Stride between samples, in elements; 0 if they share the table.
    fn sample_stride(&self) -> usize {
        self.samples.map_or(0, |samples| self.table.len() / samples.max(1))
    }
}

/// Part offsets of factor and optional shift in a row of the table, and the constant that is added to the factor.
fn offsets(part: ModulationPart) -> Result<(usize, Option<usize>, f32)> {
    let (factor, shift, base) = match part {
        ModulationPart::ScaleShift(scale, shift) => (scale, Some(shift), 1.0),
        ModulationPart::Gate(gate) => (gate, None, 0.0),
    };
    if factor.max(shift.unwrap_or(0)) >= 6 {
        return Err(Error::shape(OP, format!("{part:?} is not one of the six parts")));
    }
    Ok((factor, shift, base))
}

fn run<T: Factor>(
    y: &mut Buffer<T>,
    x: Option<&Buffer<T>>,
    table: &ModulationTable<'_>,
    (factor, shift, base): (usize, Option<usize>, f32),
) -> Result<()> {
    if let Some(x) = x {
        x.expect_len(OP, "x", y.len())?;
    }
    let [_, channels] = table.sizes(y.len())?;
    let rows = y.len() / channels;
    if rows == 0 {
        return Ok(());
    }
    let at = |part: usize| Argument::Read {
        address: table.table.address() + (part * channels * size_of::<f32>()) as u64,
        letter: b'f',
    };
    let arguments = [
        y.write(),
        x.map_or_else(|| y.read(), Buffer::read),
        at(factor),
        shift.map_or(Argument::null::<f32>(), at),
        table.levels.read(),
        Argument::U32(size(OP, "rows", rows)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::U32(size(OP, "tokens", table.levels.len())?),
        Argument::U32(size(OP, "numbers", 6 * channels)?),
        Argument::U32(size(OP, "numbers", table.sample_stride())?),
        Argument::F32(base),
    ];
    let launch = Launch::linear(blocks(OP, rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; y is borrowed mutably, and each element of it is read only by the thread
    // that writes it; the sizes were compared above, and the parts are below six; all buffers live, and are freed in
    // stream order.
    unsafe { y.device().launch(&Kernel::of::<T>(OP, "modulate"), &launch, &arguments) }
}

/// `y = x·(1 + scale) + shift`, or `y = x·gate`, by the level of each token; `y`, `x` `[B, L, C]`. Without `x`, in
/// place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn modulate_forward<T: Factor>(
    y: &mut Buffer<T>,
    x: Option<&Buffer<T>>,
    table: &ModulationTable<'_>,
    part: ModulationPart,
) -> Result<()> {
    run(y, x, table, offsets(part)?)
}

/// The gradient of [`modulate_forward`]'s `x`, `dx` `[B, L, C]`. Without `dy`, in place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn modulate_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: Option<&Buffer<T>>,
    table: &ModulationTable<'_>,
    part: ModulationPart,
) -> Result<()> {
    let (factor, _, base) = offsets(part)?;
    run(dx, dy, table, (factor, None, base))
}

/// Adds the gradient of the table's parts to `d_table`, `[S, 6C]` or `[B, S, 6C]` like the table, from the gradient
/// `dy` `[B, L, C]` of the result and the modulated `x` `[B, L, C]`. `by_sample` `[B, S, 2, C]` is scratch space, and
/// afterwards contains the per-sample gradients of factor and shift.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn modulate_backward_table<T: Factor>(
    d_table: &mut Buffer<f32>,
    by_sample: &mut Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    table: &ModulationTable<'_>,
    part: ModulationPart,
) -> Result<()> {
    let (factor, shift, _) = offsets(part)?;
    let [batch, channels] = table.sizes(x.len())?;
    d_table.expect_len(OP, "the gradient of the table", table.table.len())?;
    modulation_parts_backward(by_sample, dy, x, table.starts, [batch, table.levels.len(), channels])?;
    let summed = table.samples.map_or(batch, |_| 1);
    add_modulation(d_table, by_sample, [summed, channels], factor, shift)
}

/// Adds the per-sample gradients of factor and shift, `by_sample` `[B, S, 2, C]` (also of [`modulation_backward`]), to
/// parts `factor` and `shift` of `d_table` `[S, 6C]`. If each sample has its own table, `d_table` `[B, S, 6C]`, treat
/// them as a `batch` of 1 with `B·S` levels, and nothing is summed.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub(crate) fn add_modulation(
    d_table: &mut Buffer<f32>,
    by_sample: &Buffer<f32>,
    [batch, channels]: [usize; 2],
    factor: usize,
    shift: Option<usize>,
) -> Result<()> {
    let levels = d_table.len().checked_div(6 * channels).unwrap_or(0);
    d_table.expect_len(OP, "the gradient of the table", levels * 6 * channels)?;
    by_sample.expect_len(OP, "the samples' gradients", batch * levels * 2 * channels)?;
    if factor.max(shift.unwrap_or(0)) >= 6 {
        return Err(Error::shape(OP, format!("{factor} and {shift:?} are not two of the six parts")));
    }
    if by_sample.is_empty() {
        return Ok(());
    }
    let arguments = [
        d_table.write(),
        by_sample.read(),
        Argument::U32(size(OP, "samples", batch)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::U32(size(OP, "numbers", 6 * channels)?),
        Argument::U32(size(OP, "numbers", factor * channels)?),
        Argument::U32(size(OP, "numbers", shift.unwrap_or(6) * channels)?),
    ];
    let grid = [blocks(OP, channels, THREADS as usize)?, size(OP, "levels", levels)?, 1];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; d_table is borrowed mutably; the sizes were compared above; both live,
    // and are freed in stream order.
    unsafe { by_sample.device().launch(&Kernel::new(OP, "modulation_add"), &launch, &arguments) }
}

/// Concatenates each level's embedding with the last level's: `table` `[S, C]` to `pairs` `[S, 2C]`, or to
/// `[B, S, 2C]`, repeated for as many samples as fit.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn level_pairs<T: Factor>(pairs: &mut Buffer<T>, table: &Buffer<T>, channels: usize) -> Result<()> {
    let op = "level_pairs";
    if channels == 0 || table.is_empty() || !table.len().is_multiple_of(channels) {
        return Err(Error::shape(op, format!("{} elements are not rows of {channels}", table.len())));
    }
    let levels = table.len() / channels;
    let samples = pairs.len() / (2 * table.len());
    pairs.expect_len(op, "the pairs", samples * 2 * table.len())?;
    if samples == 0 {
        return Ok(());
    }
    let arguments = [
        pairs.write(),
        table.read(),
        Argument::U32(size(op, "levels", levels)?),
        Argument::U32(size(op, "channels", channels)?),
    ];
    let grid =
        [blocks(op, channels, THREADS as usize)?, size(op, "levels", levels)?, size(op, "samples", samples)?];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; the pairs are borrowed mutably; the sizes were compared above; both
    // live, and are freed in stream order.
    unsafe { table.device().launch(&Kernel::of::<T>(OP, op), &launch, &arguments) }
}

/// The gradients of scale and shift per sample and level: `d_modulation` `[B, S, 2, C]`. Level `s` has the tokens
/// `starts[s]..starts[s + 1]` of every sample; the last start is the number of tokens.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn modulation_backward<T: Factor>(
    d_modulation: &mut Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    statistics: &Buffer<f32>,
    starts: &Buffer<u32>,
    sizes: [usize; 3],
) -> Result<()> {
    modulation_sums(d_modulation, dy, x, Some(statistics), starts, sizes)
}

/// As [`modulation_backward`], for a modulation (or a gate) of `x` itself, without a norm before it.
fn modulation_parts_backward<T: Factor>(
    d_modulation: &mut Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    starts: &Buffer<u32>,
    sizes: [usize; 3],
) -> Result<()> {
    modulation_sums(d_modulation, dy, x, None, starts, sizes)
}

fn modulation_sums<T: Factor>(
    d_modulation: &mut Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    statistics: Option<&Buffer<f32>>,
    starts: &Buffer<u32>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    let op = "modulation_backward";
    let levels = starts.len().saturating_sub(1);
    x.expect_len(op, "x", batch * tokens * channels)?;
    dy.expect_len(op, "the gradient of the result", x.len())?;
    if let Some(statistics) = statistics {
        statistics.expect_len(op, "the statistics", 2 * batch * tokens)?;
    }
    d_modulation.expect_len(op, "the gradient", batch * levels * 2 * channels)?;
    if d_modulation.is_empty() {
        return Ok(());
    }
    let launch = Launch {
        grid: [
            blocks(op, channels, COLUMNS as usize)?,
            size(op, "levels", levels)?,
            size(op, "samples", batch)?,
        ],
        block: [COLUMNS, 1, 1],
        shared_bytes: 0,
    };
    let arguments = [
        d_modulation.write(),
        dy.read(),
        x.read(),
        statistics.map_or(Argument::null::<f32>(), Buffer::read),
        starts.read(),
        Argument::U32(size(op, "channels", channels)?),
        Argument::U32(size(op, "tokens", tokens)?),
    ];
    // SAFETY: arguments in the kernel's order; the result is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { x.device().launch(&Kernel::of::<T>("layer_norm", op), &launch, &arguments) }
}
