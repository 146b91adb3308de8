//! Launchers for `kernels/affine_norm.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "affine_norm";
/// Rows per block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;

/// Normalizes the rows of `x` `[R, C]` into `y`: with a `bias` `[C]`, layer norm with `weight` `[C]`; without,
/// RMS norm with `weight`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn affine_norm(
    y: &mut Buffer<f32>,
    x: &Buffer<f32>,
    weight: &Buffer<f32>,
    bias: Option<&Buffer<f32>>,
    epsilon: f32,
) -> Result<()> {
    let channels = weight.len();
    if channels == 0 || !x.len().is_multiple_of(channels) {
        return Err(Error::shape(OP, format!("{} elements are not rows of {channels}", x.len())));
    }
    y.expect_len(OP, "the result", x.len())?;
    if let Some(bias) = bias {
        bias.expect_len(OP, "the bias", channels)?;
    }
    if x.is_empty() {
        return Ok(());
    }
    let rows = x.len() / channels;
    let arguments = [
        y.write(),
        x.read(),
        weight.read(),
        bias.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::U32(size(OP, "rows", rows)?),
        Argument::U32(size(OP, "channels", channels)?),
        Argument::F32(epsilon),
    ];
    let launch = Launch::linear(blocks(OP, rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; y is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in stream order.
    unsafe { x.device().launch(&Kernel::of::<f32>(OP, OP), &launch, &arguments) }
}
