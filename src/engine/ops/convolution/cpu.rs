//! CPU reference: convolutions over channels-last maps, as matrix products without im2col.
//!
//! With a border around a map, such as `[side + 2, side + 2, I]`, the inputs of one filter row are contiguous in
//! memory, and those of the next pixel start `I` values later. The windows of a strip of rows are therefore a matrix
//! with overlapping rows, and a convolution is one accumulated product per filter row: three for 3×3.

use rayon::prelude::*;

use crate::engine::matmul::{Matrix, linear_forward, product};

/// Approximate rows per product: enough to amortize packing the filter, few enough that its output stays in cache.
const PRODUCT_ROWS: usize = 384;

/// Filter rows per task when rearranging.
const ARRANGED_ROWS: usize = 32;

/// A map of one image, channels last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    /// Side length in pixels.
    pub side: usize,
    /// Channels per pixel.
    pub channels: usize,
    /// `[side, side, channels]`.
    pub values: Vec<f32>,
}

impl Map {
    /// Resizes the map; its contents are unspecified afterwards.
    pub(crate) fn resize(&mut self, side: usize, channels: usize) {
        (self.side, self.channels) = (side, channels);
        self.values.resize(side * side * channels, 0.0);
    }

    /// Values per row of pixels.
    pub(crate) fn row(&self) -> usize {
        self.side * self.channels
    }
}

/// Zero padding of a map: rows above and below, columns left and right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Border {
    /// Rows above, and as many below.
    pub rows: usize,
    /// Columns on the left, and as many on the right.
    pub columns: usize,
}

impl Border {
    /// One pixel on all sides, with which a 3×3 convolution preserves the side.
    pub(crate) const ONE: Self = Self { rows: 1, columns: 1 };
}

/// A map with zero padding around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bordered {
    side: usize,
    channels: usize,
    border: Border,
    /// `[side + 2 · rows, side + 2 · columns, channels]`.
    values: Vec<f32>,
}

impl Bordered {
    /// Fills the interior row by row: `write` gets the index of a row and its `[side, channels]`.
    pub(crate) fn fill(
        &mut self,
        side: usize,
        channels: usize,
        border: Border,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        (self.side, self.channels, self.border) = (side, channels, border);
        let (width, margin) = (self.width() * channels, border.columns * channels);
        self.values.resize((side + 2 * border.rows) * width, 0.0);
        self.values.par_chunks_exact_mut(width).enumerate().for_each(|(row, values)| {
            if row < border.rows || row >= side + border.rows {
                values.fill(0.0);
                return;
            }
            values[..margin].fill(0.0);
            values[width - margin..].fill(0.0);
            write(row - border.rows, &mut values[margin..width - margin]);
        });
    }

    /// Pixels per row, including the border.
    fn width(&self) -> usize {
        self.side + 2 * self.border.columns
    }

    /// Copies a map into the interior.
    pub(crate) fn copy_of(&mut self, map: &Map, border: Border) {
        let row = map.row();
        self.fill(map.side, map.channels, border, |y, values| {
            values.copy_from_slice(&map.values[y * row..(y + 1) * row]);
        });
    }

    /// Copies a map into the interior at twice the side (nearest), with a border of one pixel.
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

/// How a convolution writes its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Into {
    /// Overwrites the output.
    Overwrite,
    /// Adds to the output.
    Add,
}

/// Filters of any size with their bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filters<'a> {
    /// `I`
    pub inputs: usize,
    /// `O`
    pub outputs: usize,
    /// Rows and columns of the filters.
    pub size: [usize; 2],
    /// Filters as consecutive rows, `[rows, columns · I, O]`; 1×1: `[O, I]`. See [`arranged`].
    pub weight: &'a [f32],
    /// `[O]`
    pub bias: &'a [f32],
}

/// Rearranges filters `[O, I, rows, columns]` in the order of [`Filters::weight`]. Single-threaded: it runs on first
/// use, in the first thread that needs the filters, while others wait for them. If it used the thread pool, one of
/// these threads could start another image meanwhile and deadlock.
pub(crate) fn arranged(given: &[f32], inputs: usize, outputs: usize, size: [usize; 2]) -> Vec<f32> {
    if size == [1, 1] {
        return given.to_vec();
    }
    let taps = size[0] * size[1];
    let mut filters = vec![0.0; given.len()];
    // Few enough rows at a time that the filter's cache lines are still cached for the next row.
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
    /// A 1×1 convolution of pixels `[N, I]` to `[N, O]`.
    pub(crate) fn pointwise(&self, pixels: &[f32], output: &mut [f32]) {
        debug_assert_eq!(self.size, [1, 1], "a filter of one pixel");
        linear_forward(output, pixels, self.weight, Some(self.bias), self.inputs, self.outputs);
    }

    /// The convolution at every position where the filter lies within map and border: `side + 2 · border − size + 1`
    /// positions, which must be equal in both dimensions.
    pub(crate) fn apply(&self, input: &Bordered, output: &mut Map, into: Into) {
        let side = self.positions(input);
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
                // The last windows of each row but the last start in the border and are meaningless.
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

    /// Number of positions of a filter per row and column of the input.
    fn positions(&self, input: &Bordered) -> usize {
        let [rows, columns] = self.size;
        let side = input.width() + 1 - columns;
        debug_assert_eq!(side, input.side + 2 * input.border.rows + 1 - rows, "as many down as across");
        side
    }

    /// The convolution with stride 2, within map and border: the even positions of [`apply`](Self::apply).
    pub(crate) fn apply_every_other(&self, input: &Bordered, output: &mut Map) {
        self.every_other(input, 0, self.positions(input).div_ceil(2), output);
    }

    /// A 3×3 convolution with stride 2, padded by one pixel on the right and below only
    /// (upstream: `Downsample2x`, padding (0, 1, 0, 1)). The side must be even.
    pub(crate) fn apply_halving(&self, input: &Bordered, output: &mut Map) {
        debug_assert_eq!((input.border, self.size), (Border::ONE, [3, 3]), "3×3 with a border of one pixel");
        // The window starts at the pixel itself, which the border has moved by one row and one column.
        self.every_other(input, 1, input.side / 2, output);
    }

    /// Every other position from (`first`, `first`) on, `side` per dimension.
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

    /// The products of windows and filters, `[windows, O]`: windows start every `step` values, and the rows of a filter
    /// are `width` pixels apart.
    fn products(&self, values: &[f32], step: usize, windows: usize, width: usize, sums: &mut [f32]) {
        let inner = self.size[1] * self.inputs;
        for (row, weight) in self.weight.chunks_exact(inner * self.outputs).enumerate() {
            let windows = Matrix::strided(&values[row * width * self.inputs..], windows, inner, step);
            product(sums, self.outputs, windows, Matrix::new(weight, inner, self.outputs), row > 0);
        }
    }

    /// Writes sums and bias to a row of pixels.
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
