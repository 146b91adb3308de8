//! The CPU reference: convolutions over channels-last maps, as matrix products without an unrolled copy of the input.
//!
//! With a border around a map, such as `[side + 2, side + 2, I]`, the neighbors of a row that a filter's row covers lie side by
//! side in memory, and the next pixel's begin `I` values later. So the windows of a whole strip of rows are one matrix with
//! overlapping rows, and a filter is as many products that add up as it has rows: three of 3×3.

use rayon::prelude::*;

use crate::engine::matmul::{Matrix, linear_forward, product};

/// Rows of one product, about: enough that packing the filter is paid for, few enough that its output stays in cache.
const PRODUCT_ROWS: usize = 384;

/// Rows of filters that are arranged by one task at a time.
const ARRANGED_ROWS: usize = 32;

/// A map of one image, channels last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    /// Pixels of a side.
    pub side: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// `[side, side, channels]`.
    pub values: Vec<f32>,
}

impl Map {
    /// Makes this map one of another size; the numbers mean nothing afterwards.
    pub(crate) fn resize(&mut self, side: usize, channels: usize) {
        (self.side, self.channels) = (side, channels);
        self.values.resize(side * side * channels, 0.0);
    }

    /// Values of a row of pixels.
    pub(crate) fn row(&self) -> usize {
        self.side * self.channels
    }
}

/// Rows of zeros above and below a map, and columns of zeros at its left and right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Border {
    /// Above, and as many below.
    pub rows: usize,
    /// At the left, and as many at the right.
    pub columns: usize,
}

impl Border {
    /// One pixel all around, which leaves a filter of 3×3 the side.
    pub(crate) const ONE: Self = Self { rows: 1, columns: 1 };
}

/// A map with a border of zeros around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bordered {
    side: usize,
    channels: usize,
    border: Border,
    /// `[side + 2 · rows, side + 2 · columns, channels]`.
    values: Vec<f32>,
}

impl Bordered {
    /// Fills the inside row by row: `write` gets the number of a row of pixels and its `[side, channels]`.
    pub(crate) fn fill(
        &mut self,
        side: usize,
        channels: usize,
        border: Border,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        (self.side, self.channels, self.border) = (side, channels, border);
        let (width, beside) = (self.width() * channels, border.columns * channels);
        self.values.resize((side + 2 * border.rows) * width, 0.0);
        self.values.par_chunks_exact_mut(width).enumerate().for_each(|(row, values)| {
            if row < border.rows || row >= side + border.rows {
                values.fill(0.0);
                return;
            }
            values[..beside].fill(0.0);
            values[width - beside..].fill(0.0);
            write(row - border.rows, &mut values[beside..width - beside]);
        });
    }

    /// Pixels of a row, those of the border included.
    fn width(&self) -> usize {
        self.side + 2 * self.border.columns
    }

    /// The map inside.
    pub(crate) fn copy_of(&mut self, map: &Map, border: Border) {
        let row = map.row();
        self.fill(map.side, map.channels, border, |y, values| {
            values.copy_from_slice(&map.values[y * row..(y + 1) * row]);
        });
    }

    /// The map inside at twice the side, each pixel four times, with a border of one pixel.
    pub(crate) fn copy_of_doubled(&mut self, map: &Map) {
        let (row, channels) = (map.row(), map.channels);
        self.fill(2 * map.side, channels, Border::ONE, |y, values| {
            let source = map.values[y / 2 * row..(y / 2 + 1) * row].chunks_exact(channels);
            for (pair, pixel) in values.chunks_exact_mut(2 * channels).zip(source) {
                pair[..channels].copy_from_slice(pixel);
                pair[channels..].copy_from_slice(pixel);
            }
        });
    }
}

/// What a convolution does with the numbers that its output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Into {
    /// Replaces them.
    Overwrite,
    /// Adds to them.
    Add,
}

/// Filters of any size with their bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filters<'a> {
    /// `I`
    pub inputs: usize,
    /// `O`
    pub outputs: usize,
    /// Rows and columns of a filter.
    pub size: [usize; 2],
    /// A filter's rows one after the other, `[rows, columns · I, O]`; 1×1: `[O, I]`. See [`arranged`].
    pub weight: &'a [f32],
    /// `[O]`
    pub bias: &'a [f32],
}

/// Filters `[O, I, rows, columns]` in the order of [`Filters::weight`]. On one thread: this is done at the first use, by
/// whichever of the threads that work on images comes first, while the others wait. Where it asked them for help, one of
/// them, or this one itself, could take up an image meanwhile and wait for ever.
pub(crate) fn arranged(given: &[f32], inputs: usize, outputs: usize, size: [usize; 2]) -> Vec<f32> {
    if size == [1, 1] {
        return given.to_vec();
    }
    let taps = size[0] * size[1];
    let mut filters = vec![0.0; given.len()];
    // Some rows at a time, so few that what is read of a filter is still in the cache for the next row.
    for (chunk, rows) in filters.chunks_mut((ARRANGED_ROWS * outputs).max(1)).enumerate() {
        for output in 0..outputs {
            let filter = &given[output * inputs * taps..][..inputs * taps];
            for (row, values) in rows.chunks_exact_mut(outputs).enumerate() {
                let row = chunk * ARRANGED_ROWS + row;
                values[output] = filter[row % inputs * taps + row / inputs];
            }
        }
    }
    filters
}

impl Filters<'_> {
    /// A 1×1 convolution of rows of pixels `[N, I]` to `[N, O]`.
    pub(crate) fn pointwise(&self, pixels: &[f32], output: &mut [f32]) {
        debug_assert_eq!(self.size, [1, 1], "a filter of one pixel");
        linear_forward(output, pixels, self.weight, Some(self.bias), self.inputs, self.outputs);
    }

    /// The convolution at every place where the filter lies within map and border, `side + 2 · border − size + 1` of them, which
    /// must be as many down as across.
    pub(crate) fn apply(&self, input: &Bordered, output: &mut Map, into: Into) {
        let side = self.places(input);
        if into == Into::Overwrite {
            output.resize(side, self.outputs);
        }
        debug_assert_eq!((output.side, output.channels), (side, self.outputs), "the map has the size");
        let width = input.width();
        let strip_rows = PRODUCT_ROWS.div_ceil(width).min(side);
        let row = output.row();
        output.values.par_chunks_mut(strip_rows * row).enumerate().for_each_init(
            Vec::new,
            |sums, (strip, output)| {
                let rows = output.len() / row;
                // The last windows of each row but the last begin in the border and mean nothing.
                let windows = rows * width - (self.size[1] - 1);
                sums.resize(windows * self.outputs, 0.0);
                let first = strip * strip_rows * width * self.inputs;
                self.products(&input.values[first..], self.inputs, windows, width, sums);
                for (output, sums) in output.chunks_exact_mut(row).zip(sums.chunks(width * self.outputs)) {
                    self.finish(output, &sums[..row], into);
                }
            },
        );
    }

    /// The places of a filter in a row and in a column of what is given.
    fn places(&self, input: &Bordered) -> usize {
        let [rows, columns] = self.size;
        let side = input.width() + 1 - columns;
        debug_assert_eq!(side, input.side + 2 * input.border.rows + 1 - rows, "as many down as across");
        side
    }

    /// The convolution at every other pixel, within map and border: those where [`apply`](Self::apply) has places with even
    /// numbers.
    pub(crate) fn apply_every_other(&self, input: &Bordered, output: &mut Map) {
        self.every_other(input, 0, self.places(input).div_ceil(2), output);
    }

    /// A 3×3 convolution at every other pixel, with the border of one pixel at the right and below alone
    /// (released: `Downsample2x`, padding (0, 1, 0, 1)). The side must be even.
    pub(crate) fn apply_halving(&self, input: &Bordered, output: &mut Map) {
        debug_assert_eq!((input.border, self.size), (Border::ONE, [3, 3]), "as released");
        // The window begins at the pixel itself, which the border has moved by one row and one column.
        self.every_other(input, 1, input.side / 2, output);
    }

    /// At every other place from (`first`, `first`) on, `side` of them each way.
    fn every_other(&self, input: &Bordered, first: usize, side: usize, output: &mut Map) {
        output.resize(side, self.outputs);
        let (width, row) = (input.width(), output.row());
        output.values.par_chunks_mut(row).enumerate().for_each_init(Vec::new, |sums, (y, output)| {
            sums.resize(row, 0.0);
            let first = ((2 * y + first) * width + first) * self.inputs;
            self.products(&input.values[first..], 2 * self.inputs, output.len() / self.outputs, width, sums);
            self.finish(output, sums, Into::Overwrite);
        });
    }

    /// The windows' products with the filters, `[windows, O]`: windows begin every `step` values, and the rows of a filter
    /// lie `width` pixels apart.
    fn products(&self, values: &[f32], step: usize, windows: usize, width: usize, sums: &mut [f32]) {
        let inner = self.size[1] * self.inputs;
        for (row, weight) in self.weight.chunks_exact(inner * self.outputs).enumerate() {
            let windows = Matrix::strided(&values[row * width * self.inputs..], windows, inner, step);
            product(sums, self.outputs, windows, Matrix::new(weight, inner, self.outputs), row > 0);
        }
    }

    /// Sums and bias into a row of pixels.
    fn finish(&self, output: &mut [f32], sums: &[f32], into: Into) {
        for (output, sums) in output.chunks_exact_mut(self.outputs).zip(sums.chunks_exact(self.outputs)) {
            for ((output, sum), bias) in output.iter_mut().zip(sums).zip(self.bias) {
                match into {
                    Into::Overwrite => *output = sum + bias,
                    Into::Add => *output += sum + bias,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_map_has_each_pixel_four_times() {
        let map = Map { side: 2, channels: 1, values: vec![1.0, 2.0, 3.0, 4.0] };
        let mut bordered = Bordered::default();
        bordered.copy_of_doubled(&map);
        let rows: Vec<&[f32]> = bordered.values.chunks_exact(6).collect();
        assert_eq!(rows[0], [0.0; 6]);
        assert_eq!(rows[1], [0.0, 1.0, 1.0, 2.0, 2.0, 0.0]);
        assert_eq!(rows[2], rows[1]);
        assert_eq!(rows[4], [0.0, 3.0, 3.0, 4.0, 4.0, 0.0]);
        assert_eq!(rows[5], [0.0; 6]);
    }
}
