//! Launchers for `kernels/first_sample.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, device::Factor},
        ops::each_launch,
    },
    error::{Error, Result},
};

const OP: &str = "first_sample";

/// The first sample of a batch: the first `first.len()` elements of `x`.
///
/// # Errors
/// If `x` is shorter, or the device fails.
pub fn first_sample_forward<T: Factor>(first: &mut Buffer<T>, x: &Buffer<T>) -> Result<()> {
    if first.len() > x.len() {
        return Err(Error::shape(OP, format!("{} elements of {}", first.len(), x.len())));
    }
    copied(first, x)
}

/// The gradient of [`first_sample_forward`]: `d_first` followed by zeros.
///
/// # Errors
/// If `dx` is shorter than `d_first`, or the device fails.
pub fn first_sample_backward<T: Factor>(dx: &mut Buffer<T>, d_first: &Buffer<T>) -> Result<()> {
    if d_first.len() > dx.len() {
        return Err(Error::shape(OP, format!("{} elements of {}", d_first.len(), dx.len())));
    }
    copied(dx, d_first)
}

fn copied<T: Factor>(to: &mut Buffer<T>, from: &Buffer<T>) -> Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let launch = each_launch::<T>(OP, 1, to.len())?;
    let arguments =
        [to.write(), from.read(), Argument::U64(to.len() as u64), Argument::U64(from.len() as u64)];
    // SAFETY: (T *to, const T *from, count, given), each buffer with its own length; `to` is borrowed mutably; both
    // live, and are freed in stream order.
    unsafe { from.device().launch(&Kernel::of::<T>(OP, OP), &launch, &arguments) }
}
