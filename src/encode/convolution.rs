//! Convolutions over channels-last maps, as matrix products without an unrolled copy of the input.
//!
//! With a border around a map, such as `[side + 2, side + 2, I]`, the neighbours of a row that a filter's row covers lie side by
//! side in memory, and the next pixel's begin `I` values later. So the windows of a whole strip of rows are one matrix with
//! overlapping rows, and a filter is as many products that add up as it has rows: three of 3×3.

use std::{borrow::Cow, sync::OnceLock};

use rayon::prelude::*;

use crate::{
    engine::{
        Tensor,
        matmul::{Matrix, linear_forward, product},
        ops::convolution::cuda::FilterOrder,
    },
    error::{Error, Result},
    weights::Floats,
};

/// Rows of one product, about: enough that packing the filter is paid for, few enough that its output stays in cache.
const PRODUCT_ROWS: usize = 384;

/// Rows of filters that are arranged by one task at a time.
const ARRANGED_ROWS: usize = 32;

/// A map of one picture, channels last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    /// Pixels of a side.
    pub(crate) side: usize,
    /// Channels of a pixel.
    pub(crate) channels: usize,
    /// `[side, side, channels]`.
    pub(crate) values: Vec<f32>,
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
    pub(crate) rows: usize,
    /// At the left, and as many at the right.
    pub(crate) columns: usize,
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

/// A convolution by filters of any size.
#[derive(Clone, Debug)]
pub(crate) struct Convolution {
    inputs: usize,
    outputs: usize,
    /// A filter's rows one after the other, `[rows, columns · I, O]`; 1×1: `[O, I]`. Of filters that are still in their file
    /// when they are first needed: most commands use a part of a network, and some none.
    weight: OnceLock<Vec<f32>>,
    /// `[O, I, rows, columns]`
    given: Option<Floats>,
    bias: Vec<f32>,
    /// Rows and columns of a filter.
    size: [usize; 2],
}

impl Convolution {
    /// From filters `[O, I, rows, columns]` and a bias `[O]`, both f32.
    ///
    /// # Errors
    /// If the shapes are others.
    pub(crate) fn new(name: &str, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let convolution = Self::of(name, weight.shape(), bias, None)?;
        let weight = convolution.arranged(weight.as_slice::<f32>()?);
        Ok(Self { weight: OnceLock::from(weight), ..convolution })
    }

    /// The same from filters in a file, which are read when they are needed.
    ///
    /// # Errors
    /// If the shapes are others.
    pub(crate) fn in_file(name: &str, weight: Floats, bias: &Tensor) -> Result<Self> {
        let shape = weight.shape().to_vec();
        Self::of(name, &shape, bias, Some(weight))
    }

    fn of(name: &str, shape: &[usize], bias: &Tensor, given: Option<Floats>) -> Result<Self> {
        let (outputs, inputs, size) = match *shape {
            [outputs, inputs, rows, columns] if rows > 0 && columns > 0 => (outputs, inputs, [rows, columns]),
            ref other => {
                return Err(Error::shape(
                    "convolution",
                    format!("{name} should have filters [O, I, rows, columns], but has {other:?}"),
                ));
            }
        };
        if bias.shape() != [outputs] {
            return Err(Error::shape(
                "convolution",
                format!("{name} should have a bias [{outputs}], but has {:?}", bias.shape()),
            ));
        }
        let bias = bias.as_slice::<f32>()?.to_vec();
        Ok(Self { inputs, outputs, weight: OnceLock::new(), given, bias, size })
    }

    /// Filters `[O, I, rows, columns]` as products on the host take them. On one thread: this is done at the first use, by
    /// whichever of the threads that work on pictures comes first, while the others wait. Where it asked them for help, one of
    /// them, or this one itself, could take up a picture meanwhile and wait for ever.
    fn arranged(&self, given: &[f32]) -> Vec<f32> {
        if self.size == [1, 1] {
            return given.to_vec();
        }
        let mut filters = vec![0.0; given.len()];
        let chunks = filters.chunks_mut(self.chunk()).enumerate();
        chunks.for_each(|(chunk, rows)| self.arrange(given, chunk, rows));
        filters
    }

    /// Numbers of some rows, so few that what is read of a filter is still in the cache for the next row.
    fn chunk(&self) -> usize {
        (ARRANGED_ROWS * self.outputs).max(1)
    }

    /// Fills the rows of a chunk of `[rows, columns, I, O]`.
    fn arrange(&self, given: &[f32], chunk: usize, rows: &mut [f32]) {
        let (inputs, outputs, taps) = (self.inputs, self.outputs, self.size[0] * self.size[1]);
        for output in 0..outputs {
            let filter = &given[output * inputs * taps..][..inputs * taps];
            for (row, values) in rows.chunks_exact_mut(outputs).enumerate() {
                let row = chunk * ARRANGED_ROWS + row;
                values[output] = filter[row % inputs * taps + row / inputs];
            }
        }
    }

    /// As products on the host take them.
    fn weight(&self) -> &[f32] {
        let read = || self.given.as_ref().map_or_else(Vec::new, |given| self.arranged(&given.values()));
        self.weight.get_or_init(read)
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Rows and columns of a filter.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Filters, and in which order: as they lie in their file, if they were not arranged yet.
    pub(crate) fn filters(&self) -> (Cow<'_, [f32]>, FilterOrder) {
        match &self.given {
            Some(given) if self.weight.get().is_none() => (given.values(), FilterOrder::OutputsFirst),
            _ if self.size == [1, 1] => (Cow::Borrowed(self.weight()), FilterOrder::OutputsFirst),
            _ => (Cow::Borrowed(self.weight()), FilterOrder::OutputsLast),
        }
    }

    /// `[O]`
    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// A 1×1 convolution of rows of pixels `[N, I]` to `[N, O]`.
    pub(crate) fn pointwise(&self, pixels: &[f32], output: &mut [f32]) {
        debug_assert_eq!(self.size, [1, 1], "a filter of one pixel");
        linear_forward(output, pixels, self.weight(), Some(&self.bias), self.inputs, self.outputs);
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
        for (row, weight) in self.weight().chunks_exact(inner * self.outputs).enumerate() {
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
            bordered.copy_of(&map, Border::ONE);
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
    fn filters_of_any_size_are_the_plain_sums_with_and_without_a_border() {
        let border = |rows, columns| Border { rows, columns };
        for (size, border) in [
            ([1, 7], border(0, 3)),
            ([7, 1], border(3, 0)),
            ([5, 5], border(2, 2)),
            ([3, 3], border(0, 0)),
            ([2, 2], border(0, 0)),
        ] {
            for (side, inputs, outputs) in [(9, 3, 5), (37, 8, 40)] {
                let taps = size[0] * size[1];
                let (weight, bias) = (random(outputs * inputs * taps, 1), random(outputs, 2));
                let convolution = Convolution::new(
                    "test",
                    &Tensor::new(&[outputs, inputs, size[0], size[1]], weight.clone()).unwrap(),
                    &Tensor::new(&[outputs], bias.clone()).unwrap(),
                )
                .unwrap();
                let map = Map { side, channels: inputs, values: random(side * side * inputs, 3) };
                let (mut bordered, mut found, mut halved) =
                    (Bordered::default(), Map::default(), Map::default());
                bordered.copy_of(&map, border);
                convolution.apply(&bordered, &mut found, Into::Overwrite);
                convolution.apply_every_other(&bordered, &mut halved);
                let places = side + 2 * border.rows + 1 - size[0];
                assert_eq!((found.side, halved.side), (places, places.div_ceil(2)));
                for (y, x) in (0..places).flat_map(|y| (0..places).map(move |x| (y, x))) {
                    for output in 0..outputs {
                        let mut truth = f64::from(bias[output]);
                        for (tap, input) in (0..taps).flat_map(|tap| (0..inputs).map(move |i| (tap, i))) {
                            let row = (y + tap / size[1]).wrapping_sub(border.rows);
                            let column = (x + tap % size[1]).wrapping_sub(border.columns);
                            if row < side && column < side {
                                truth += f64::from(map.values[(row * side + column) * inputs + input])
                                    * f64::from(weight[(output * inputs + input) * taps + tap]);
                            }
                        }
                        let at = (y * places + x) * outputs + output;
                        assert!(
                            (f64::from(found.values[at]) - truth).abs() < 1e-4,
                            "{size:?} {side} {y} {x}"
                        );
                        if y % 2 == 0 && x % 2 == 0 {
                            let at = (y / 2 * halved.side + x / 2) * outputs + output;
                            assert!(
                                (f64::from(halved.values[at]) - truth).abs() < 1e-4,
                                "{size:?} {side} {y} {x}"
                            );
                        }
                    }
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
