//! Launches of `kernels/residual.cu`. The residual that goes on into a layer norm is
//! [`residual_layer_norm_forward`](crate::engine::ops::layer_norm::cuda::residual_layer_norm_forward).
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        autograd::contributions::cuda::{scale_samples, sum_samples},
        cuda::{Argument, Buffer, Kernel, device::Factor},
        ops::each_launch,
    },
    error::{Error, Result},
};

const OP: &str = "residual";

/// The branch's gradient, `d_branch = keep_i·d`, `[B, ..]`; that of `x` is `d` itself. Without `d`, in place.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn residual_backward<T: Factor>(
    d_branch: &mut Buffer<T>,
    d: Option<&Buffer<T>>,
    keep: &Buffer<f32>,
) -> Result<()> {
    scale_samples(d_branch, d, keep)
}

/// `y_i = x_i + addend` for every sample `i`: `y`, `x` `[B, N]`, `addend` `[N]`. Without `x`, `y` itself is added to.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn add_to_all<T: Factor>(y: &mut Buffer<T>, x: Option<&Buffer<T>>, addend: &Buffer<T>) -> Result<()> {
    let share = addend.len();
    if share == 0 || !y.len().is_multiple_of(share) {
        return Err(Error::shape("add_to_all", format!("{} numbers are not samples of {share}", y.len())));
    }
    if let Some(x) = x {
        x.expect_len("add_to_all", "x", y.len())?;
    }
    if y.is_empty() {
        return Ok(());
    }
    let launch = each_launch::<T>("add_to_all", y.len() / share, share)?;
    let arguments =
        [y.write(), x.map_or_else(|| y.read(), Buffer::read), addend.read(), Argument::U64(share as u64)];
    // SAFETY: arguments in the kernel's order; y is borrowed mutably, and each number of it is read only by the thread
    // that writes it; the sizes were compared above; all buffers live, and are freed in the order of the work.
    unsafe { addend.device().launch(&Kernel::of::<T>(OP, "add_to_all"), &launch, &arguments) }
}

/// The gradient of [`add_to_all`]'s addend `[N]`: the sum of `d` `[B, N]` over the samples.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn add_to_all_backward<T: Factor>(d_addend: &mut Buffer<T>, d: &Buffer<T>) -> Result<()> {
    let share = d_addend.len();
    if share == 0 || !d.len().is_multiple_of(share) {
        return Err(Error::shape("add_to_all", format!("{} numbers are not samples of {share}", d.len())));
    }
    sum_samples(d_addend, d, None, share, false)
}

/// The first sample of a batch: the first numbers of `x`, as many as `first` holds.
///
/// # Errors
/// If `x` holds fewer, or the device fails.
pub fn first_sample_forward<T: Factor>(first: &mut Buffer<T>, x: &Buffer<T>) -> Result<()> {
    if first.len() > x.len() {
        return Err(Error::shape("first_sample", format!("{} numbers of {}", first.len(), x.len())));
    }
    first_numbers(first, x)
}

/// The gradient of [`first_sample_forward`]: `d_first` and zeros after it.
///
/// # Errors
/// If `dx` holds fewer numbers than `d_first`, or the device fails.
pub fn first_sample_backward<T: Factor>(dx: &mut Buffer<T>, d_first: &Buffer<T>) -> Result<()> {
    if d_first.len() > dx.len() {
        return Err(Error::shape("first_sample", format!("{} numbers of {}", d_first.len(), dx.len())));
    }
    first_numbers(dx, d_first)
}

fn first_numbers<T: Factor>(to: &mut Buffer<T>, from: &Buffer<T>) -> Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let launch = each_launch::<T>("first_sample", 1, to.len())?;
    let arguments =
        [to.write(), from.read(), Argument::U64(to.len() as u64), Argument::U64(from.len() as u64)];
    // SAFETY: (T *to, const T *from, count, given), each buffer with its own length; `to` is borrowed mutably; both live,
    // and are freed in the order of the work.
    unsafe { from.device().launch(&Kernel::of::<T>(OP, "first_numbers"), &launch, &arguments) }
}
