//! A convolution whose weights are read from their file on first use.

use std::{borrow::Cow, sync::OnceLock};

use crate::{
    engine::{
        Tensor,
        ops::convolution::{
            cpu::{self, Bordered, Into, Map},
            cuda::FilterOrder,
        },
    },
    error::{Error, Result},
    weights::StoredFloats,
};

/// A convolution with filters of any size.
#[derive(Clone, Debug)]
pub(crate) struct Convolution {
    inputs: usize,
    outputs: usize,
    /// Filters as consecutive rows, `[rows, columns · I, O]`; 1×1: `[O, I]`. Filters in a file are rearranged on first
    /// use: most commands need part of a network, and some need none.
    weight: OnceLock<Vec<f32>>,
    /// `[O, I, rows, columns]`
    given: Option<StoredFloats>,
    bias: Vec<f32>,
    /// Rows and columns of the filters.
    size: [usize; 2],
}

impl Convolution {
    /// Takes filters `[O, I, rows, columns]` and a bias `[O]`, both f32.
    ///
    /// # Errors
    /// If the shapes do not match.
    pub(crate) fn new(name: &str, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let convolution = Self::of(name, weight.shape(), bias, None)?;
        let weight = convolution.arranged(weight.as_slice::<f32>()?);
        Ok(Self { weight: OnceLock::from(weight), ..convolution })
    }

    /// As [`new`](Self::new), but the filters are in a file and are read on first use.
    ///
    /// # Errors
    /// If the shapes do not match.
    pub(crate) fn in_file(name: &str, weight: StoredFloats, bias: &Tensor) -> Result<Self> {
        let shape = weight.shape().to_vec();
        Self::of(name, &shape, bias, Some(weight))
    }

    fn of(name: &str, shape: &[usize], bias: &Tensor, given: Option<StoredFloats>) -> Result<Self> {
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

    /// Rearranges filters `[O, I, rows, columns]` for the products of the CPU reference.
    fn arranged(&self, given: &[f32]) -> Vec<f32> {
        cpu::arranged(given, self.inputs, self.outputs, self.size)
    }

    /// The filters in the layout of the CPU reference.
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

    /// Rows and columns of the filters.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The filters and their layout: that of the file, unless they have been rearranged.
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

    /// The filters for the CPU reference.
    fn filters_on_host(&self) -> cpu::Filters<'_> {
        let Self { inputs, outputs, size, .. } = *self;
        cpu::Filters { inputs, outputs, size, weight: self.weight(), bias: &self.bias }
    }

    /// See [`cpu::Filters::pointwise`].
    pub(crate) fn pointwise(&self, pixels: &[f32], output: &mut [f32]) {
        self.filters_on_host().pointwise(pixels, output);
    }

    /// See [`cpu::Filters::apply`].
    pub(crate) fn apply(&self, input: &Bordered, output: &mut Map, into: Into) {
        self.filters_on_host().apply(input, output, into);
    }

    /// See [`cpu::Filters::apply_every_other`].
    pub(crate) fn apply_every_other(&self, input: &Bordered, output: &mut Map) {
        self.filters_on_host().apply_every_other(input, output);
    }

    /// See [`cpu::Filters::apply_halving`].
    pub(crate) fn apply_halving(&self, input: &Bordered, output: &mut Map) {
        self.filters_on_host().apply_halving(input, output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Purpose, Random, ops::convolution::cpu::Border};

    fn random(length: usize, stream: u64) -> Vec<f32> {
        let mut random = Random::new(5, Purpose::Test, stream);
        (0..length).map(|_| random.normal() as f32).collect()
    }

    /// The sum over a window in f64, with zero padding.
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
                let positions = side + 2 * border.rows + 1 - size[0];
                assert_eq!((found.side, halved.side), (positions, positions.div_ceil(2)));
                for (y, x) in (0..positions).flat_map(|y| (0..positions).map(move |x| (y, x))) {
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
                        let at = (y * positions + x) * outputs + output;
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
}
