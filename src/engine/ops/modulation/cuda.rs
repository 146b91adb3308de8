//! Launches of `kernels/modulation.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const FILE: &str = "modulation";
/// Rows a block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;
/// Channels a block of the gate's gradient.
const COLUMNS: u32 = 128;

/// Where each level's gate is in a buffer of parts: row `s` of `stride` numbers, from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatePlace {
    /// Numbers from one level's row to the next.
    pub stride: usize,
    /// Where in a row the gate is.
    pub at: usize,
}

impl GatePlace {
    fn check(self, op: &'static str, parts: usize, levels: usize, channels: usize) -> Result<()> {
        let Self { stride, at } = self;
        if at + channels <= stride && parts == levels * stride {
            return Ok(());
        }
        Err(Error::shape(
            op,
            format!("{parts} numbers are not {levels} rows of {stride} with {channels} from {at}"),
        ))
    }
}

/// `y = x·gate` by the level of each token: `y`, `x` `[B, L, C]`, `parts` `[S, stride]`, `levels` `[L]`. The gradient of `x`
/// is the same of the gradient of `y`.
///
/// # Errors
/// If the sizes do not fit or the device fails. A level that there is no gate of is not seen here.
pub fn gate<T: Factor>(
    y: &mut Buffer<T>,
    x: &Buffer<T>,
    parts: &Buffer<f32>,
    place: GatePlace,
    levels: &Buffer<u32>,
    channels: usize,
) -> Result<()> {
    let op = "gate";
    y.expect_len(op, "the result", x.len())?;
    if channels == 0 || levels.is_empty() || !x.len().is_multiple_of(channels * levels.len()) {
        let tokens = levels.len();
        return Err(Error::shape(op, format!("{} numbers are not {tokens} tokens of {channels}", x.len())));
    }
    place.check(op, parts.len(), parts.len() / place.stride.max(1), channels)?;
    let rows = x.len() / channels;
    if rows == 0 {
        return Ok(());
    }
    let gates =
        Argument::Read { address: parts.address() + (place.at * size_of::<f32>()) as u64, letter: b'f' };
    let arguments = [
        y.write(),
        x.read(),
        gates,
        levels.read(),
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "channels", channels)?),
        Argument::U32(size(op, "tokens", levels.len())?),
        Argument::U32(size(op, "numbers", place.stride)?),
    ];
    let launch = Launch::linear(blocks(op, rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; y is borrowed mutably; the sizes were compared above; all buffers live, and
    // are freed in the order of the work.
    unsafe { x.device().launch(&Kernel::of::<T>(FILE, op), &launch, &arguments) }
}

/// The gradient of the gate for each sample and level: `d_parts` `[B, S, stride]`, of which all other numbers stay as they
/// are. Level `s` has the tokens `starts[s]..starts[s + 1]`; the last start is the number of tokens.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn gate_backward<T: Factor>(
    d_parts: &mut Buffer<f32>,
    place: GatePlace,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    starts: &Buffer<u32>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    let op = "gate_backward";
    let levels = starts.len().saturating_sub(1);
    x.expect_len(op, "x", batch * tokens * channels)?;
    dy.expect_len(op, "the gradient of the result", x.len())?;
    place.check(op, d_parts.len(), batch * levels, channels)?;
    if x.is_empty() {
        return Ok(());
    }
    let to =
        Argument::Write { address: d_parts.address() + (place.at * size_of::<f32>()) as u64, letter: b'f' };
    let arguments = [
        to,
        dy.read(),
        x.read(),
        starts.read(),
        Argument::U32(size(op, "channels", channels)?),
        Argument::U32(size(op, "tokens", tokens)?),
        Argument::U32(size(op, "numbers", place.stride)?),
    ];
    let grid =
        [blocks(op, channels, COLUMNS as usize)?, size(op, "levels", levels)?, size(op, "samples", batch)?];
    let launch = Launch { grid, block: [COLUMNS, 1, 1], shared_bytes: 0 };
    // SAFETY: arguments in the kernel's order; the gradient is borrowed mutably; the sizes were compared above; all buffers
    // live, and are freed in the order of the work.
    unsafe { x.device().launch(&Kernel::of::<T>(FILE, op), &launch, &arguments) }
}
