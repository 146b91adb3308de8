//! Launchers for `kernels/batch_statistics.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "batch_statistics";
const THREADS: u32 = 256;

fn launch(device: &Device, name: &str, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(&Kernel::new(OP, name), launch, arguments) }
}

/// Mean and biased variance over the batch: `x` `[B, C]` to `y` `[1, 2C]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn batch_statistics_forward<T: Factor>(
    y: &mut Buffer<T>,
    x: &Buffer<T>,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    x.expect_len(OP, "x", batch * channels)?;
    y.expect_len(OP, "the statistics", 2 * channels)?;
    if x.is_empty() {
        return Err(Error::shape(OP, "cannot take the mean over zero samples"));
    }
    let arguments = [
        y.write(),
        x.read(),
        Argument::U32(size(OP, "samples", batch)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let name = format!("batch_statistics_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(blocks(OP, channels, THREADS as usize)?, THREADS), &arguments)
}

/// The gradient of [`batch_statistics_forward`]: `dy` `[1, 2C]` to `dx` `[B, C]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn batch_statistics_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    [batch, channels]: [usize; 2],
) -> Result<()> {
    x.expect_len(OP, "x", batch * channels)?;
    dx.expect_len(OP, "the gradient of x", x.len())?;
    dy.expect_len(OP, "the gradient of the statistics", 2 * channels)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        dx.write(),
        dy.read(),
        x.read(),
        Argument::U32(size(OP, "samples", batch)?),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let name = format!("batch_statistics_backward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(blocks(OP, channels, THREADS as usize)?, THREADS), &arguments)
}
