//! Launchers for `kernels/group_norm.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "group_norm";
const THREADS: u32 = 256;
/// Groups per block of the statistics, one warp each.
const GROUPS_PER_BLOCK: usize = 8;
/// Maximum number of parts in which the pixels of a sample are summed, and minimum pixels per part.
const PARTS: usize = 256;
const PIXELS: usize = 64;

/// Parameters of group norms.
#[derive(Clone, Copy, Debug)]
pub struct DeviceGroupNorm<'a> {
    /// Number of groups.
    pub groups: usize,
    /// `[C]`
    pub scale: &'a Buffer<f32>,
    /// `[C]`
    pub shift: &'a Buffer<f32>,
    /// ε
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

fn launch(device: &Device, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(kernel, launch, arguments) }
}

/// Normalizes `x` `[B, P, C]` into `y`. `C` is a multiple of the groups and of 4.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn group_norm(
    y: &mut Buffer<f32>,
    x: &Buffer<f32>,
    samples: usize,
    norm: &DeviceGroupNorm<'_>,
) -> Result<()> {
    let DeviceGroupNorm { groups, scale, shift, epsilon, silu } = *norm;
    let channels = scale.len();
    let fits = groups > 0
        && channels > 0
        && channels.is_multiple_of(groups)
        && channels.is_multiple_of(4)
        && shift.len() == channels
        && samples > 0
        && !x.is_empty()
        && x.len().is_multiple_of(samples * channels);
    if !fits {
        return Err(Error::shape(
            OP,
            format!(
                "{} elements are not {samples} maps of {channels} channels (a multiple of 4) in {groups} groups",
                x.len()
            ),
        ));
    }
    y.expect_len(OP, "the result", x.len())?;
    let device = x.device();
    let pixels = x.len() / samples / channels;
    let whole = |value: usize| -> Result<Argument> { Ok(Argument::U32(size(OP, "pixels", value)?)) };
    let sizes = [whole(pixels)?, whole(channels)?, whole(groups)?];
    let each = pixels.div_ceil(PARTS).max(PIXELS);
    let parts = pixels.div_ceil(each);
    let mut partial = device.uninitialized::<f32>(samples * parts * groups * 2)?;
    let packs = channels / (16 / size_of::<f32>());
    let lanes = (THREADS as usize / packs).max(1);
    let sums = Launch {
        grid: [size(OP, "parts", parts)?, size(OP, "samples", samples)?, 1],
        block: [THREADS, 1, 1],
        shared_bytes: size(OP, "bytes", lanes * channels * 2 * size_of::<f32>())?,
    };
    let arguments = [&[partial.write(), x.read()], &sizes[..], &[whole(each)?]].concat();
    launch(device, &Kernel::of::<f32>(OP, "group_norm_sums"), &sums, &arguments)?;

    let mut statistics = device.uninitialized::<f32>(samples * groups * 2)?;
    let rest = [whole(samples)?, whole(parts)?, Argument::F32(epsilon)];
    let arguments = [&[statistics.write(), partial.read(), x.read()], &sizes[..], &rest].concat();
    let warps = Launch::linear(blocks(OP, samples * groups, GROUPS_PER_BLOCK)?, THREADS);
    launch(device, &Kernel::of::<f32>(OP, "group_norm_statistics"), &warps, &arguments)?;

    let buffers = [y.write(), x.read(), statistics.read(), scale.read(), shift.read()];
    let arguments = [&buffers[..], &sizes].concat();
    let share = THREADS as usize * 16 / size_of::<f32>();
    let apply = Launch {
        grid: [blocks(OP, pixels * channels, share)?, size(OP, "samples", samples)?, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    };
    let name = if silu { "group_norm_silu" } else { "group_norm_plain" };
    launch(device, &Kernel::of::<f32>(OP, name), &apply, &arguments)
}
