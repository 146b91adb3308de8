//! Launchers for `kernels/multiply.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, device::Factor},
        ops::each_launch,
    },
    error::Result,
};

const OP: &str = "multiply";

/// Elementwise product `y = x·z`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn multiply<T: Factor>(y: &mut Buffer<T>, x: &Buffer<T>, z: &Buffer<T>) -> Result<()> {
    y.expect_len(OP, "the product", x.len())?;
    z.expect_len(OP, "a factor", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [y.write(), x.read(), z.read(), Argument::U64(x.len() as u64)];
    let launch = each_launch::<T>(OP, 1, x.len())?;
    // SAFETY: arguments in the kernel's order; y is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in stream order.
    unsafe { x.device().launch(&Kernel::of::<T>(OP, OP), &launch, &arguments) }
}
