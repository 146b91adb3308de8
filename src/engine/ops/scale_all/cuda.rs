//! Launchers for `kernels/scale_all.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::{each_launch, size},
    },
    error::Result,
};

const OP: &str = "scale_all";
const THREADS: u32 = 256;

fn launch(device: &Device, name: &str, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(&Kernel::new(OP, name), launch, arguments) }
}

/// `y = x·scale` with the scalar `scale` `[1, 1]`; `y`, `x` `[B, 1]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn scale_all_forward<T: Factor>(y: &mut Buffer<T>, x: &Buffer<T>, scale: &Buffer<T>) -> Result<()> {
    y.expect_len(OP, "the result", x.len())?;
    scale.expect_len(OP, "the scale", 1)?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [y.write(), x.read(), scale.read(), Argument::U64(x.len() as u64)];
    let name = format!("scale_all_forward_{}", T::SUFFIX);
    launch(x.device(), &name, &each_launch::<T>(OP, 1, x.len())?, &arguments)
}

/// The gradients of [`scale_all_forward`]: `dx` `[B, 1]` and `d_scale` `[1, 1]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn scale_all_backward<T: Factor>(
    dx: &mut Buffer<T>,
    d_scale: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    scale: &Buffer<T>,
) -> Result<()> {
    dx.expect_len(OP, "the gradient of x", x.len())?;
    dy.expect_len(OP, "the gradient of the result", x.len())?;
    scale.expect_len(OP, "the scale", 1)?;
    d_scale.expect_len(OP, "the gradient of the scale", 1)?;
    let count = Argument::U32(size(OP, "numbers", x.len())?);
    let arguments = [dx.write(), d_scale.write(), dy.read(), x.read(), scale.read(), count];
    let name = format!("scale_all_backward_{}", T::SUFFIX);
    launch(x.device(), &name, &Launch::linear(1, THREADS), &arguments)
}
