//! Launchers for `kernels/patch_embed.cu`, which include the pyramid's projection.
//!
//! In the backward, one pass over the gradient of the sequence sums it per sample and level, `[B, S, C]`. Summed over
//! samples, these are the level table's gradient; level 0's rows are the text's gradient (and, summed, that of the
//! start embedding if it is one token); the others, summed, are the gradient of the projection's bias. The gradients of
//! a longer start and of positions are sums over samples of the sequence's gradient itself
//! ([`sum_samples`](crate::engine::autograd::contributions::cuda::sum_samples) with a stride of `L·C`).
//!
//! The projection's weight gradient is a matrix product. For it, rows are padded to `[B, L, Cvae]` with zeros for the
//! first tokens (as [`pyramid_input`](crate::engine::ops::pyramid::cuda::pyramid_input) writes them on request): then
//! both inputs are dense, and sample `i`'s own gradient is the range `i·L..(i + 1)·L` of the inner dimension.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, levels::SequenceLevels, size},
    },
    error::{Error, Result},
};

const OP: &str = "patch_embed";
const THREADS: u32 = 128;
/// Channels, tokens and samples per block, for the generic kernel and that for tensor cores.
const PLAIN: [usize; 3] = [128, 32, 1];
const TENSOR: [usize; 3] = [256, 16, 8];

/// The parameters.
#[derive(Clone, Copy, Debug)]
pub struct DevicePatchEmbedParameters<'a, T: Factor> {
    /// The projection, `[C, Cvae]`.
    pub weight: &'a Buffer<T>,
    /// Its bias, `[C]`.
    pub bias: &'a Buffer<f32>,
    /// Added to the first tokens, `[L₀, C]`.
    pub start: &'a Buffer<f32>,
    /// One vector per level, `[S, C]`.
    pub level: Option<&'a Buffer<f32>>,
    /// One vector per token, `[L, C]`.
    pub position: Option<&'a Buffer<f32>>,
}

/// The sequence `x` `[B, L, C]` from `text` `[B, C]` (the projected pooled text) and the pyramid's `rows`
/// `[B, L − L₀, Cvae]`, or `[B, L, Cvae]` with rows for the first tokens (which are not read).
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn patch_embed_forward<T: Factor>(
    x: &mut Buffer<T>,
    text: &Buffer<T>,
    rows: &Buffer<T>,
    parameters: &DevicePatchEmbedParameters<'_, T>,
    sequence: &SequenceLevels,
) -> Result<()> {
    let DevicePatchEmbedParameters { weight, bias, start, level, position } = *parameters;
    let (tokens, first, channels) = (sequence.tokens(), sequence.first(), bias.len());
    if channels == 0 || !text.len().is_multiple_of(channels) || !weight.len().is_multiple_of(channels) {
        return Err(Error::shape(
            OP,
            format!(
                "a text of {} and a weight of {} elements for {channels} channels",
                text.len(),
                weight.len()
            ),
        ));
    }
    let (batch, depth) = (text.len() / channels, weight.len() / channels);
    let given = tokens - first;
    let skip = if first > 0 && rows.len() == batch * tokens * depth { first } else { 0 };
    rows.expect_len(OP, "the pyramid", batch * (given + skip) * depth)?;
    x.expect_len(OP, "the sequence", batch * tokens * channels)?;
    // Without first tokens, as when sampling later scales, the start embedding is not read.
    if first > 0 {
        start.expect_len(OP, "the start", first * channels)?;
    }
    if let Some(level) = level {
        level.expect_len(OP, "the level table", sequence.count() * channels)?;
    }
    if let Some(position) = position {
        position.expect_len(OP, "the positions", tokens * channels)?;
    }
    if x.is_empty() {
        return Ok(());
    }
    let tensor = T::SUFFIX != "f32" && channels.is_multiple_of(64) && matches!(depth, 32 | 64);
    let [columns, tile, samples] = if tensor { TENSOR } else { PLAIN };
    let kernel = if tensor {
        Kernel::new(OP, &format!("patch_embed_forward_{}_{depth}", T::SUFFIX))
    } else {
        Kernel::of::<T>(OP, "patch_embed_forward")
    };
    let grid = [blocks(OP, channels, columns)?, 1 + blocks(OP, given, tile)?, blocks(OP, batch, samples)?];
    let optional = |buffer: Option<&Buffer<f32>>| buffer.map_or(Argument::null::<f32>(), Buffer::read);
    let arguments = [
        x.write(),
        text.read(),
        rows.read(),
        weight.read(),
        bias.read(),
        start.read(),
        optional(level),
        optional(position),
        sequence.levels().read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "tokens", first)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::U32(size(OP, "channels of a code", depth)?),
        Argument::U32(size(OP, "rows", given + skip)?),
        Argument::U32(size(OP, "rows", skip)?),
        Argument::U32(size(OP, "samples", batch)?),
    ];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; x is borrowed mutably; the sizes were compared above, and the levels are
    // below their number by construction; all buffers live, and are freed in stream order.
    unsafe { x.device().launch(&kernel, &launch, &arguments) }
}

/// The sums of `d_x` `[B, L, C]` over the tokens per sample and level, `sums` `[B, S, C]`, and the text's gradient
/// `d_text` `[B, C]`, which is that of level 0, in `T`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn patch_embed_backward<T: Factor>(
    sums: &mut Buffer<f32>,
    d_text: Option<&mut Buffer<T>>,
    d_x: &Buffer<T>,
    sequence: &SequenceLevels,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    let (tokens, levels) = (sequence.tokens(), sequence.count());
    d_x.expect_len(OP, "the gradient of the sequence", batch * tokens * channels)?;
    sums.expect_len(OP, "the sums", batch * levels * channels)?;
    if let Some(d_text) = &d_text {
        d_text.expect_len(OP, "the gradient of the text", batch * channels)?;
    }
    if sums.is_empty() {
        return Ok(());
    }
    let grid = [
        blocks(OP, channels, 32 * 16 / size_of::<T>())?,
        size(OP, "levels", levels)?,
        size(OP, "samples", batch)?,
    ];
    let arguments = [
        sums.write(),
        d_text.map_or(Argument::null::<T>(), Buffer::write),
        d_x.read(),
        sequence.starts().read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let launch = Launch { grid, block: [256, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; the results are borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { d_x.device().launch(&Kernel::of::<T>(OP, "patch_embed_backward"), &launch, &arguments) }
}

/// The per-sample gradient of the projection's bias, `d_bias` `[B, C]`, from the `sums` `[B, S, C]` of
/// [`patch_embed_backward`].
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn patch_embed_backward_bias(
    d_bias: &mut Buffer<f32>,
    sums: &Buffer<f32>,
    sequence: &SequenceLevels,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    let levels = sequence.count();
    d_bias.expect_len(OP, "the gradient of the bias", batch * channels)?;
    sums.expect_len(OP, "the sums", batch * levels * channels)?;
    if d_bias.is_empty() {
        return Ok(());
    }
    let grid = [blocks(OP, channels, THREADS as usize)?, size(OP, "samples", batch)?, 1];
    let arguments = [
        d_bias.write(),
        sums.read(),
        Argument::U32(size(OP, "levels", levels)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; d_bias is borrowed mutably; the sizes were compared above; both live,
    // and are freed in stream order.
    unsafe { sums.device().launch(&Kernel::new(OP, "patch_embed_bias"), &launch, &arguments) }
}

/// The gradient of the projection, `d_weight` `[C, Cvae]`, from `d_x` `[B, L, C]` and the rows `[B, L, Cvae]`, with
/// zeros for the first tokens. With `accumulate` the result is added to `d_weight`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn patch_embed_backward_weight<T: Factor>(
    d_weight: &mut Buffer<f32>,
    d_x: &Buffer<T>,
    rows: &Buffer<T>,
    channels: usize,
    accumulate: bool,
) -> Result<()> {
    if channels == 0 || !d_x.len().is_multiple_of(channels) || !d_weight.len().is_multiple_of(channels) {
        return Err(Error::shape(
            OP,
            format!("{} and {} elements for {channels} channels", d_x.len(), d_weight.len()),
        ));
    }
    let sizes = [channels, d_weight.len() / channels, d_x.len() / channels];
    let beta = if accumulate { 1.0 } else { 0.0 };
    d_x.device().product(d_weight, sizes, (d_x, true), (rows, false), None, 1.0, beta)
}
