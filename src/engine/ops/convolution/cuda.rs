//! Launchers for `kernels/convolution.cu`, and the products with the filters: f32 convolutions on tensor cores.
//!
//! Tensor cores multiply 16-bit values and accumulate in f32. Every f32 is therefore split into 16-bit parts, each of
//! which is what the previous ones leave, rounded: `x = x₀ + x₁ (+ x₂)`, and `x · w = (x₀ + x₁) · w₀ + x₀ · w₁`,
//! without the products of parts that are too small to matter in f32. The types that implement [`SplitFloat`] can be
//! the parts.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use half::{bf16, f16};

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, Operand, Products, Target, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "convolution";
/// Windows per block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;
/// Maximum size of the windows written at once, in bytes: enough rows for every multiprocessor to have a tile of
/// the product, few enough to stay in the cache until they are multiplied.
const WINDOW_BYTES: usize = 64 << 20;
/// Filters are scaled by a power of two that brings the largest value near this one, so that small values and their
/// parts keep their precision in f16, too.
const LARGEST: f32 = 4096.0;

/// A type for the parts of an f32.
///
/// f16 in two parts has 22 bits, which is as accurate as f32 for values near 1, such as the output of norms; but values
/// beyond 65504 become infinite, which the result then shows. bf16 in three parts represents any value exactly, and
/// takes twice the work.
pub trait SplitFloat: Factor {
    /// Number of parts.
    const PARTS: usize;
}

impl SplitFloat for f16 {
    const PARTS: usize = 2;
}

impl SplitFloat for bf16 {
    const PARTS: usize = 3;
}

/// Position of an output pixel's window: at `(y, x)` it starts at `(stride·y − before, stride·x − before)` of the map,
/// each pixel of which is repeated `up` times in both dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// 1 or 2.
    up: usize,
    stride: usize,
    before: usize,
    /// Side length in pixels.
    size: usize,
}

impl Window {
    /// 1×1.
    pub const POINT: Self = Self { up: 1, stride: 1, before: 0, size: 1 };
    /// 3×3, same padding.
    pub const SAME: Self = Self { up: 1, stride: 1, before: 1, size: 3 };
    /// 3×3 with stride 2, padded on the right and below only.
    pub const HALVING: Self = Self { up: 1, stride: 2, before: 0, size: 3 };
    /// 3×3 with same padding, on the map upsampled by 2.
    pub const DOUBLING: Self = Self { up: 2, stride: 1, before: 1, size: 3 };

    /// The side of the output for a map of this side.
    pub fn side(self, side: usize) -> usize {
        side * self.up / self.stride
    }

    /// Pixels per window.
    fn taps(self) -> usize {
        self.size * self.size
    }
}

/// Maps of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// `[B, side, side, C]`, or with `planes` `[B, C, side, side]`.
    pub values: &'a Buffer<f32>,
    /// Side length in pixels.
    pub side: usize,
    /// Channels per pixel, `C`.
    pub channels: usize,
    /// Whether the layout is channels-first.
    pub planes: bool,
}

impl Maps<'_> {
    fn samples(&self) -> Result<usize> {
        let (len, map) = (self.values.len(), self.side * self.side * self.channels);
        if map == 0 || len == 0 || !len.is_multiple_of(map) {
            return Err(Error::shape(
                OP,
                format!(
                    "{len} elements are not maps of {0}×{0} pixels with {1} channels",
                    self.side, self.channels
                ),
            ));
        }
        Ok(len / map)
    }
}

/// 3×3 or 1×1 filters in a device's memory, split into parts.
#[derive(Debug)]
pub struct DeviceFilters<P: SplitFloat> {
    /// For every part `p` of the filters, `PARTS − p` copies of `[width, row]`: the elements of a window, zero-padded,
    /// by the outputs, zero-padded. One product thus multiplies the first `PARTS − p` parts of a row of windows with
    /// part `p`.
    weight: Buffer<P>,
    width: usize,
    row: usize,
    taps: usize,
    inputs: usize,
    outputs: usize,
    /// Undoes the scaling of the filters.
    alpha: f32,
}

/// The layout of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOrder {
    /// `[O, I, taps]`, as in PyTorch.
    OutputsFirst,
    /// `[taps, I, O]`
    OutputsLast,
}

impl FilterOrder {
    /// Strides of taps, inputs and outputs.
    fn strides(self, [taps, inputs, outputs]: [usize; 3]) -> [usize; 3] {
        match self {
            Self::OutputsFirst => [1, taps, taps * inputs],
            Self::OutputsLast => [inputs * outputs, outputs, 1],
        }
    }
}

impl<P: SplitFloat> DeviceFilters<P> {
    /// From filters with 9 taps or one; `sizes` are taps, `I` and `O`.
    ///
    /// # Errors
    /// If the sizes do not match, or there is not enough memory.
    pub fn new(device: &Device, filters: &[f32], order: FilterOrder, sizes: [usize; 3]) -> Result<Self> {
        let [taps, inputs, outputs] = sizes;
        if !matches!(taps, 1 | 9) || inputs == 0 || outputs == 0 || filters.len() != taps * inputs * outputs {
            return Err(Error::shape(
                OP,
                format!(
                    "{} elements are not filters of 9 taps or one (got {taps}) from {inputs} to {outputs} channels",
                    filters.len()
                ),
            ));
        }
        // Products read rows of 16 bytes best.
        let (width, row) = ((taps * inputs).next_multiple_of(8), outputs.next_multiple_of(8));
        // Positive floats are ordered like their bits.
        let bits = filters.iter().fold(0, |most, value| most.max(value.abs().to_bits()));
        let most = f32::from_bits(bits);
        let scale = if most > 0.0 {
            power_of_two((LARGEST / most).clamp(2f32.powi(-100), 2f32.powi(100)))
        } else {
            1.0
        };
        let mut weight = device.uninitialized::<P>(P::PARTS * (P::PARTS + 1) / 2 * width * row)?;
        let given = device.upload(filters)?;
        let mut arguments = vec![weight.write(), given.read(), Argument::F32(scale)];
        for value in [taps, inputs, outputs, width, row].into_iter().chain(order.strides(sizes)) {
            arguments.push(Argument::U32(size(OP, "numbers of filters", value)?));
        }
        let kernel = Kernel::of::<P>(OP, "convolution_filters");
        let launch = Launch::linear(blocks(OP, width * row, THREADS as usize)?, THREADS);
        // SAFETY: arguments in the kernel's order; the parts are borrowed mutably, and of the size that the kernel
        // writes; the length of the filters was checked above; both buffers live, and are freed in stream order.
        unsafe { device.launch(&kernel, &launch, &arguments) }?;
        Ok(Self { weight, width, row, taps, inputs, outputs, alpha: 1.0 / scale })
    }
}

/// The largest power of two not above a value, which is positive and normal.
fn power_of_two(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xff80_0000)
}

/// Writes the windows of `count` output pixels from `first` on, `[count, PARTS, width]`, to the start of `rows`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn windows<P: SplitFloat>(
    rows: &mut Buffer<P>,
    maps: &Maps<'_>,
    window: Window,
    [first, count, width]: [usize; 3],
) -> Result<()> {
    let side = window.side(maps.side);
    let pixels = maps.samples()? * side * side;
    if first + count > pixels
        || width < window.taps() * maps.channels
        || rows.len() < count * P::PARTS * width
    {
        return Err(Error::shape(
            OP,
            format!(
                "windows {first} to {} of {pixels}, {} parts of {width} for {} channels, into {} elements",
                first + count,
                P::PARTS,
                maps.channels,
                rows.len()
            ),
        ));
    }
    if count == 0 {
        return Ok(());
    }
    size(OP, "pixels", pixels)?;
    let whole = |value: usize| -> Result<Argument> { Ok(Argument::U32(size(OP, "pixels", value)?)) };
    let arguments = [
        rows.write(),
        maps.values.read(),
        whole(maps.side)?,
        whole(side)?,
        whole(maps.channels)?,
        whole(window.up)?,
        whole(window.stride)?,
        whole(window.before)?,
        whole(window.size)?,
        whole(first)?,
        whole(count)?,
        whole(width)?,
        Argument::U32(u32::from(maps.planes)),
    ];
    let kernel = Kernel::of::<P>(OP, "convolution_windows");
    let launch = Launch::linear(blocks(OP, count, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; the rows are borrowed mutably; the sizes were compared above, and all
    // pixels fit 32 bits; both buffers live, and are freed in stream order.
    unsafe { maps.values.device().launch(&kernel, &launch, &arguments) }
}

/// `y = conv(maps) + bias`, or `y += conv(maps) + bias` with `add`; `y` `[B, side', side', O]`, `bias` `[O]`.
///
/// The pixels are processed in equal portions, so that every product has the same size.
///
/// # Errors
/// If the sizes do not match, there is not enough memory, or the device fails.
pub fn convolve<P: SplitFloat>(
    y: &mut Buffer<f32>,
    maps: &Maps<'_>,
    filters: &DeviceFilters<P>,
    bias: &Buffer<f32>,
    window: Window,
    add: bool,
) -> Result<()> {
    let DeviceFilters { ref weight, width, row: filters_row, taps, inputs, outputs, alpha } = *filters;
    if inputs != maps.channels || taps != window.taps() {
        return Err(Error::shape(
            OP,
            format!("expected {taps} taps of {inputs} channels, got {} of {}", window.taps(), maps.channels),
        ));
    }
    let side = window.side(maps.side);
    let lines = maps.samples()? * side;
    y.expect_len(OP, "the result", lines * side * outputs)?;
    if lines == 0 {
        return Ok(());
    }
    let device = maps.values.device();
    let row = P::PARTS * width;
    let most = (WINDOW_BYTES / (side * row * size_of::<P>())).clamp(1, lines);
    let portion = (1..=most).rev().find(|portion| lines.is_multiple_of(*portion)).unwrap_or(1);
    let count = portion * side;
    let mut rows = device.uninitialized::<P>(count * row)?;
    for at in 0..lines / portion {
        let first = at * count;
        windows(&mut rows, maps, window, [first, count, width])?;
        let mut begin = 0;
        for part in 0..P::PARTS {
            let inner = (P::PARTS - part) * width;
            let products = Products {
                sizes: [count, outputs, inner],
                batch: 1,
                a: Operand::of(&rows, row),
                b: Operand { first: begin * filters_row, ..Operand::of(weight, filters_row) },
                bias: (part == 0).then_some(bias),
                alpha,
                beta: if add || part > 0 { 1.0 } else { 0.0 },
            };
            begin += inner;
            device
                .products(Target { buffer: y, first: first * outputs, row: outputs, step: 0 }, &products)?;
        }
    }
    Ok(())
}
