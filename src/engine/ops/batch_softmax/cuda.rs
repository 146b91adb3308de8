//! Launchers for `kernels/batch_softmax.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::size,
    },
    error::{Error, Result},
};

const OP: &str = "batch_softmax";
const THREADS: u32 = 256;

fn launch(device: &Device, name: &str, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(&Kernel::new(OP, name), launch, arguments) }
}

/// Softmax of `x / temperature` over the batch; `y`, `x` `[B]`.
///
/// # Errors
/// If the sizes do not match, the temperature is not positive, or the device fails.
pub fn batch_softmax_forward<T: Factor>(y: &mut Buffer<T>, x: &Buffer<T>, temperature: f32) -> Result<()> {
    y.expect_len(OP, "the weights", x.len())?;
    check_temperature(temperature)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments =
        [y.write(), x.read(), Argument::U32(size(OP, "samples", x.len())?), Argument::F32(temperature)];
    let name = format!("batch_softmax_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(1, THREADS), &arguments)
}

/// The gradient of [`batch_softmax_forward`], given its result `y` `[B]`.
///
/// # Errors
/// If the sizes do not match, the temperature is not positive, or the device fails.
pub fn batch_softmax_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    y: &Buffer<T>,
    temperature: f32,
) -> Result<()> {
    dx.expect_len(OP, "the gradient of x", y.len())?;
    dy.expect_len(OP, "the gradient of the weights", y.len())?;
    check_temperature(temperature)?;
    if y.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", y.len())?);
    let arguments = [dx.write(), dy.read(), y.read(), count, Argument::F32(temperature)];
    let name = format!("batch_softmax_backward_{}", T::SUFFIX);
    launch(y.device(), &name, &Launch::linear(1, THREADS), &arguments)
}

fn check_temperature(temperature: f32) -> Result<()> {
    if temperature > 0.0 {
        return Ok(());
    }
    Err(Error::argument(format!("the temperature of a softmax must be positive, not {temperature}")))
}
