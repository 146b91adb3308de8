//! Launchers for `kernels/add_to_all.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        autograd::contributions::cuda::sum_samples,
        cuda::{Argument, Buffer, Kernel, device::Factor},
        ops::each_launch,
    },
    error::{Error, Result},
};

const OP: &str = "add_to_all";

/// `y_i = x_i + addend` for every sample `i`: `y`, `x` `[B, N]`, `addend` `[N]`. Without `x`, in place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn add_to_all<T: Factor>(y: &mut Buffer<T>, x: Option<&Buffer<T>>, addend: &Buffer<T>) -> Result<()> {
    let share = addend.len();
    if share == 0 || !y.len().is_multiple_of(share) {
        return Err(Error::shape(OP, format!("{} elements are not samples of {share}", y.len())));
    }
    if let Some(x) = x {
        x.expect_len(OP, "x", y.len())?;
    }
    if y.is_empty() {
        return Ok(());
    }
    let launch = each_launch::<T>(OP, y.len() / share, share)?;
    let arguments =
        [y.write(), x.map_or_else(|| y.read(), Buffer::read), addend.read(), Argument::U64(share as u64)];
    // SAFETY: arguments in the kernel's order; y is borrowed mutably, and each element of it is read only by the thread
    // that writes it; the sizes were compared above; all buffers live, and are freed in stream order.
    unsafe { addend.device().launch(&Kernel::of::<T>(OP, OP), &launch, &arguments) }
}

/// The gradient of [`add_to_all`]'s addend `[N]`: the sum of `d` `[B, N]` over the samples.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn add_to_all_backward<T: Factor>(d_addend: &mut Buffer<T>, d: &Buffer<T>) -> Result<()> {
    let share = d_addend.len();
    if share == 0 || !d.len().is_multiple_of(share) {
        return Err(Error::shape(OP, format!("{} elements are not samples of {share}", d.len())));
    }
    sum_samples(d_addend, d, None, share, false)
}
