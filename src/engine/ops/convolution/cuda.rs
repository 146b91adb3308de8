//! Launches of `kernels/convolution.cu`, and the products with the filters: convolutions in f32 on the tensor cores.
//!
//! Tensor cores multiply numbers of 16 bits and add up in f32. So every f32 is split into parts of 16 bits, of which each is
//! what those before it left over: `x = x₀ + x₁ (+ x₂)`, and `x · w = (x₀ + x₁) · w₀ + x₀ · w₁`, products of parts too small to
//! count in f32 being left out. See [`SplitFloat`] for which parts there are.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use half::{bf16, f16};

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, Operand, Products, Target, device::Factor},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "convolution";
/// Windows a block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;
/// The most that windows are written of at once, in bytes: enough rows for every multiprocessor of a card to have a tile of
/// the product, few enough for them to be in the cache when they are multiplied.
const WINDOW_BYTES: usize = 64 << 20;
/// Filters are multiplied by a power of two that brings the largest number near this one: in f16, too, what is small then
/// keeps its bits, and its parts theirs.
const LARGEST: f32 = 4096.0;

/// What an f32 is split into parts of.
///
/// f16 in two parts holds 22 bits, which is as good as f32 for numbers of the size of 1, such as norms give; but one beyond
/// 65504 becomes an infinity, which the result then shows. bf16 in three parts holds all bits of any number, and takes twice
/// the work.
pub trait SplitFloat: Factor {
    /// How many.
    const PARTS: usize;
}

impl SplitFloat for f16 {
    const PARTS: usize = 2;
}

impl SplitFloat for bf16 {
    const PARTS: usize = 3;
}

/// Where the window of an output pixel lies: at `(y, x)` it begins at `(stride·y − before, stride·x − before)` of the map, each
/// pixel of which stands `up` times in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// 1 or 2.
    up: usize,
    stride: usize,
    before: usize,
    /// Pixels of its own side.
    size: usize,
}

impl Window {
    /// The pixel alone.
    pub const POINT: Self = Self { up: 1, stride: 1, before: 0, size: 1 };
    /// Around each pixel.
    pub const SAME: Self = Self { up: 1, stride: 1, before: 1, size: 3 };
    /// From every second pixel on, with zeros past the end alone.
    pub const HALVING: Self = Self { up: 1, stride: 2, before: 0, size: 3 };
    /// Around each pixel of the map at twice its side.
    pub const DOUBLING: Self = Self { up: 2, stride: 1, before: 1, size: 3 };

    /// The side of what comes out of a map of this side.
    pub fn side(self, side: usize) -> usize {
        side * self.up / self.stride
    }

    /// Pixels of a window.
    fn taps(self) -> usize {
        self.size * self.size
    }
}

/// Maps of several samples.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// `[B, side, side, C]`, or with `planes` `[B, C, side, side]`.
    pub values: &'a Buffer<f32>,
    /// Pixels of a side.
    pub side: usize,
    /// Channels of a pixel, `C`.
    pub channels: usize,
    /// Whether all pixels of a channel lie together.
    pub planes: bool,
}

impl Maps<'_> {
    fn samples(&self) -> Result<usize> {
        let (len, map) = (self.values.len(), self.side * self.side * self.channels);
        if map == 0 || len == 0 || !len.is_multiple_of(map) {
            return Err(Error::shape(
                OP,
                format!(
                    "{len} numbers are not maps of {0}×{0} pixels of {1} channels",
                    self.side, self.channels
                ),
            ));
        }
        Ok(len / map)
    }
}

/// Filters of 3×3 or 1×1 in a device's memory, split into parts.
#[derive(Debug)]
pub struct DeviceFilters<P: SplitFloat> {
    /// For every part `p` of the filters, `PARTS − p` times the same `[width, row]`: the numbers of a window, one after the
    /// other, and zeros; of the outputs, and zeros. So the first `PARTS − p` parts of a row of windows meet part `p` in one
    /// product.
    weight: Buffer<P>,
    width: usize,
    row: usize,
    taps: usize,
    inputs: usize,
    outputs: usize,
    /// What takes the filters' factor off.
    alpha: f32,
}

/// In which order the numbers of filters are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOrder {
    /// `[O, I, taps]`, as PyTorch has them.
    OutputsFirst,
    /// `[taps, I, O]`
    OutputsLast,
}

impl FilterOrder {
    /// How far neighboring taps, inputs and outputs are apart.
    fn strides(self, [taps, inputs, outputs]: [usize; 3]) -> [usize; 3] {
        match self {
            Self::OutputsFirst => [1, taps, taps * inputs],
            Self::OutputsLast => [inputs * outputs, outputs, 1],
        }
    }
}

impl<P: SplitFloat> DeviceFilters<P> {
    /// From filters of 9 taps or one; `sizes` are taps, `I` and `O`.
    ///
    /// # Errors
    /// If the sizes do not fit, or there is not enough memory.
    pub fn new(device: &Device, filters: &[f32], order: FilterOrder, sizes: [usize; 3]) -> Result<Self> {
        let [taps, inputs, outputs] = sizes;
        if !matches!(taps, 1 | 9) || inputs == 0 || outputs == 0 || filters.len() != taps * inputs * outputs {
            return Err(Error::shape(
                OP,
                format!(
                    "{} numbers are not filters of 9 taps or one, but {taps}, from {inputs} to {outputs} channels",
                    filters.len()
                ),
            ));
        }
        // Rows of 16 bytes are what products read best.
        let (width, row) = ((taps * inputs).next_multiple_of(8), outputs.next_multiple_of(8));
        // Positive numbers are in the order of their bits.
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
        // SAFETY: arguments in the kernel's order; the parts are borrowed mutably, and of the size that the kernel writes; the
        // numbers given were counted above; both buffers live, and are freed in the order of the work.
        unsafe { device.launch(&kernel, &launch, &arguments) }?;
        Ok(Self { weight, width, row, taps, inputs, outputs, alpha: 1.0 / scale })
    }
}

/// The power of two at or below a number, which is positive and not subnormal.
fn power_of_two(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xff80_0000)
}

/// Writes the windows of `count` output pixels from `first` on, `[count, PARTS, width]`, to the beginning of `rows`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
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
                "windows {first} to {} of {pixels}, {} parts of {width} for {} channels, into {} numbers",
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
    // SAFETY: arguments in the kernel's order; the rows are borrowed mutably; the sizes were compared above, and all pixels
    // fit 32 bits; both buffers live, and are freed in the order of the work.
    unsafe { maps.values.device().launch(&kernel, &launch, &arguments) }
}

/// `y = conv(maps) + bias`, or `y += conv(maps) + bias` with `add`; `y` `[B, side', side', O]`, `bias` `[O]`.
///
/// The pixels are done in equal portions, so that all of them are computed alike.
///
/// # Errors
/// If the sizes do not fit, there is not enough memory, or the device fails.
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
            format!(
                "{taps} taps of {inputs} channels are taken, but {} of {} are given",
                window.taps(),
                maps.channels
            ),
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
