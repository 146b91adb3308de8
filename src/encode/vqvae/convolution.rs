//! Convolutions over channels-last maps, as matrix products without an unrolled copy of the input.
//!
//! With a border of one pixel around a map `[side + 2, side + 2, I]`, the three neighbours of a row that a filter's row
//! covers lie side by side in memory, and the next pixel's begin `I` values later. So the windows of a whole strip of rows are
//! one matrix with overlapping rows, and a filter is three products that add up.

use rayon::prelude::*;

use crate::{
    engine::{
        Tensor,
        matmul::{Matrix, linear_forward, product},
    },
    error::{Error, Result},
};

/// Rows of one product, about: enough that packing the filter is paid for, few enough that its output stays in cache.
const PRODUCT_ROWS: usize = 384;

/// A map of one picture, channels last.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    /// Pixels of a side.
    pub(super) side: usize,
    /// Channels of a pixel.
    pub(super) channels: usize,
    /// `[side, side, channels]`.
    pub(super) values: Vec<f32>,
}

impl Map {
    /// Makes this map one of another size; the numbers mean nothing afterwards.
    pub(super) fn resize(&mut self, side: usize, channels: usize) {
        (self.side, self.channels) = (side, channels);
        self.values.resize(side * side * channels, 0.0);
    }

    /// Values of a row of pixels.
    pub(super) fn row(&self) -> usize {
        self.side * self.channels
    }
}

/// A map with a border of one pixel of zeros around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bordered {
    side: usize,
    channels: usize,
    /// `[side + 2, side + 2, channels]`.
    values: Vec<f32>,
}

impl Bordered {
    /// Fills the inside row by row: `write` gets the number of a row of pixels and its `[side, channels]`.
    pub(super) fn fill(&mut self, side: usize, channels: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
        (self.side, self.channels) = (side, channels);
        let width = (side + 2) * channels;
        self.values.resize((side + 2) * width, 0.0);
        self.values.par_chunks_exact_mut(width).enumerate().for_each(|(row, values)| {
            if row == 0 || row == side + 1 {
                values.fill(0.0);
                return;
            }
            values[..channels].fill(0.0);
            values[width - channels..].fill(0.0);
            write(row - 1, &mut values[channels..width - channels]);
        });
    }

    /// The map inside.
    pub(super) fn copy_of(&mut self, map: &Map) {
        let row = map.row();
        self.fill(map.side, map.channels, |y, values| {
            values.copy_from_slice(&map.values[y * row..(y + 1) * row]);
        });
    }

    /// The map inside at twice the side, each pixel four times.
    pub(super) fn copy_of_doubled(&mut self, map: &Map) {
        let (row, channels) = (map.row(), map.channels);
        self.fill(2 * map.side, channels, |y, values| {
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
pub(super) enum Into {
    /// Replaces them.
    Overwrite,
    /// Adds to them.
    Add,
}

/// A convolution by filters of 3×3 or 1×1.
#[derive(Clone, Debug)]
pub(super) struct Convolution {
    inputs: usize,
    outputs: usize,
    /// 3×3: `[3, 3·I, O]`, a filter's rows one after the other; 1×1: `[O, I]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Side of a filter, 1 or 3.
    size: usize,
}

impl Convolution {
    /// From filters `[O, I, 3, 3]` or `[O, I, 1, 1]` and a bias `[O]`, both f32.
    ///
    /// # Errors
    /// If the shapes are others.
    pub(super) fn new(name: &str, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (outputs, inputs, size) = match *weight.shape() {
            [outputs, inputs, 3, 3] => (outputs, inputs, 3),
            [outputs, inputs, 1, 1] => (outputs, inputs, 1),
            ref other => {
                return Err(Error::shape(
                    "convolution",
                    format!("{name} should have filters [O, I, 3, 3] or [O, I, 1, 1], but has {other:?}"),
                ));
            }
        };
        if bias.shape() != [outputs] {
            return Err(Error::shape(
                "convolution",
                format!("{name} should have a bias [{outputs}], but has {:?}", bias.shape()),
            ));
        }
        let (given, bias) = (weight.as_slice::<f32>()?, bias.as_slice::<f32>()?.to_vec());
        let weight = if size == 1 {
            given.to_vec()
        } else {
            let mut rows = vec![0.0; given.len()];
            for (output, filter) in given.chunks_exact(9 * inputs).enumerate() {
                for (input, taps) in filter.chunks_exact(9).enumerate() {
                    for (tap, &value) in taps.iter().enumerate() {
                        rows[(tap * inputs + input) * outputs + output] = value;
                    }
                }
            }
            rows
        };
        Ok(Self { inputs, outputs, weight, bias, size })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Side of a filter, 1 or 3.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Filters of 3×3 as `[3, 3, I, O]`, of one pixel as `[O, I]`.
    pub(super) fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// `[O]`
    pub(super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// A 1×1 convolution of rows of pixels `[N, I]` to `[N, O]`.
    pub(super) fn pointwise(&self, pixels: &[f32], output: &mut [f32]) {
        debug_assert_eq!(self.size, 1, "a filter of one pixel");
        linear_forward(output, pixels, &self.weight, Some(&self.bias), self.inputs, self.outputs);
    }

    /// A 3×3 convolution at every pixel, the border being zeros.
    pub(super) fn apply(&self, input: &Bordered, output: &mut Map, into: Into) {
        if into == Into::Overwrite {
            output.resize(input.side, self.outputs);
        }
        debug_assert_eq!((output.side, output.channels), (input.side, self.outputs), "the map has the size");
        let (side, width) = (input.side, input.side + 2);
        let strip_rows = PRODUCT_ROWS.div_ceil(width).min(side);
        let row = output.row();
        output.values.par_chunks_mut(strip_rows * row).enumerate().for_each_init(
            Vec::new,
            |sums, (strip, output)| {
                let rows = output.len() / row;
                // Two windows of each row but the last begin in the border and mean nothing.
                let windows = rows * width - 2;
                sums.resize(windows * self.outputs, 0.0);
                let first = strip * strip_rows * width * self.inputs;
                self.products(&input.values[first..], self.inputs, windows, width, sums);
                for (output, sums) in output.chunks_exact_mut(row).zip(sums.chunks(width * self.outputs)) {
                    self.finish(output, &sums[..row], into);
                }
            },
        );
    }

    /// A 3×3 convolution at every other pixel, with the border at the right and below alone
    /// (released: `Downsample2x`, padding (0, 1, 0, 1)). The side must be even.
    pub(super) fn apply_halving(&self, input: &Bordered, output: &mut Map) {
        output.resize(input.side / 2, self.outputs);
        let (width, row) = (input.side + 2, output.row());
        output.values.par_chunks_mut(row).enumerate().for_each_init(Vec::new, |sums, (y, output)| {
            sums.resize(row, 0.0);
            // The window begins at the pixel itself, which the border has moved by one row and one column.
            let first = ((2 * y + 1) * width + 1) * self.inputs;
            self.products(&input.values[first..], 2 * self.inputs, output.len() / self.outputs, width, sums);
            self.finish(output, sums, Into::Overwrite);
        });
    }

    /// The windows' products with the filters, `[windows, O]`: windows begin every `step` values, and the rows of a filter
    /// lie `width` pixels apart.
    fn products(&self, values: &[f32], step: usize, windows: usize, width: usize, sums: &mut [f32]) {
        let inner = 3 * self.inputs;
        for (row, weight) in self.weight.chunks_exact(inner * self.outputs).enumerate() {
            let windows = Matrix::strided(&values[row * width * self.inputs..], windows, inner, step);
            product(sums, self.outputs, windows, Matrix::new(weight, inner, self.outputs), row > 0);
        }
    }

    /// Sums and bias into a row of pixels.
    fn finish(&self, output: &mut [f32], sums: &[f32], into: Into) {
        for (output, sums) in output.chunks_exact_mut(self.outputs).zip(sums.chunks_exact(self.outputs)) {
            for ((output, sum), bias) in output.iter_mut().zip(sums).zip(&self.bias) {
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
    use crate::engine::{Purpose, Random};

    fn random(length: usize, stream: u64) -> Vec<f32> {
        let mut random = Random::new(5, Purpose::Test, stream);
        (0..length).map(|_| random.normal() as f32).collect()
    }

    /// The sum over a window in f64, pixels outside being 0.
    fn window(map: &Map, weight: &[f32], (y, x): (usize, usize), output: usize) -> f64 {
        let inputs = map.channels;
        let mut sum = 0.0;
        for (tap, input) in (0..9).flat_map(|tap| (0..inputs).map(move |input| (tap, input))) {
            let (row, column) = ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
            if row < map.side && column < map.side {
                sum += f64::from(map.values[(row * map.side + column) * inputs + input])
                    * f64::from(weight[(output * inputs + input) * 9 + tap]);
            }
        }
        sum
    }

    #[test]
    fn convolutions_are_the_plain_sums_for_any_size() {
        for (side, inputs, outputs) in [(2, 1, 1), (4, 3, 5), (6, 17, 8), (64, 3, 33), (130, 2, 3)] {
            let (weight, bias) = (random(outputs * inputs * 9, 1), random(outputs, 2));
            let convolution = Convolution::new(
                "test",
                &Tensor::new(&[outputs, inputs, 3, 3], weight.clone()).unwrap(),
                &Tensor::new(&[outputs], bias.clone()).unwrap(),
            )
            .unwrap();
            let map = Map { side, channels: inputs, values: random(side * side * inputs, 3) };
            let (mut bordered, mut found, mut halved) = (Bordered::default(), Map::default(), Map::default());
            bordered.copy_of(&map);
            convolution.apply(&bordered, &mut found, Into::Overwrite);
            let mut twice = found.clone();
            convolution.apply(&bordered, &mut twice, Into::Add);
            convolution.apply_halving(&bordered, &mut halved);
            for (y, x, output) in
                (0..side).flat_map(|y| (0..side).flat_map(move |x| (0..outputs).map(move |o| (y, x, o))))
            {
                let truth = window(&map, &weight, (y, x), output) + f64::from(bias[output]);
                let at = (y * side + x) * outputs + output;
                assert!((f64::from(found.values[at]) - truth).abs() < 1e-4, "{side} {inputs} {y} {x}");
                assert!((f64::from(twice.values[at]) - 2.0 * truth).abs() < 2e-4, "{side} {inputs} {y} {x}");
                if y % 2 == 1 && x % 2 == 1 {
                    let at = (y / 2 * (side / 2) + x / 2) * outputs + output;
                    assert!((f64::from(halved.values[at]) - truth).abs() < 1e-4, "{side} {inputs} {y} {x}");
                }
            }
        }
    }

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
