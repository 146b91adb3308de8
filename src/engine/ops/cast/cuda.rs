//! Launchers for `kernels/cast.cu`.
#![expect(unsafe_code, reason = "kernels are launched here")]

use crate::{
    engine::{
        cuda::{Buffer, Kernel, Launch, device::Factor},
        ops::blocks,
    },
    error::Result,
};

const THREADS: u32 = 256;
/// Elements per block.
const SHARE: usize = 256 * 8;

fn cast<To: Factor, From: Factor>(to: &mut Buffer<To>, from: &Buffer<From>) -> Result<()> {
    to.expect_len("cast", "the result", from.len())?;
    if from.is_empty() {
        return Ok(());
    }
    let kernel = Kernel::new("cast", &format!("cast_{}_to_{}", From::SUFFIX, To::SUFFIX));
    let launch = Launch::linear(blocks("cast", from.len(), SHARE)?, THREADS);
    let arguments = [to.write(), from.read(), crate::engine::cuda::Argument::U64(from.len() as u64)];
    // SAFETY: (T *to, const T *from, count), both of `count` elements; `to` is borrowed mutably; both live, and are
    // freed in stream order.
    unsafe { from.device().launch(&kernel, &launch, &arguments) }
}

/// Rounds f32 to a 16-bit type, to nearest even.
///
/// # Errors
/// If the lengths differ or the device fails.
pub fn narrow<T: Factor>(to: &mut Buffer<T>, from: &Buffer<f32>) -> Result<()> {
    cast(to, from)
}

/// Converts a 16-bit type to f32, exactly.
///
/// # Errors
/// If the lengths differ or the device fails.
pub fn widen<T: Factor>(to: &mut Buffer<f32>, from: &Buffer<T>) -> Result<()> {
    cast(to, from)
}
