//! Launches of `kernels/gelu.cu`.
#![expect(unsafe_code, reason = "kernels are launched here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const THREADS: u32 = 256;
/// Columns a block of a sum.
const COLUMNS: usize = 32;
/// Rows that one block of a sum's first step adds.
const ROWS_A_PART: usize = 512;

fn check<T: Factor>(x: &Buffer<T>, bias: Option<&Buffer<f32>>, channels: usize) -> Result<()> {
    if channels == 0 || !x.len().is_multiple_of(channels) {
        return Err(Error::shape("gelu", format!("{} numbers are not rows of {channels}", x.len())));
    }
    bias.map_or(Ok(()), |bias| bias.expect_len("gelu", "the bias", channels))
}

fn launch<T: Factor>(count: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks("gelu", count, THREADS as usize * 16 / size_of::<T>())?, THREADS))
}

fn bias_argument(bias: Option<&Buffer<f32>>) -> Argument {
    bias.map_or(Argument::null::<f32>(), Buffer::read)
}

/// `y = gelu(x + bias)` over rows of `channels`, the tanh form.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn gelu_forward<T: Factor>(
    y: &mut Buffer<T>,
    x: &Buffer<T>,
    bias: Option<&Buffer<f32>>,
    channels: usize,
) -> Result<()> {
    check(x, bias, channels)?;
    y.expect_len("gelu", "the result", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        y.write(),
        x.read(),
        bias_argument(bias),
        Argument::U64(x.len() as u64),
        Argument::U32(size("gelu", "channels", channels)?),
    ];
    // SAFETY: arguments in the kernel's order; y is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in the order of the work.
    unsafe { x.device().launch(&Kernel::of::<T>("gelu", "gelu_forward"), &launch::<T>(x.len())?, &arguments) }
}

/// `dx = dy·gelu'(x + bias)`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn gelu_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    bias: Option<&Buffer<f32>>,
    channels: usize,
) -> Result<()> {
    check(x, bias, channels)?;
    dx.expect_len("gelu", "the gradient of the input", x.len())?;
    dy.expect_len("gelu", "the gradient of the result", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        dx.write(),
        dy.read(),
        x.read(),
        bias_argument(bias),
        Argument::U64(x.len() as u64),
        Argument::U32(size("gelu", "channels", channels)?),
    ];
    // SAFETY: arguments in the kernel's order; dx is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in the order of the work.
    unsafe {
        x.device().launch(&Kernel::of::<T>("gelu", "gelu_backward"), &launch::<T>(x.len())?, &arguments)
    }
}

/// The sum over the rows of `d` `[R, C]`: the gradient of a bias, `sums` `[C]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn column_sum<T: Factor>(sums: &mut Buffer<f32>, d: &Buffer<T>) -> Result<()> {
    let channels = sums.len();
    if channels == 0 || d.is_empty() || !d.len().is_multiple_of(channels) {
        return Err(Error::shape("column_sum", format!("{} numbers are not rows of {channels}", d.len())));
    }
    let rows = d.len() / channels;
    if rows <= ROWS_A_PART {
        return sum_parts(sums, d, rows, 1);
    }
    let parts = rows.div_ceil(ROWS_A_PART);
    let mut partial = d.device().uninitialised(parts * channels)?;
    sum_parts(&mut partial, d, rows, parts)?;
    sum_parts(sums, &partial, parts, 1)
}

fn sum_parts<T: Factor>(sums: &mut Buffer<f32>, d: &Buffer<T>, rows: usize, parts: usize) -> Result<()> {
    let op = "column_sum";
    let channels = sums.len() / parts;
    let launch = Launch {
        grid: [blocks(op, channels, COLUMNS)?, size(op, "parts", parts)?, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    };
    let arguments = [
        sums.write(),
        d.read(),
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "channels", channels)?),
        Argument::U32(size(op, "rows", rows.div_ceil(parts))?),
    ];
    // SAFETY: arguments in the kernel's order; `sums` is borrowed mutably and holds `parts` rows; `d` holds `rows`; both
    // live, and are freed in the order of the work.
    unsafe { d.device().launch(&Kernel::of::<T>("gelu", op), &launch, &arguments) }
}
