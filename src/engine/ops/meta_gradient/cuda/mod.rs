//! Launchers for `kernels/meta_gradient.cu` and `kernels/meta_gradient_short.cu`: quantities of per-sample gradients.
//!
//! For a linear layer a sample's gradient is `g = Σ_t d_output[t] ⊗ input[t]` over its rows. A sample's inner product
//! and squared norm depend only on its own rows, and the order of summation only on the sizes of the layer and the
//! number of rows per sample: they are bit-identical in any batch, at any index in it.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

mod sums;
mod tiles;

use std::{any::Any, sync::LazyLock};

use crate::{
    engine::{
        autograd::contributions::cuda::{Columns, sample_sums, scale_samples, sum_samples},
        cuda::{Argument, Buffer, Device, DeviceFloat, Kernel, Launch, device::Factor},
        ops::{cast::cuda::narrow, share_of, size},
    },
    error::{Error, Result},
};
pub use sums::{precondition, sample_column_sums, sample_gather_sums, totals};
use tiles::InTile;

const FILE: &str = "meta_gradient";
const SHORT_FILE: &str = "meta_gradient_short";
/// The compute capability that `kernels/meta_gradient_hopper.cu` is for, and the minimum rows per sample at which it
/// gains more than it loses to padding.
const HOPPER: (u32, u32) = (9, 0);
const MIN_HOPPER_ROWS: usize = 33;
const THREADS: u32 = 256;
/// Columns per block of a sum over the rows of a table.
const COLUMNS: usize = 32;
/// Elements of a sample that one block multiplies: `DOT_CHUNK` in the kernel.
const DOT_CHUNK: usize = 8192;
/// Partial results per sample and tile that [`in_tile`] keeps at once: 64 MiB per quantity.
pub const MOST_PARTIALS: usize = 16 << 20;
/// Rows per tile of products of rows, the threads of its block and their shared memory: `ROWS`, `THREADS` and 3 stages
/// of two tiles with 128 bytes per row, in the kernel.
const ROWS: usize = 64;
const ROW_THREADS: u32 = 128;
const ROW_BYTES: u32 = 3 * 2 * 64 * 128;
/// Maximum rows per sample for which each pair of rows has its own block.
const MAX_PAIRED_ROWS: usize = 4;

/// The cost model of [`meta_gradient`]. Times are in operations of a matrix product at a GPU's peak rate (989 TFLOP/s
/// and 3.35 TB/s on an H100). Measured on an H200 for `[3072, 1024]`: the three ways reach 0.57, 0.20 and 0.68 of that
/// rate with 680 rows per sample. With 77 rows the tile takes 132 us and the other two together 290 us; with one row
/// they take 207 us and 44 us.
mod cost {
    /// The fraction of that rate for each way: products in the tile, by rows, and by cuBLASLt.
    pub(super) const IN_TILE: f64 = 0.5;
    pub(super) const BY_ROWS: f64 = 0.3;
    pub(super) const LIBRARY: f64 = 0.75;
    /// The epilogue of a sample, per element of its gradient: 4 instructions, of which a multiprocessor runs 128 per
    /// cycle, compared with 4096 operations of a matrix product.
    pub(super) const END: f64 = 128.0;
    /// Reading or writing a 16-bit value.
    pub(super) const MOVE: f64 = 600.0;
}

fn launch(device: &Device, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and the buffers
    // are freed in stream order.
    unsafe { device.launch(kernel, launch, arguments) }
}

/// The quantities requested of each of `S` per-sample gradients. What is not requested costs nothing.
#[derive(Debug, Default)]
pub struct DeviceRequest<'a> {
    /// Of the parameter's size.
    pub direction: Option<&'a Buffer<f32>>,
    /// `[S]`, overwritten: the inner product of each sample's gradient with the direction.
    pub products: Option<&'a mut Buffer<f32>>,
    /// `[S]`, overwritten: the squared norm of each sample's gradient.
    pub squared_norms: Option<&'a mut Buffer<f32>>,
    /// The weighted sum of the gradients.
    pub sum: Option<WeightedSum<'a>>,
}

/// `sum (+)= Σ_i weights_i·g_i`.
#[derive(Debug)]
pub struct WeightedSum<'a> {
    /// Of the parameter's size.
    pub sum: &'a mut Buffer<f32>,
    /// `[S]`.
    pub weights: &'a Buffer<f32>,
    /// Whether to add to `sum`; otherwise it is overwritten.
    pub accumulate: bool,
}

impl DeviceRequest<'_> {
    /// Reborrows the request.
    fn again(&mut self) -> DeviceRequest<'_> {
        DeviceRequest {
            direction: self.direction,
            products: self.products.as_deref_mut(),
            squared_norms: self.squared_norms.as_deref_mut(),
            sum: self.sum.as_mut().map(|WeightedSum { sum, weights, accumulate }| WeightedSum {
                sum,
                weights,
                accumulate: *accumulate,
            }),
        }
    }

    fn is_nothing(&self) -> bool {
        self.products.is_none() && self.squared_norms.is_none() && self.sum.is_none()
    }

    /// Checks the sizes against a parameter of `parameter` elements and `samples` samples.
    fn check(&self, op: &'static str, parameter: usize, samples: usize) -> Result<()> {
        if self.direction.is_some() != self.products.is_some() {
            return Err(Error::shape(op, "products and a direction must be requested together"));
        }
        if let Some(direction) = self.direction {
            direction.expect_len(op, "the direction", parameter)?;
        }
        for (what, numbers) in [("products", &self.products), ("squared norms", &self.squared_norms)] {
            if let Some(numbers) = numbers {
                numbers.expect_len(op, what, samples)?;
            }
        }
        if let Some(WeightedSum { sum, weights, .. }) = &self.sum {
            sum.expect_len(op, "the sum", parameter)?;
            weights.expect_len(op, "weights", samples)?;
        }
        Ok(())
    }
}

/// The sizes of a linear layer's contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductSizes {
    /// `S`.
    pub samples: usize,
    /// `T`, rows per sample.
    pub rows: usize,
    /// `O`.
    pub outputs: usize,
    /// `I`.
    pub inputs: usize,
}

impl ProductSizes {
    /// Rejects sizes of zero, and buffers of other sizes: `input` `[S·T, I]`, `d_output` `[S·T, O]`.
    fn check<T: Factor>(self, op: &'static str, input: &Buffer<T>, d_output: &Buffer<T>) -> Result<()> {
        let Self { samples, rows, outputs, inputs } = self;
        if [samples, rows, outputs, inputs].contains(&0) {
            return Err(Error::shape(op, format!("{self:?} must not be 0")));
        }
        input.expect_len(op, "the input", samples * rows * inputs)?;
        d_output.expect_len(op, "the output's gradient", samples * rows * outputs)
    }

    fn parameter(self) -> usize {
        self.outputs * self.inputs
    }

    fn arguments(self, op: &'static str) -> Result<[Argument; 4]> {
        let Self { samples, rows, outputs, inputs } = self;
        Ok([
            Argument::U32(size(op, "samples", samples)?),
            Argument::U32(size(op, "rows", rows)?),
            Argument::U32(size(op, "outputs", outputs)?),
            Argument::U32(size(op, "inputs", inputs)?),
        ])
    }
}

/// A pointer to write to, or null.
fn written(buffer: Option<&mut Buffer<f32>>) -> Argument {
    buffer.map_or(Argument::null::<f32>(), Buffer::write)
}

/// A pointer to read from, or null.
fn read(buffer: Option<&Buffer<f32>>) -> Argument {
    buffer.map_or(Argument::null::<f32>(), Buffer::read)
}

/// Quantities of the per-sample gradients of a linear layer's weight `[O, I]`, formed tile by tile: `input` `[S·T, I]`,
/// `d_output` `[S·T, O]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn in_tile<T: DeviceFloat>(
    asked: DeviceRequest<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    in_tile_within(asked, input, d_output, sizes, MOST_PARTIALS)
}

/// [`in_tile`] with an explicit limit on the partial results kept at once. The results are
/// bit-identical.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn in_tile_within<T: DeviceFloat>(
    asked: DeviceRequest<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
    most_partials: usize,
) -> Result<()> {
    InTile::suited(input.device(), T::NUMBER, sizes).run(asked, input, d_output, sizes, most_partials)
}

/// [`in_tile`] with the portable kernel even where another would be chosen, to compare the two.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn in_tile_portable<T: DeviceFloat>(
    asked: DeviceRequest<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    InTile::portable(T::NUMBER).run(asked, input, d_output, sizes, MOST_PARTIALS)
}

/// `ALCHEMIST_PORTABLE=1`: use the portable kernels, so that a bench can measure the gain of specialized ones.
static PORTABLE: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALCHEMIST_PORTABLE").is_ok_and(|value| value == "1"));

/// Whether [`in_tile`] of 16-bit values uses the Hopper kernel on this device.
pub fn is_for_hopper(device: &Device, sizes: ProductSizes) -> bool {
    let ProductSizes { rows, outputs, inputs, .. } = sizes;
    !*PORTABLE
        && device.facts().capability == HOPPER
        && rows >= MIN_HOPPER_ROWS
        && outputs.is_multiple_of(8)
        && inputs.is_multiple_of(8)
}

/// Inner products with the direction `[O, I]` by one more matrix product, `Σ_t d_output[t]·(V input[t])`, which is
/// never stored: `products` `[S]` from `input` `[S·T, I]`, `d_output` `[S·T, O]`. The direction is rounded to `T`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn projected<T: DeviceFloat>(
    products: &mut Buffer<f32>,
    direction: &Buffer<f32>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    let op = "projected";
    sizes.check(op, input, d_output)?;
    products.expect_len(op, "products", sizes.samples)?;
    direction.expect_len(op, "the direction", sizes.parameter())?;
    let device = input.device();
    let rounded;
    let direction = match (direction as &dyn Any).downcast_ref::<Buffer<T>>() {
        Some(direction) => direction,
        None => {
            let mut to = device.uninitialized::<T>(direction.len())?;
            narrow(&mut to, direction)?;
            rounded = to;
            &rounded
        }
    };
    let (rows, tiles) = (sizes.samples * sizes.rows, sizes.outputs.div_ceil(ROWS));
    let mut partial = device.uninitialized::<f32>(tiles * rows)?;
    let arguments = [
        partial.write(),
        direction.read(),
        input.read(),
        d_output.read(),
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "outputs", sizes.outputs)?),
        Argument::U32(size(op, "inputs", sizes.inputs)?),
    ];
    let grid = [size(op, "tiles", tiles * rows.div_ceil(ROWS))?, 1, 1];
    let shape = Launch { grid, block: [ROW_THREADS, 1, 1], shared_bytes: ROW_BYTES };
    launch(device, &Kernel::of::<T>(SHORT_FILE, op), &shape, &arguments)?;
    if sizes.rows == 1 {
        return totals(products, &partial);
    }
    let mut of_rows = device.uninitialized::<f32>(rows)?;
    totals(&mut of_rows, &partial)?;
    sample_sums(products, &of_rows, Columns { width: 1, first: 0 }, sizes.samples)
}

/// Squared norms without the gradients, `Σ_t Σ_s (input[t]·input[s])·(d_output[t]·d_output[s])`: `squared_norms` `[S]`
/// from `input` `[S·T, I]`, `d_output` `[S·T, O]`. Neither Gram matrix is stored.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn gram<T: DeviceFloat>(
    squared_norms: &mut Buffer<f32>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    let op = "gram";
    sizes.check(op, input, d_output)?;
    squared_norms.expect_len(op, "squared norms", sizes.samples)?;
    let paired = sizes.rows <= MAX_PAIRED_ROWS;
    let across = if paired { sizes.rows } else { sizes.rows.div_ceil(ROWS) };
    let pairs = across * (across + 1) / 2;
    let device = input.device();
    let mut partial = device.uninitialized::<f32>(pairs * sizes.samples)?;
    let arguments = [
        partial.write(),
        input.read(),
        d_output.read(),
        Argument::U32(size(op, "rows", sizes.rows)?),
        Argument::U32(size(op, "outputs", sizes.outputs)?),
        Argument::U32(size(op, "inputs", sizes.inputs)?),
    ];
    let shape = Launch {
        grid: [size(op, "pairs", pairs)?, size(op, "samples", sizes.samples)?, 1],
        block: [ROW_THREADS, 1, 1],
        shared_bytes: if paired { 0 } else { ROW_BYTES },
    };
    let name = if paired { "gram_pairs" } else { "gram" };
    launch(device, &Kernel::of::<T>(SHORT_FILE, name), &shape, &arguments)?;
    totals(squared_norms, &partial)
}

/// Whether [`in_tile`] takes longer than [`projected`], [`gram`] and the weight gradient of rows weighted beforehand.
/// All times grow with the number of samples, so the choice does not depend on it, as a sample's bits must not. Nor
/// does it depend on what is requested.
fn is_in_tile_slower(sizes: ProductSizes) -> bool {
    let [rows, outputs, inputs] = [sizes.rows, sizes.outputs, sizes.inputs].map(|size| size as f64);
    let numbers = outputs * inputs;
    let in_tile = numbers * (2.0 * sizes.rows.next_multiple_of(16) as f64 / cost::IN_TILE + cost::END);
    let projected = 2.0 * rows * numbers / cost::BY_ROWS;
    // Each pair of rows is read separately.
    let gram = match sizes.rows {
        0..=MAX_PAIRED_ROWS => rows * (rows + 1.0) * (inputs + outputs) * cost::MOVE,
        _ => (sizes.rows.next_multiple_of(ROWS) as f64).powi(2) * (inputs + outputs) / cost::BY_ROWS,
    };
    let weighted = 2.0 * rows * numbers / cost::LIBRARY + 3.0 * rows * outputs * cost::MOVE;
    projected + gram + weighted < in_tile
}

/// Quantities of the per-sample gradients of a linear layer's weight `[O, I]`, computed in the way estimated to be
/// fastest for these sizes: `input` `[S·T, I]`, `d_output` `[S·T, O]`. That is [`in_tile`], except for samples of few
/// rows, for which the direction, and each row times its weight, are rounded to `T`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn meta_gradient<T: DeviceFloat>(
    asked: DeviceRequest<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    if !is_in_tile_slower(sizes) {
        return in_tile(asked, input, d_output, sizes);
    }
    let op = "meta_gradient";
    sizes.check(op, input, d_output)?;
    asked.check(op, sizes.parameter(), sizes.samples)?;
    if let (Some(products), Some(direction)) = (asked.products, asked.direction) {
        projected(products, direction, input, d_output, sizes)?;
    }
    if let Some(squared_norms) = asked.squared_norms {
        gram(squared_norms, input, d_output, sizes)?;
    }
    if let Some(WeightedSum { sum, weights, accumulate }) = asked.sum {
        let mut weighted = d_output.device().uninitialized::<T>(d_output.len())?;
        scale_samples(&mut weighted, Some(d_output), weights)?;
        let product = [sizes.outputs, sizes.inputs, sizes.samples * sizes.rows];
        let beta = if accumulate { 1.0 } else { 0.0 };
        let device = d_output.device();
        device.product(sum, product, (&weighted, true), (input, false), None, 1.0, beta)?;
    }
    Ok(())
}

/// Quantities of per-sample gradients that are already available: `d_value` `[S, N]`, in `T`. `S` is the length of the
/// requested quantities.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn per_sample<T: Factor>(asked: DeviceRequest<'_>, d_value: &Buffer<T>) -> Result<()> {
    let op = "per_sample";
    let samples = [
        asked.products.as_ref().map(|numbers| numbers.len()),
        asked.squared_norms.as_ref().map(|numbers| numbers.len()),
        asked.sum.as_ref().map(|sum| sum.weights.len()),
    ];
    let Some(samples) = samples.into_iter().flatten().next() else { return Ok(()) };
    let count = share_of(op, d_value.len(), samples)?;
    asked.check(op, count, samples)?;
    if count == 0 {
        return Err(Error::shape(op, format!("{samples} samples have no elements")));
    }
    if let Some(WeightedSum { sum, weights, accumulate }) = asked.sum {
        sum_samples(sum, d_value, Some(weights), count, accumulate)?;
    }
    let device = d_value.device();
    let parts = count.div_ceil(DOT_CHUNK);
    let partial = |wanted: bool| wanted.then(|| device.uninitialized::<f32>(parts * samples)).transpose();
    let mut products = partial(asked.products.is_some())?;
    let mut norms = partial(asked.squared_norms.is_some())?;
    if products.is_none() && norms.is_none() {
        return Ok(());
    }
    let arguments = [
        written(products.as_mut()),
        written(norms.as_mut()),
        d_value.read(),
        read(asked.direction),
        Argument::U64(count as u64),
    ];
    let grid = [size(op, "parts", parts)?, size(op, "samples", samples)?, 1];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    launch(device, &Kernel::of::<T>(FILE, "dot_samples"), &shape, &arguments)?;
    for (to, partial) in [(asked.products, products), (asked.squared_norms, norms)] {
        if let (Some(to), Some(partial)) = (to, partial) {
            totals(to, &partial)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tile_is_the_way_but_for_samples_of_few_rows() {
        for [outputs, inputs] in [[3072, 1024], [1024, 4096], [6144, 1024], [512, 512]] {
            let separate = |rows| is_in_tile_slower(ProductSizes { samples: 64, rows, outputs, inputs });
            assert!(separate(1) && !separate(77) && !separate(680), "{outputs} by {inputs}");
        }
    }
}
