//! Launches of `kernels/convolution.cu`, and the products with the filters.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

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
/// the product, few enough for memory.
const WINDOW_BYTES: usize = 64 << 20;

/// Where the window of an output pixel lies: at `(y, x)` it begins at `(stride·y − before, stride·x − before)` of the map, each
/// pixel of which stands `up` times in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    up: usize,
    stride: usize,
    before: usize,
}

impl Window {
    /// Around each pixel.
    pub const SAME: Self = Self { up: 1, stride: 1, before: 1 };
    /// From every second pixel on, with zeros past the end alone.
    pub const HALVING: Self = Self { up: 1, stride: 2, before: 0 };
    /// Around each pixel of the map at twice its side.
    pub const DOUBLING: Self = Self { up: 2, stride: 1, before: 1 };

    /// The side of what comes out of a map of this side.
    pub fn side(self, side: usize) -> usize {
        side * self.up / self.stride
    }
}

/// Maps of several samples.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a, T: Factor> {
    /// `[B, side, side, C]`, or with `planes` `[B, C, side, side]`.
    pub values: &'a Buffer<T>,
    /// Pixels of a side.
    pub side: usize,
    /// Channels of a pixel, `C`.
    pub channels: usize,
    /// Whether all pixels of a channel lie together.
    pub planes: bool,
}

impl<T: Factor> Maps<'_, T> {
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

/// Filters of 3×3 with their biases, in a device's memory.
#[derive(Debug)]
pub struct Filters<T: Factor> {
    /// `[width, O]`: the numbers of a window, one after the other, and zeros.
    weight: Buffer<T>,
    width: usize,
    inputs: usize,
    outputs: usize,
}

impl<T: Factor> Filters<T> {
    /// From filters `[3, 3, I, O]`.
    ///
    /// # Errors
    /// If the sizes do not fit, or there is not enough memory.
    pub fn new(device: &Device, filters: &[T], inputs: usize, outputs: usize) -> Result<Self> {
        if inputs == 0 || outputs == 0 || filters.len() != 9 * inputs * outputs {
            return Err(Error::shape(
                OP,
                format!(
                    "{} numbers are not filters of 3×3 from {inputs} to {outputs} channels",
                    filters.len()
                ),
            ));
        }
        // Rows of 16 bytes are what products read best.
        let width = (9 * inputs).next_multiple_of(8);
        let mut padded = filters.to_vec();
        padded.resize(width * outputs, T::default());
        Ok(Self { weight: device.upload(&padded)?, width, inputs, outputs })
    }

    /// Channels that come out, `O`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// Writes the windows of `count` output pixels from `first` on, `[count, width]`, to the beginning of `rows`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn windows<T: Factor>(
    rows: &mut Buffer<T>,
    maps: &Maps<'_, T>,
    window: Window,
    [first, count, width]: [usize; 3],
) -> Result<()> {
    let side = window.side(maps.side);
    let pixels = maps.samples()? * side * side;
    if first + count > pixels || width < 9 * maps.channels || rows.len() < count * width {
        return Err(Error::shape(
            OP,
            format!(
                "windows {first} to {} of {pixels}, rows of {width} for {} channels, into {} numbers",
                first + count,
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
        whole(first)?,
        whole(count)?,
        whole(width)?,
        Argument::U32(u32::from(maps.planes)),
    ];
    let kernel = Kernel::of::<T>(OP, "convolution_windows");
    let launch = Launch::linear(blocks(OP, count, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; the rows are borrowed mutably; the sizes were compared above, and all pixels
    // fit 32 bits; both buffers live, and are freed in the order of the work.
    unsafe { maps.values.device().launch(&kernel, &launch, &arguments) }
}

/// `y = conv(maps) + bias`, or `y += conv(maps) + bias` with `add`; `y` `[B, side', side', O]` in the type of the maps or in
/// f32, `bias` `[O]` in that of `y`.
///
/// The pixels are done in equal parts, so that all of them are computed alike.
///
/// # Errors
/// If the sizes do not fit, there is not enough memory, or the device fails.
pub fn convolve<T: Factor, O: Factor>(
    y: &mut Buffer<O>,
    maps: &Maps<'_, T>,
    filters: &Filters<T>,
    bias: &Buffer<O>,
    window: Window,
    add: bool,
) -> Result<()> {
    let Filters { ref weight, width, inputs, outputs } = *filters;
    if inputs != maps.channels {
        return Err(Error::shape(
            OP,
            format!("{inputs} channels are taken, but {} are given", maps.channels),
        ));
    }
    let side = window.side(maps.side);
    let lines = maps.samples()? * side;
    y.expect_len(OP, "the result", lines * side * outputs)?;
    if lines == 0 {
        return Ok(());
    }
    let device = maps.values.device();
    let line = side * width * size_of::<T>();
    let most = (WINDOW_BYTES / line).clamp(1, lines);
    let part = (1..=most).rev().find(|part| lines.is_multiple_of(*part)).unwrap_or(1);
    let count = part * side;
    let mut rows = device.uninitialised::<T>(count * width)?;
    for at in 0..lines / part {
        let first = at * count;
        windows(&mut rows, maps, window, [first, count, width])?;
        let products = Products {
            sizes: [count, outputs, width],
            batch: 1,
            a: Operand::of(&rows, width),
            b: Operand::of(weight, outputs),
            bias: Some(bias),
            alpha: 1.0,
            beta: if add { 1.0 } else { 0.0 },
        };
        device.products(Target { buffer: y, first: first * outputs, row: outputs, step: 0 }, &products)?;
    }
    Ok(())
}
