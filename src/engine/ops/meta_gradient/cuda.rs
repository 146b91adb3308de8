//! Launches of `kernels/meta_gradient.cu`: quantities of the gradient of each sample.
//!
//! For a linear layer a sample's gradient is `g = Σ_t d_output[t] ⊗ input[t]` over its rows. A sample's inner product and
//! squared norm by [`in_tile`], [`gram`] and [`per_sample`] are made of its own rows in an order that the sizes of the
//! layer alone decide: they are the same bits in whatever batch, and at whatever place of it, the sample stands.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, DeviceFloat, Kernel, Launch, device::Factor},
        ops::{
            accumulate::cuda::{Columns, GatherIndex, column_sum, sample_sums, sum_samples},
            blocks, each_launch, share_of, size,
        },
    },
    error::{Error, Result},
};

const FILE: &str = "meta_gradient";
const THREADS: u32 = 256;
/// Columns a block of a sum over the rows of a table.
const COLUMNS: usize = 32;
/// Numbers of a sample that one block multiplies: `DOT_SHARE` there.
const DOT_SHARE: usize = 8192;
/// Numbers for each sample and tile that [`in_tile`] keeps at once: 64 MiB a quantity.
pub const MOST_PARTIALS: usize = 16 << 20;
/// What the number of chunks is chosen for. A constant, so that sums are the same bits on every card.
const MULTIPROCESSORS: usize = 132;
/// Chunks of a batch at most: each needs memory for a gradient.
const MOST_CHUNKS: usize = 4;

fn launch(device: &Device, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each gives its kernel's arguments in order, has compared the sizes
    // of all buffers with those that the kernel is told, borrows mutably what is written, and the buffers are freed in
    // the order of the work.
    unsafe { device.launch(kernel, launch, arguments) }
}

/// What is asked of the gradient of each of `S` samples. What is not asked for costs nothing.
#[derive(Debug, Default)]
pub struct Asked<'a> {
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
    /// Whether to add to what `sum` holds; else it is overwritten.
    pub accumulate: bool,
}

impl Asked<'_> {
    /// The same, borrowed again.
    fn again(&mut self) -> Asked<'_> {
        Asked {
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

    /// Refuses what does not fit a parameter of `parameter` numbers and `samples` samples.
    fn check(&self, op: &'static str, parameter: usize, samples: usize) -> Result<()> {
        if self.direction.is_some() != self.products.is_some() {
            return Err(Error::shape(op, "products and a direction are asked for together or not at all"));
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
    /// `T`, rows of one sample.
    pub rows: usize,
    /// `O`.
    pub outputs: usize,
    /// `I`.
    pub inputs: usize,
}

impl ProductSizes {
    /// Refuses sizes of nothing, and rows that are not of these sizes: `input` `[S·T, I]`, `d_output` `[S·T, O]`.
    fn check<T: Factor>(self, op: &'static str, input: &Buffer<T>, d_output: &Buffer<T>) -> Result<()> {
        let Self { samples, rows, outputs, inputs } = self;
        if [samples, rows, outputs, inputs].contains(&0) {
            return Err(Error::shape(op, format!("{self:?} hold a zero")));
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

/// A pointer that may be written, or null.
fn written(buffer: Option<&mut Buffer<f32>>) -> Argument {
    buffer.map_or(Argument::null::<f32>(), Buffer::write)
}

/// A pointer that is read, or null.
fn read(buffer: Option<&Buffer<f32>>) -> Argument {
    buffer.map_or(Argument::null::<f32>(), Buffer::read)
}

/// Into how many chunks a batch is cut that are summed apart: as many as leave the fewest multiprocessors idle.
fn chunks(tiles: usize, samples: usize) -> usize {
    // Time for all, if one tile and sample take 1: the rounds that the busiest multiprocessor does, of shorter chunks.
    let time = |chunks: usize| (tiles * chunks).div_ceil(MULTIPROCESSORS) as f64 / chunks as f64;
    (2..=MOST_CHUNKS.min(samples)).fold(1, |best, chunks| {
        // Each chunk's sum is written and read once more.
        if time(chunks) < 0.9 * time(best) { chunks } else { best }
    })
}

/// Quantities of the gradients of a linear layer's weight `[O, I]`, formed in the tile: `input` `[S·T, I]`, `d_output`
/// `[S·T, O]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn in_tile<T: DeviceFloat>(
    asked: Asked<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
) -> Result<()> {
    in_tile_within(asked, input, d_output, sizes, MOST_PARTIALS)
}

/// [`in_tile`] with a bound of its own on the numbers for each sample and tile that are kept at once. The results are the
/// same bits.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn in_tile_within<T: DeviceFloat>(
    asked: Asked<'_>,
    input: &Buffer<T>,
    d_output: &Buffer<T>,
    sizes: ProductSizes,
    most_partials: usize,
) -> Result<()> {
    portable(size_of::<T>() == 2).run(asked, input, d_output, sizes, most_partials)
}

/// A kernel that forms gradients in the tile.
struct InTile {
    file: &'static str,
    name: &'static str,
    /// Outputs and inputs of a tile.
    tile: [usize; 2],
    threads: u32,
    /// Bytes of shared memory for rows, and for the direction.
    row_bytes: u32,
    direction_bytes: u32,
}

/// The kernel for every card, in 16-bit numbers or f32.
fn portable(half: bool) -> InTile {
    let (side, step) = if half { (128, 32) } else { (64, 16) };
    let number = if half { 2 } else { 4 };
    InTile {
        file: FILE,
        name: "in_tile",
        tile: [side as usize; 2],
        threads: THREADS,
        row_bytes: 4 * 2 * step * side * number,
        direction_bytes: side * side * 4,
    }
}

impl InTile {
    fn run<T: DeviceFloat>(
        &self,
        mut asked: Asked<'_>,
        input: &Buffer<T>,
        d_output: &Buffer<T>,
        sizes: ProductSizes,
        most_partials: usize,
    ) -> Result<()> {
        let op = self.name;
        sizes.check(op, input, d_output)?;
        asked.check(op, sizes.parameter(), sizes.samples)?;
        if asked.is_nothing() {
            return Ok(());
        }
        let device = input.device();
        let tiles = sizes.outputs.div_ceil(self.tile[0]) * sizes.inputs.div_ceil(self.tile[1]);
        let chunks = chunks(tiles, sizes.samples);
        let chunk = sizes.samples.div_ceil(chunks);
        let chunks = sizes.samples.div_ceil(chunk);
        // Samples of each chunk in one launch.
        let count = (most_partials / (tiles * chunks)).clamp(1, chunk);
        let slots = if count == chunk { sizes.samples } else { chunks * count };
        let mut sums = match &asked.sum {
            Some(_) if chunks > 1 => Some(device.uninitialised::<f32>(chunks * sizes.parameter())?),
            _ => None,
        };
        for first in (0..chunk).step_by(count) {
            let partial = |wanted: bool| -> Result<Option<Buffer<f32>>> {
                // Where chunks are not of one length, some slots are nobody's.
                let make = || {
                    if count == chunk {
                        device.uninitialised(tiles * slots)
                    } else {
                        device.zeros(tiles * slots)
                    }
                };
                if wanted { make().map(Some) } else { Ok(None) }
            };
            let mut products = partial(asked.products.is_some())?;
            let mut norms = partial(asked.squared_norms.is_some())?;
            let (weights, accumulate) = match &asked.sum {
                Some(sum) => (Some(sum.weights), first > 0 || (sum.accumulate && chunks == 1)),
                None => (None, false),
            };
            let to_sum = match (&mut sums, &mut asked.sum) {
                (Some(sums), _) => Some(sums),
                (None, Some(sum)) => Some(&mut *sum.sum),
                (None, None) => None,
            };
            let mut arguments = vec![
                written(products.as_mut()),
                written(norms.as_mut()),
                written(to_sum),
                read(asked.direction),
                read(weights),
                input.read(),
                d_output.read(),
            ];
            arguments.extend(sizes.arguments(op)?);
            for (what, value) in
                [("samples", chunk), ("samples", first), ("samples", count), ("samples", slots)]
            {
                arguments.push(Argument::U32(size(op, what, value)?));
            }
            arguments.push(Argument::U32(u32::from(accumulate)));
            let shape = Launch {
                grid: [size(op, "tiles", tiles)?, size(op, "chunks", chunks)?, 1],
                block: [self.threads, 1, 1],
                shared_bytes: self.row_bytes + if products.is_some() { self.direction_bytes } else { 0 },
            };
            launch(device, &Kernel::of::<T>(self.file, self.name), &shape, &arguments)?;
            let again = asked.again();
            for (to, partial) in [(again.products, products), (again.squared_norms, norms)] {
                let (Some(to), Some(partial)) = (to, partial) else { continue };
                if count == chunk {
                    totals(to, &partial)?;
                    continue;
                }
                let mut some = device.uninitialised::<f32>(slots)?;
                totals(&mut some, &partial)?;
                for (slot, start) in (0..sizes.samples).step_by(chunk).enumerate() {
                    let end = sizes.samples.min(start + chunk.min(first + count));
                    let found = end.saturating_sub(start + first);
                    if found > 0 {
                        to.copy_range(start + first, &some, slot * count..slot * count + found)?;
                    }
                }
            }
        }
        if let (Some(sums), Some(WeightedSum { sum, accumulate, .. })) = (&sums, asked.sum) {
            sum_samples(sum, sums, None, sizes.parameter(), accumulate)?;
        }
        Ok(())
    }
}

/// Quantities of gradients that are there for each sample: `d_value` `[S, N]`, in `T`. `S` is as many as there are of what is
/// asked for.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn per_sample<T: Factor>(asked: Asked<'_>, d_value: &Buffer<T>) -> Result<()> {
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
        return Err(Error::shape(op, format!("{samples} samples hold no numbers")));
    }
    if let Some(WeightedSum { sum, weights, accumulate }) = asked.sum {
        sum_samples(sum, d_value, Some(weights), count, accumulate)?;
    }
    dot_samples(op, [asked.products, asked.squared_norms], d_value, asked.direction, 0)
}

/// Inner products of each sample with the direction, of which each sample's is `stride` numbers apart, and squared norms.
fn dot_samples<T: Factor, V: Factor>(
    op: &'static str,
    to: [Option<&mut Buffer<f32>>; 2],
    d: &Buffer<T>,
    direction: Option<&Buffer<V>>,
    stride: usize,
) -> Result<()> {
    let Some(samples) = to.iter().flatten().map(|numbers| numbers.len()).next() else { return Ok(()) };
    let device = d.device();
    let count = share_of(op, d.len(), samples)?;
    let parts = count.div_ceil(DOT_SHARE);
    let mut partials = [None, None];
    for (partial, to) in partials.iter_mut().zip(&to) {
        if to.is_some() {
            *partial = Some(device.uninitialised::<f32>(parts * samples)?);
        }
    }
    let [products, norms] = &mut partials;
    let arguments = [
        written(products.as_mut()),
        written(norms.as_mut()),
        d.read(),
        direction.map_or(Argument::null::<V>(), Buffer::read),
        Argument::U64(count as u64),
        Argument::U64(stride as u64),
    ];
    let grid = [size(op, "parts", parts)?, size(op, "samples", samples)?, 1];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    let kernel = Kernel::new(FILE, &format!("dot_samples_{}_{}", T::SUFFIX, V::SUFFIX));
    launch(device, &kernel, &shape, &arguments)?;
    for (to, partial) in to.into_iter().zip(partials) {
        if let (Some(to), Some(partial)) = (to, partial) {
            totals(to, &partial)?;
        }
    }
    Ok(())
}

/// The sums over the rows of each sample of columns of `d` `[S·T, width]`: `sums` `[S, N]`, `N` columns from
/// `columns.first`; the gradient of a bias for each sample.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn sample_column_sums<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    samples: usize,
) -> Result<()> {
    sample_sums(sums, d, columns, samples)
}

/// The gradient of a table for each sample: `tables` `[S, K, N]` from `d` `[S, tokens, N]`, of which row `k` is the sum of
/// the rows that it was added to.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn sample_gather_sums<T: Factor>(
    tables: &mut Buffer<f32>,
    d: &Buffer<T>,
    index: &GatherIndex,
    samples: usize,
) -> Result<()> {
    let op = "sample_gather_sums";
    let columns = share_of(op, tables.len(), samples * index.rows())?;
    d.expect_len(op, "the rows' gradient", samples * index.tokens() * columns)?;
    if tables.is_empty() {
        return Ok(());
    }
    let grid =
        [blocks(op, columns, COLUMNS)?, size(op, "rows", index.rows())?, size(op, "samples", samples)?];
    let [starts, order] = index.read();
    let arguments = [
        tables.write(),
        d.read(),
        starts,
        order,
        Argument::U32(size(op, "tokens", index.tokens())?),
        Argument::U32(size(op, "columns", columns)?),
    ];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    launch(d.device(), &Kernel::of::<T>(FILE, "gather_samples"), &shape, &arguments)
}

/// The direction as AdamW sees it, `to = v / (sqrt(second_moment·factors[0]) + factors[1])`: `factors` `[2]` hold the
/// inverse of the correction of the second moment and epsilon, on the device, so that a recorded step finds its own. All
/// are 0 where `factors[0]` is: before AdamW's first step there is no second moment.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn precondition(
    to: &mut Buffer<f32>,
    v: &Buffer<f32>,
    second_moment: &Buffer<f32>,
    factors: &Buffer<f32>,
) -> Result<()> {
    let op = "precondition";
    to.expect_len(op, "the result", v.len())?;
    second_moment.expect_len(op, "the second moment", v.len())?;
    factors.expect_len(op, "factors", 2)?;
    if v.is_empty() {
        return Ok(());
    }
    let arguments =
        [to.write(), v.read(), second_moment.read(), factors.read(), Argument::U64(v.len() as u64)];
    launch(v.device(), &Kernel::of::<f32>(FILE, op), &each_launch::<f32>(op, 1, v.len())?, &arguments)
}

/// The sums of the columns of `matrix` `[P, S]`: `to` `[S]`. A column's order is that of its rows, whatever `S` is.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn totals(to: &mut Buffer<f32>, matrix: &Buffer<f32>) -> Result<()> {
    let columns = Columns { width: to.len(), first: 0 };
    column_sum(to, matrix, columns, false)
}
