//! Launchers for `kernels/activation.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use super::Activation;
use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "activation";
const THREADS: u32 = 256;

impl Activation {
    /// Stem of the kernel names.
    fn stem(self) -> &'static str {
        match self {
            Self::GeluTanh => "gelu_tanh",
            Self::GeluErf => "gelu_erf",
            Self::QuickGelu => "quick_gelu",
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
        }
    }
}

fn check<T: Factor>(x: &Buffer<T>, bias: Option<&Buffer<f32>>, channels: usize) -> Result<()> {
    if channels == 0 || !x.len().is_multiple_of(channels) {
        return Err(Error::shape(OP, format!("{} elements are not rows of {channels}", x.len())));
    }
    bias.map_or(Ok(()), |bias| bias.expect_len(OP, "the bias", channels))
}

fn launch<T: Factor>(count: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks(OP, count, THREADS as usize * 16 / size_of::<T>())?, THREADS))
}

/// `y = f(x + bias)` over rows of `channels`, `[R, C]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn activation_forward<T: Factor>(
    kind: Activation,
    y: &mut Buffer<T>,
    x: &Buffer<T>,
    bias: Option<&Buffer<f32>>,
    channels: usize,
) -> Result<()> {
    check(x, bias, channels)?;
    y.expect_len(OP, "the result", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        y.write(),
        x.read(),
        bias.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::U64(x.len() as u64),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let kernel = Kernel::of::<T>(OP, &format!("{}_forward", kind.stem()));
    // SAFETY: arguments in the kernel's order; y is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in stream order.
    unsafe { x.device().launch(&kernel, &launch::<T>(x.len())?, &arguments) }
}

/// `dx = dy·f'(x + bias)`, `[R, C]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn activation_backward<T: Factor>(
    kind: Activation,
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    bias: Option<&Buffer<f32>>,
    channels: usize,
) -> Result<()> {
    check(x, bias, channels)?;
    dx.expect_len(OP, "the gradient of the input", x.len())?;
    dy.expect_len(OP, "the gradient of the result", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [
        dx.write(),
        dy.read(),
        x.read(),
        bias.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::U64(x.len() as u64),
        Argument::U32(size(OP, "channels", channels)?),
    ];
    let kernel = Kernel::of::<T>(OP, &format!("{}_backward", kind.stem()));
    // SAFETY: arguments in the kernel's order; dx is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in stream order.
    unsafe { x.device().launch(&kernel, &launch::<T>(x.len())?, &arguments) }
}
