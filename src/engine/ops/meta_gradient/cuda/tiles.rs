//! The kernels that form gradients in the tile: which one, and its launches.

use super::{
    Asked, BOX, FILE, ProductSizes, THREADS, WeightedSum, is_for_hopper, launch, projected, read, totals,
    written,
};
use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, DeviceFloat, Kernel, Launch, driver::ProductNumber},
        ops::{accumulate::cuda::sum_samples, size},
    },
    error::{Error, Result},
};

const HOPPER_FILE: &str = "meta_gradient_hopper";
/// Shared memory that kernels which form gradients take beside what they are given, at most.
const STATIC_BYTES: u32 = 1024;
/// What the number of chunks is chosen for. A constant, so that sums are the same bits on every card.
const MULTIPROCESSORS: usize = 132;
/// Chunks of a batch at most: each needs memory for a gradient.
const MOST_CHUNKS: usize = 4;

/// A kernel that forms gradients in the tile.
pub(super) struct InTile {
    file: &'static str,
    name: &'static str,
    /// Outputs and inputs of a tile.
    side: usize,
    /// Parts of a tile that write numbers for each sample.
    parts: usize,
    threads: u32,
    /// Bytes of shared memory for rows, and for the direction.
    row_bytes: u32,
    direction_bytes: u32,
    /// Whether rows come by the card's own copy unit.
    maps: bool,
}

impl InTile {
    /// The kernel for all cards.
    pub(super) fn portable(number: ProductNumber) -> Self {
        // 4 stages of two operands: 16 rows of 64 numbers, or 32 of 128.
        let (side, row_bytes, direction_bytes) = match number {
            ProductNumber::F32 => (64, 4 * 2 * 16 * 64 * 4, 64 * 64 * 4),
            ProductNumber::Bf16 | ProductNumber::F16 => (128, 4 * 2 * 32 * 128 * 2, 128 * 128 * 4),
        };
        Self {
            file: FILE,
            name: "in_tile",
            side,
            parts: 1,
            threads: THREADS,
            row_bytes,
            direction_bytes,
            maps: false,
        }
    }

    /// The kernel for Hopper.
    fn hopper() -> Self {
        Self {
            file: HOPPER_FILE,
            name: "in_tile_hopper",
            side: 128,
            parts: 2,
            threads: 384,
            // 4 stages of 4 boxes, which begin on a multiple of 1024.
            row_bytes: 4 * 4 * BOX[0] * BOX[1] * 2 + 1024,
            direction_bytes: 128 * 128 * 4,
            maps: true,
        }
    }

    /// The kernel to take. What decides is the same for every batch of a layer.
    pub(super) fn suited(device: &Device, number: ProductNumber, sizes: ProductSizes) -> Self {
        match number {
            ProductNumber::Bf16 | ProductNumber::F16 if is_for_hopper(device, sizes) => Self::hopper(),
            _ => Self::portable(number),
        }
    }

    /// A layer's rows `[S·T, columns]` as the kernel reads them.
    fn rows<T: DeviceFloat>(
        &self,
        rows: &Buffer<T>,
        sizes: ProductSizes,
        columns: usize,
    ) -> Result<Argument> {
        if !self.maps {
            return Ok(rows.read());
        }
        let map = rows.device().sample_map(rows, [sizes.samples, sizes.rows, columns], BOX)?;
        map.map(Argument::SampleMap).ok_or_else(|| Error::Kernel {
            kernel: self.name.to_owned(),
            message: "the device has no unit that copies boxes".to_owned(),
        })
    }

    /// Does what is asked, keeping at most so many numbers for each sample and tile at once.
    ///
    /// # Errors
    /// If the sizes do not fit or the device fails.
    pub(super) fn run<T: DeviceFloat>(
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
        let device = input.device();
        if self.row_bytes + self.direction_bytes + STATIC_BYTES > device.facts().shared_bytes
            && let (Some(products), Some(direction)) = (asked.products.take(), asked.direction.take())
        {
            // Cards below the data centre's have room for the rows alone.
            projected(products, direction, input, d_output, sizes)?;
        }
        if asked.is_nothing() {
            return Ok(());
        }
        let tiles = sizes.outputs.div_ceil(self.side) * sizes.inputs.div_ceil(self.side);
        let chunks = chunks(tiles, sizes.samples);
        let chunk = sizes.samples.div_ceil(chunks);
        let chunks = sizes.samples.div_ceil(chunk);
        // Samples of each chunk in one launch.
        let parts = tiles * self.parts;
        let count = (most_partials / (parts * chunks)).clamp(1, chunk);
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
                        device.uninitialised(parts * slots)
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
                self.rows(input, sizes, sizes.inputs)?,
                self.rows(d_output, sizes, sizes.outputs)?,
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

/// Into how many chunks a batch is cut that are summed apart: as many as leave the fewest multiprocessors idle.
fn chunks(tiles: usize, samples: usize) -> usize {
    // Time for all, if one tile and sample take 1: the rounds that the busiest multiprocessor does, of shorter chunks.
    let time = |chunks: usize| (tiles * chunks).div_ceil(MULTIPROCESSORS) as f64 / chunks as f64;
    (2..=MOST_CHUNKS.min(samples)).fold(1, |best, chunks| {
        // Each chunk's sum is written and read once more.
        if time(chunks) < 0.9 * time(best) { chunks } else { best }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_where_that_keeps_more_of_a_card_at_work() {
        assert_eq!(chunks(192, 64), 2);
        assert_eq!(chunks(64, 64), 2);
        assert_eq!(chunks(256, 64), 1);
        assert_eq!(chunks(1, 1), 1);
        assert_eq!(chunks(1, 3), 3);
    }
}
