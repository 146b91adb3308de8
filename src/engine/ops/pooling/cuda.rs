//! Launches of `kernels/pooling.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::{blocks, each_launch, size},
    },
    error::{Error, Result},
};

const FILE: &str = "pooling";
const THREADS: u32 = 256;
/// Channels a block of the mean.
const COLUMNS: usize = 32;
/// Tokens a block of the mean's gradient.
const TOKENS_A_PART: usize = 64;

fn launch(device: &Device, name: &str, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each gives its kernel's arguments in order, has compared the sizes
    // of all buffers with those that the kernel is told, borrows mutably what is written, and the buffers are freed in
    // the order of the work.
    unsafe { device.launch(&Kernel::new(FILE, name), launch, arguments) }
}

/// The mean over tokens: `x` `[B, L, C]` to `y` `[B, C]`, in the same type or in f32.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn mean_tokens_forward<P: Factor, T: Factor>(
    y: &mut Buffer<P>,
    x: &Buffer<T>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    let op = "mean_tokens";
    x.expect_len(op, "x", batch * tokens * channels)?;
    y.expect_len(op, "the mean", batch * channels)?;
    if x.is_empty() {
        return Err(Error::shape(op, "there is nothing to take a mean of"));
    }
    let grid = [blocks(op, channels, COLUMNS)?, size(op, "samples", batch)?, 1];
    let arguments = [
        y.write(),
        x.read(),
        Argument::U32(size(op, "tokens", tokens)?),
        Argument::U32(size(op, "channels", channels)?),
    ];
    let name = format!("mean_tokens_forward_{}_to_{}", T::SUFFIX, P::SUFFIX);
    launch(x.device(), &name, &Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 }, &arguments)
}

/// The gradient of [`mean_tokens_forward`]: `dy` `[B, C]` to `dx` `[B, L, C]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn mean_tokens_backward<P: Factor, T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<P>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    let op = "mean_tokens";
    dx.expect_len(op, "the gradient of x", batch * tokens * channels)?;
    dy.expect_len(op, "the gradient of the mean", batch * channels)?;
    if dx.is_empty() {
        return Ok(());
    }
    let grid = [
        blocks(op, channels, THREADS as usize)?,
        size(op, "samples", batch)?,
        blocks(op, tokens, TOKENS_A_PART)?,
    ];
    let arguments = [
        dx.write(),
        dy.read(),
        Argument::U32(size(op, "tokens", tokens)?),
        Argument::U32(size(op, "channels", channels)?),
        Argument::U32(size(op, "tokens", TOKENS_A_PART)?),
    ];
    let name = format!("mean_tokens_backward_{}_to_{}", P::SUFFIX, T::SUFFIX);
    launch(dy.device(), &name, &Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 }, &arguments)
}

/// Mean and biased variance over the batch: `x` `[B, C]` to `y` `[1, 2C]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn batch_statistics_forward<T: Factor>(
    y: &mut Buffer<T>,
    x: &Buffer<T>,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    let op = "batch_statistics";
    x.expect_len(op, "x", batch * channels)?;
    y.expect_len(op, "the statistics", 2 * channels)?;
    if x.is_empty() {
        return Err(Error::shape(op, "there is nothing to take a mean of"));
    }
    let arguments = [
        y.write(),
        x.read(),
        Argument::U32(size(op, "samples", batch)?),
        Argument::U32(size(op, "channels", channels)?),
    ];
    let name = format!("batch_statistics_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(blocks(op, channels, THREADS as usize)?, THREADS), &arguments)
}

/// The gradient of [`batch_statistics_forward`]: `dy` `[1, 2C]` to `dx` `[B, C]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn batch_statistics_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    let op = "batch_statistics";
    x.expect_len(op, "x", batch * channels)?;
    dx.expect_len(op, "the gradient of x", x.len())?;
    dy.expect_len(op, "the gradient of the statistics", 2 * channels)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        dx.write(),
        dy.read(),
        x.read(),
        Argument::U32(size(op, "samples", batch)?),
        Argument::U32(size(op, "channels", channels)?),
    ];
    let name = format!("batch_statistics_backward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(blocks(op, channels, THREADS as usize)?, THREADS), &arguments)
}

/// Softmax of `x / temperature` over all numbers, the batch; `y`, `x` `[B]`.
///
/// # Errors
/// If the sizes do not fit, the temperature is not above 0, or the device fails.
pub fn batch_softmax_forward<T: Factor>(y: &mut Buffer<T>, x: &Buffer<T>, temperature: f32) -> Result<()> {
    let op = "batch_softmax";
    y.expect_len(op, "the weights", x.len())?;
    check_temperature(temperature)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments =
        [y.write(), x.read(), Argument::U32(size(op, "samples", x.len())?), Argument::F32(temperature)];
    let name = format!("batch_softmax_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(1, THREADS), &arguments)
}

/// The gradient of [`batch_softmax_forward`] from its result `y` `[B]`.
///
/// # Errors
/// If the sizes do not fit, the temperature is not above 0, or the device fails.
pub fn batch_softmax_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    y: &Buffer<T>,
    temperature: f32,
) -> Result<()> {
    let op = "batch_softmax";
    dx.expect_len(op, "the gradient of x", y.len())?;
    dy.expect_len(op, "the gradient of the weights", y.len())?;
    check_temperature(temperature)?;
    if y.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(op, "samples", y.len())?);
    let arguments = [dx.write(), dy.read(), y.read(), count, Argument::F32(temperature)];
    let name = format!("batch_softmax_backward_{}", T::SUFFIX);
    launch(y.device(), &name, &Launch::linear(1, THREADS), &arguments)
}

fn check_temperature(temperature: f32) -> Result<()> {
    if temperature > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("a softmax needs a temperature above 0, not {temperature}")))
}

/// `y = x·scale` with the single number `scale` `[1, 1]`; `y`, `x` `[B, 1]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn scale_all_forward<T: Factor>(y: &mut Buffer<T>, x: &Buffer<T>, scale: &Buffer<T>) -> Result<()> {
    let op = "scale_all";
    y.expect_len(op, "the result", x.len())?;
    scale.expect_len(op, "the scale", 1)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [y.write(), x.read(), scale.read(), Argument::U64(x.len() as u64)];
    let name = format!("scale_all_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &each_launch::<T>(op, 1, x.len())?, &arguments)
}

/// The gradients of [`scale_all_forward`]: `dx` `[B, 1]` and `d_scale` `[1, 1]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn scale_all_backward<T: Factor>(
    dx: &mut Buffer<T>,
    d_scale: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    scale: &Buffer<T>,
) -> Result<()> {
    let op = "scale_all";
    dx.expect_len(op, "the gradient of x", x.len())?;
    dy.expect_len(op, "the gradient of the result", x.len())?;
    scale.expect_len(op, "the scale", 1)?;
    d_scale.expect_len(op, "the gradient of the scale", 1)?;
    let count = Argument::U32(size(op, "numbers", x.len())?);
    let arguments = [dx.write(), d_scale.write(), dy.read(), x.read(), scale.read(), count];
    let name = format!("scale_all_backward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(1, THREADS), &arguments)
}
