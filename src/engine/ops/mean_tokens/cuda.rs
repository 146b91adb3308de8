//! Launchers for `kernels/mean_tokens.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "mean_tokens";
const THREADS: u32 = 256;
/// Channels per block of the forward.
const COLUMNS: usize = 32;
/// Tokens per block of the backward.
const TOKENS_PER_PART: usize = 64;

fn launch(device: &Device, name: &str, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(&Kernel::new(OP, name), launch, arguments) }
}

/// The mean over tokens: `x` `[B, L, C]` to `y` `[B, C]`, in the same dtype or in f32.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn mean_tokens_forward<P: Factor, T: Factor>(
    y: &mut Buffer<P>,
    x: &Buffer<T>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    x.expect_len(OP, "x", batch * tokens * channels)?;
    y.expect_len(OP, "the mean", batch * channels)?;
    if x.is_empty() {
        return Err(Error::shape(OP, "cannot take the mean over zero tokens"));
    }
    let grid = [blocks(OP, channels, COLUMNS)?, size(OP, "samples", batch)?, 1];
    let arguments = [
        y.write(),
        x.read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let name = format!("mean_tokens_forward_{}_to_{}", T::SUFFIX, P::SUFFIX);
    launch(x.device(), &name, &Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 }, &arguments)
}

/// The gradient of [`mean_tokens_forward`]: `dy` `[B, C]` to `dx` `[B, L, C]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn mean_tokens_backward<P: Factor, T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<P>,
    [batch, tokens, channels]: [usize; 3],
) -> Result<()> {
    dx.expect_len(OP, "the gradient of x", batch * tokens * channels)?;
    dy.expect_len(OP, "the gradient of the mean", batch * channels)?;
    if dx.is_empty() {
        return Ok(());
    }
    let grid = [
        blocks(OP, channels, THREADS as usize)?,
        size(OP, "samples", batch)?,
        blocks(OP, tokens, TOKENS_PER_PART)?,
    ];
    let arguments = [
        dx.write(),
        dy.read(),
        Argument::U32(size(OP, "tokens", tokens)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::U32(size(OP, "tokens", TOKENS_PER_PART)?),
    ];
    let name = format!("mean_tokens_backward_{}_to_{}", P::SUFFIX, T::SUFFIX);
    launch(dy.device(), &name, &Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 }, &arguments)
}
