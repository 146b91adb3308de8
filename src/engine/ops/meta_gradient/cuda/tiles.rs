//! The choice and the launches of the kernels that form per-sample gradients tile by tile.

use super::{
    DeviceRequest, FILE, ProductSizes, THREADS, WeightedSum, is_for_hopper, launch, projected, read, totals,
    written,
};
use crate::{
    engine::{
        autograd::contributions::cuda::sum_samples,
        cuda::{Argument, Buffer, Device, DeviceFloat, Kernel, Launch, driver::ProductNumber},
        ops::size,
    },
    error::{Error, Result},
};

const HOPPER_FILE: &str = "meta_gradient_hopper";
/// Maximum static shared memory of these kernels.
const STATIC_BYTES: u32 = 1024;
/// Multiprocessors for which the number of chunks is chosen; constant, so that sums are bit-identical on every GPU.
const MULTIPROCESSORS: usize = 132;
/// Maximum chunks per batch: each needs memory for a gradient.
const MAX_CHUNKS: usize = 4;
/// Columns of the boxes that TMA copies: two boxes span the kernel's `left`, `LEFT` columns.
const BOX_COLUMNS: u32 = 64;
const LEFT: usize = 2 * BOX_COLUMNS as usize;

/// Times of the Hopper kernel on one multiprocessor, in microseconds, from a run on an H200 on 2026-11-26 (S 64, T 680,
/// bf16). There a tile of one sample took 5.05 with 128 columns and 6.55 with 192.
mod cost {
    /// The epilogue of a sample: without it a tile took 0.6 less with 192 columns, 0.8 with 128.
    pub(super) const END: f64 = 0.7;
    /// Per 64 rows: 5.05 and 6.55 are the epilogue plus 11 of these.
    pub(super) const ROWS_128: f64 = 0.395;
    pub(super) const ROWS_192: f64 = 0.532;
    /// Per element of the gradient and chunk, if there are several: its sum is written and read again, and a block
    /// starts and ends. Derived from the overhead of runs with 3 and 8 chunks: 5 to 9 per million elements.
    pub(super) const CHUNK: f64 = 7e-6;
}

/// A kernel that forms gradients tile by tile.
pub(super) struct InTile {
    file: &'static str,
    name: &'static str,
    /// Outputs and inputs per tile.
    tile: [usize; 2],
    /// Parts of a tile that write partial results per sample.
    parts: usize,
    threads: u32,
    /// Bytes of shared memory for rows, and for the direction.
    row_bytes: u32,
    direction_bytes: u32,
    /// For the kernel that loads rows by TMA.
    hopper: Option<HopperTile>,
}

impl InTile {
    /// The portable kernel.
    pub(super) fn portable(number: ProductNumber) -> Self {
        // Stages of two operands: 4 of 16 rows of 64 elements, or 3 of 64 rows of 128.
        let (side, row_bytes, direction_bytes) = match number {
            ProductNumber::F32 => (64, 4 * 2 * 16 * 64 * 4, 64 * 64 * 4),
            ProductNumber::Bf16 | ProductNumber::F16 => (128, 3 * 2 * 64 * 128 * 2, 128 * 128 * 4),
        };
        Self {
            file: FILE,
            name: "in_tile",
            tile: [side; 2],
            parts: 1,
            threads: THREADS,
            row_bytes,
            direction_bytes,
            hopper: None,
        }
    }

    /// The Hopper kernel.
    fn hopper(tile: HopperTile) -> Self {
        let HopperTile { width, swapped } = tile;
        let (name, stages) = match width {
            Width::W128 => ("in_tile_hopper_128", 5),
            Width::W192 => ("in_tile_hopper_192", 6),
        };
        let columns = width.columns();
        let (all_columns, numbers) = ((LEFT + columns) as u32, (LEFT * columns) as u32);
        Self {
            file: HOPPER_FILE,
            name,
            tile: if swapped { [columns, LEFT] } else { [LEFT, columns] },
            parts: 2,
            threads: 384,
            // Boxes are aligned to 1024 bytes.
            row_bytes: stages * width.step() * all_columns * 2 + 1024,
            direction_bytes: numbers * 4,
            hopper: Some(tile),
        }
    }

    /// Chooses the kernel. The choice is the same for every batch of a layer.
    pub(super) fn suited(device: &Device, number: ProductNumber, sizes: ProductSizes) -> Self {
        match number {
            ProductNumber::Bf16 | ProductNumber::F16 if is_for_hopper(device, sizes) => {
                Self::hopper(HopperTile::suited(sizes))
            }
            _ => Self::portable(number),
        }
    }

    /// A layer's rows and sizes as kernel arguments.
    fn layer<T: DeviceFloat>(
        &self,
        input: &Buffer<T>,
        d_output: &Buffer<T>,
        sizes: ProductSizes,
    ) -> Result<Vec<Argument>> {
        let Some(HopperTile { width, swapped }) = self.hopper else {
            let mut arguments = vec![input.read(), d_output.read()];
            arguments.extend(sizes.arguments(self.name)?);
            return Ok(arguments);
        };
        let ProductSizes { samples, rows, outputs, inputs } = sizes;
        // Rows, their columns, and the stride between neighboring columns in a gradient.
        let (of_output, of_input) = ((d_output, outputs, inputs), (input, inputs, 1));
        let (left, right) = if swapped { (of_input, of_output) } else { (of_output, of_input) };
        let mut arguments = Vec::new();
        for (operand, columns, _) in [left, right] {
            let box_sizes = [width.step(), BOX_COLUMNS];
            let map = operand.device().sample_map(operand, [samples, rows, columns], box_sizes)?;
            arguments.push(map.map(Argument::SampleMap).ok_or_else(|| Error::Kernel {
                kernel: self.name.to_owned(),
                message: "the device has no TMA".to_owned(),
            })?);
        }
        for (what, value) in [
            ("samples", samples),
            ("rows", rows),
            ("columns", left.1),
            ("columns", right.1),
            ("inputs", left.2),
            ("inputs", right.2),
        ] {
            arguments.push(Argument::U32(size(self.name, what, value)?));
        }
        Ok(arguments)
    }

    /// Computes everything requested, with at most this many partial results per sample and tile at once.
    ///
    /// # Errors
    /// If the sizes do not match or the device fails.
    pub(super) fn run<T: DeviceFloat>(
        &self,
        mut asked: DeviceRequest<'_>,
        input: &Buffer<T>,
        d_output: &Buffer<T>,
        sizes: ProductSizes,
        most_partials: usize,
    ) -> Result<()> {
        let op = self.name;
        sizes.check(op, input, d_output)?;
        asked.check(op, sizes.parameter(), sizes.samples)?;
        let device = input.device();
        if self.row_bytes + self.direction_bytes + STATIC_BYTES > device.facts().shared_bytes
            && let (Some(products), Some(direction)) = (asked.products.take(), asked.direction.take())
        {
            // Consumer GPUs have enough shared memory for the rows only.
            projected(products, direction, input, d_output, sizes)?;
        }
        if asked.is_nothing() {
            return Ok(());
        }
        let tiles = sizes.outputs.div_ceil(self.tile[0]) * sizes.inputs.div_ceil(self.tile[1]);
        let chunks = match self.hopper {
            Some(tile) => tile.chunks(sizes),
            None => chunks(tiles, sizes.samples),
        };
        let chunk = sizes.samples.div_ceil(chunks);
        let chunks = sizes.samples.div_ceil(chunk);
        // How many samples of each chunk one launch takes.
        let parts = tiles * self.parts;
        let count = (most_partials / (parts * chunks)).clamp(1, chunk);
        let slots = if count == chunk { sizes.samples } else { chunks * count };
        let mut sums = match &asked.sum {
            Some(_) if chunks > 1 => Some(device.uninitialized::<f32>(chunks * sizes.parameter())?),
            _ => None,
        };
        for first in (0..chunk).step_by(count) {
            let partial = |wanted: bool| -> Result<Option<Buffer<f32>>> {
                // Where chunks differ in length, some slots are unused.
                let make = || {
                    if count == chunk {
                        device.uninitialized(parts * slots)
                    } else {
                        device.zeros(parts * slots)
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
            ];
            arguments.extend(self.layer(input, d_output, sizes)?);
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
                } else {
                    let mut some = device.uninitialized::<f32>(slots)?;
                    totals(&mut some, &partial)?;
                    scatter(to, &some, sizes.samples, [chunk, first, count])?;
                }
            }
        }
        if let (Some(sums), Some(WeightedSum { sum, accumulate, .. })) = (&sums, asked.sum) {
            sum_samples(sum, sums, None, sizes.parameter(), accumulate)?;
        }
        Ok(())
    }
}

/// Copies the results of `count` samples of each chunk, from the chunk's sample `first` on, to the samples' indices.
fn scatter(
    to: &mut Buffer<f32>,
    some: &Buffer<f32>,
    samples: usize,
    [chunk, first, count]: [usize; 3],
) -> Result<()> {
    for (slot, start) in (0..samples).step_by(chunk).enumerate() {
        let end = samples.min(start + chunk.min(first + count));
        let found = end.saturating_sub(start + first);
        if found > 0 {
            to.copy_range(start + first, some, slot * count..slot * count + found)?;
        }
    }
    Ok(())
}

/// Columns of the kernel's `right` per tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    W128,
    W192,
}

impl Width {
    fn columns(self) -> usize {
        match self {
            Self::W128 => 128,
            Self::W192 => 192,
        }
    }

    /// Rows per step.
    fn step(self) -> u32 {
        match self {
            Self::W128 => 64,
            Self::W192 => 32,
        }
    }

    /// Time for a tile of one sample.
    fn time(self, rows: usize) -> f64 {
        let each = match self {
            Self::W128 => cost::ROWS_128,
            Self::W192 => cost::ROWS_192,
        };
        cost::END + rows.next_multiple_of(self.step() as usize) as f64 / 64.0 * each
    }
}

/// How the Hopper kernel tiles a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HopperTile {
    width: Width,
    /// Whether the width runs along the outputs instead of the inputs.
    swapped: bool,
}

impl HopperTile {
    /// The fastest tiling for 64 samples of a layer. It must not depend on the number of samples, since the order in
    /// which a sample's values are added depends on the tiling.
    fn suited(sizes: ProductSizes) -> Self {
        let sizes = ProductSizes { samples: 64, ..sizes };
        let time = |tile: Self| tile.time(sizes, tile.chunks(sizes));
        let first = Self { width: Width::W128, swapped: false };
        [false, true].map(|swapped| Self { width: Width::W192, swapped }).into_iter().fold(
            first,
            |best, tile| {
                if time(tile) < time(best) { tile } else { best }
            },
        )
    }

    /// Number of chunks of a batch that are summed separately.
    fn chunks(self, sizes: ProductSizes) -> usize {
        (2..=MAX_CHUNKS.min(sizes.samples)).fold(1, |best, chunks| {
            if self.time(sizes, chunks) < self.time(sizes, best) { chunks } else { best }
        })
    }

    /// Time for a batch with everything requested: the rounds of the busiest multiprocessor, and the chunks.
    fn time(self, sizes: ProductSizes, chunks: usize) -> f64 {
        let ProductSizes { samples, rows, outputs, inputs } = sizes;
        let (left, right) = if self.swapped { (inputs, outputs) } else { (outputs, inputs) };
        let tiles = left.div_ceil(LEFT) * right.div_ceil(self.width.columns());
        let rounds = (tiles * chunks).div_ceil(MULTIPROCESSORS) * samples.div_ceil(chunks);
        let overhead = if chunks > 1 { (chunks * outputs * inputs) as f64 * cost::CHUNK } else { 0.0 };
        rounds as f64 * self.width.time(rows) + overhead
    }
}

/// Number of chunks for the portable kernel: as many as leave the fewest multiprocessors idle.
fn chunks(tiles: usize, samples: usize) -> usize {
    // Relative time if one tile and sample take 1: the rounds of the busiest multiprocessor, with shorter chunks.
    let time = |chunks: usize| (tiles * chunks).div_ceil(MULTIPROCESSORS) as f64 / chunks as f64;
    (2..=MAX_CHUNKS.min(samples)).fold(1, |best, chunks| {
        // More chunks must pay for themselves: each chunk's sum is written and read again.
        if time(chunks) < 0.9 * time(best) { chunks } else { best }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_split_where_that_keeps_more_of_a_gpu_busy() {
        assert_eq!(chunks(192, 64), 2);
        assert_eq!(chunks(64, 64), 2);
        assert_eq!(chunks(256, 64), 1);
        assert_eq!(chunks(1, 1), 1);
        assert_eq!(chunks(1, 3), 3);
    }

    #[test]
    fn hopper_gets_the_tiles_that_keep_it_at_work() {
        let found = |samples, rows, outputs, inputs| {
            let sizes = ProductSizes { samples, rows, outputs, inputs };
            let tile = HopperTile::suited(sizes);
            (tile.width.columns(), tile.swapped, tile.chunks(sizes))
        };
        assert_eq!(found(64, 680, 3072, 1024), (192, true, 1));
        assert_eq!(found(64, 680, 1024, 3072), (192, false, 1));
        assert_eq!(found(64, 680, 1024, 1024), (128, false, 2));
        assert_eq!(found(64, 680, 4096, 1024), (128, false, 1));
        assert_eq!(found(64, 680, 1024, 4096), (128, false, 1));
        // Cases that cover every path in the tests of the kernel.
        assert_eq!(found(2, 65, 3064, 1016), (192, true, 1));
        assert_eq!(found(9, 680, 1016, 1528), (192, false, 2));
        assert_eq!(found(40, 65, 1024, 256), (128, false, 4));
        for samples in 1..300 {
            assert_eq!(found(samples, 680, 3072, 1024).0, 192, "{samples} samples");
            assert_eq!(found(samples, 680, 1024, 1024).0, 128, "{samples} samples");
        }
    }
}
