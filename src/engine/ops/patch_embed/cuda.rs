//! Launches of `kernels/patch_embed.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "patch_embed";
const THREADS: u32 = 128;
/// Channels and tokens of a block, without tensor cores and with them.
const PLAIN: [usize; 2] = [128, 32];
const TENSOR: [usize; 2] = [256, 128];
/// Threads of a block of the backward.
const SUM_THREADS: u32 = 256;

/// What the sequence is made of; `B` samples of `L` tokens of which the first scale has `L₀`.
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbedInput<'a, T: Factor> {
    /// The projected text, `[B, C]`.
    pub text: &'a Buffer<T>,
    /// The pyramid, `[B, L − L₀, K]`, or `[B, L, K]` with anything for the first scale.
    pub rows: &'a Buffer<T>,
    /// `[C, K]`
    pub weight: &'a Buffer<T>,
    /// `[C]`
    pub bias: &'a Buffer<f32>,
    /// `[L₀, C]`
    pub start: &'a Buffer<f32>,
    /// `[S, C]`
    pub level: Option<&'a Buffer<f32>>,
    /// `[L, C]`
    pub position: Option<&'a Buffer<f32>>,
    /// The level of each token, `[L]`, each below `S`.
    pub levels: &'a Buffer<u32>,
}

/// The start of the sequence, `x` `[B, L, C]`, in one pass.
///
/// # Errors
/// If the sizes do not fit or the device fails. A level that there is no vector of is not seen here.
pub fn patch_embed_forward<T: Factor>(x: &mut Buffer<T>, input: &PatchEmbedInput<'_, T>) -> Result<()> {
    let PatchEmbedInput { text, rows, weight, bias, start, level, position, levels } = *input;
    let (channels, tokens) = (bias.len(), levels.len());
    if channels == 0 || tokens == 0 || text.is_empty() {
        return Err(Error::shape(OP, format!("{tokens} tokens of {channels} channels: none may be 0")));
    }
    let (batch, depth, first) = (text.len() / channels, weight.len() / channels, start.len() / channels);
    text.expect_len(OP, "the text", batch * channels)?;
    weight.expect_len(OP, "the weight", channels * depth)?;
    start.expect_len(OP, "the start", first * channels)?;
    x.expect_len(OP, "the sequence", batch * tokens * channels)?;
    if let Some(position) = position {
        position.expect_len(OP, "the positions", tokens * channels)?;
    }
    if level.is_some_and(|level| !level.len().is_multiple_of(channels)) || first > tokens || depth == 0 {
        return Err(Error::shape(OP, format!("{first} first tokens of {tokens}, rows of {depth}")));
    }
    let a_sample = rows.len() / (batch * depth);
    let skip = match a_sample {
        given if given == tokens => first,
        given if given + first == tokens => 0,
        given => {
            return Err(Error::shape(OP, format!("{given} rows after {first} do not make {tokens} tokens")));
        }
    };
    rows.expect_len(OP, "the pyramid", batch * a_sample * depth)?;
    let tensor = size_of::<T>() == 2 && [32, 64].contains(&depth) && channels.is_multiple_of(64);
    let (name, [columns, others]) = if tensor {
        (format!("patch_embed_forward_{}_{depth}", T::SUFFIX), TENSOR)
    } else {
        (format!("patch_embed_forward_{}", T::SUFFIX), PLAIN)
    };
    let optional = |table: Option<&Buffer<f32>>| table.map_or(Argument::null::<f32>(), |table| table.read());
    let arguments = [
        x.write(),
        text.read(),
        rows.read(),
        weight.read(),
        bias.read(),
        start.read(),
        optional(level),
        optional(position),
        levels.read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "tokens", first)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::U32(size(OP, "channels", depth)?),
        Argument::U32(size(OP, "rows", a_sample)?),
        Argument::U32(size(OP, "rows", skip)?),
    ];
    let grid = [
        blocks(OP, channels, columns)?,
        1 + blocks(OP, tokens - first, others)?,
        size(OP, "samples", batch)?,
    ];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; x is borrowed mutably; the sizes were compared above; all buffers live, and
    // are freed in the order of the work.
    unsafe { x.device().launch(&Kernel::new(OP, &name), &launch, &arguments) }
}

/// Sums of `d_x` `[B, L, C]` over the tokens of each level of each sample, `sums` `[B, S, C]`: the gradients of the level
/// vectors, and those of level 0 also that of the text, `d_text` `[B, C]`. Level `s` has the tokens
/// `starts[s]..starts[s + 1]`; the last start is `L`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn patch_embed_backward<T: Factor>(
    sums: &mut Buffer<f32>,
    d_text: Option<&mut Buffer<T>>,
    d_x: &Buffer<T>,
    starts: &Buffer<u32>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    let levels = starts.len().saturating_sub(1);
    d_x.expect_len(OP, "the gradient", batch * tokens * channels)?;
    sums.expect_len(OP, "the sums", batch * levels * channels)?;
    let d_text = match d_text {
        None => Argument::Write { address: 0, letter: T::LETTER },
        Some(d_text) => {
            d_text.expect_len(OP, "the gradient of the text", batch * channels)?;
            d_text.write()
        }
    };
    if sums.is_empty() {
        return Ok(());
    }
    let arguments = [
        sums.write(),
        d_text,
        d_x.read(),
        starts.read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let width = 32 * 16 / size_of::<T>();
    let grid = [blocks(OP, channels, width)?, size(OP, "levels", levels)?, size(OP, "samples", batch)?];
    let launch = Launch { grid, block: [SUM_THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; what it writes is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in the order of the work.
    unsafe { d_x.device().launch(&Kernel::of::<T>(OP, "patch_embed_backward"), &launch, &arguments) }
}

/// The bias's gradient of each sample, `d_bias` `[B, C]`: the sums of all levels but the first.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn patch_embed_bias(
    d_bias: &mut Buffer<f32>,
    sums: &Buffer<f32>,
    [levels, channels]: [usize; 2],
) -> Result<()> {
    if channels == 0 || levels == 0 || !d_bias.len().is_multiple_of(channels) {
        return Err(Error::shape(OP, format!("{} numbers are not rows of {channels}", d_bias.len())));
    }
    let batch = d_bias.len() / channels;
    sums.expect_len(OP, "the sums", batch * levels * channels)?;
    if batch == 0 {
        return Ok(());
    }
    let arguments = [
        d_bias.write(),
        sums.read(),
        Argument::U32(size(OP, "levels", levels)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let grid = [blocks(OP, channels, THREADS as usize)?, size(OP, "samples", batch)?, 1];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; the gradient is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in the order of the work.
    unsafe { sums.device().launch(&Kernel::new(OP, "patch_embed_bias"), &launch, &arguments) }
}
