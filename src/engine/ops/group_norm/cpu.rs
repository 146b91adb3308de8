//! CPU reference.

use rayon::prelude::*;

use crate::engine::{
    Float,
    float::vectorized,
    ops::convolution::cpu::{Border, Bordered, Map},
};

/// Parameters of a group norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNorm<'a> {
    /// Number of groups.
    pub groups: usize,
    /// `[C]`
    pub scale: &'a [f32],
    /// `[C]`
    pub shift: &'a [f32],
    /// ε
    pub epsilon: f64,
}

/// Per-channel affine map of a normalized map: `x · factor + offset`.
struct Line {
    factor: Vec<f32>,
    offset: Vec<f32>,
}

impl GroupNorm<'_> {
    /// Normalizes a map into `output`, without SiLU.
    pub(crate) fn apply(&self, map: &Map, output: &mut Map) {
        output.resize(map.side, map.channels);
        let line = self.line(map);
        let row = map.row();
        output
            .values
            .par_chunks_exact_mut(row)
            .zip(map.values.par_chunks_exact(row))
            .for_each(|(output, input)| line.each(input, output, |value| value));
    }

    /// Normalizes a map and applies SiLU, `x · σ(x)`, with zero padding for a convolution.
    pub(crate) fn apply_silu(&self, map: &Map, output: &mut Bordered) {
        let line = self.line(map);
        let row = map.row();
        output.fill(map.side, map.channels, Border::ONE, |y, output| {
            line.each(&map.values[y * row..(y + 1) * row], output, |value| value * value.sigmoid());
        });
    }

    /// Mean and deviation of each group, as an affine map per channel. Sums are accumulated in f64, row by row, and the
    /// rows' sums in order, so that the bits do not depend on threads.
    fn line(&self, map: &Map) -> Line {
        let channels = map.channels;
        debug_assert_eq!(channels, self.scale.len(), "the norm has the map's channels");
        let sums: Vec<Vec<[f64; 2]>> = map
            .values
            .par_chunks_exact(map.row())
            .map(|row| {
                let mut sums = vec![[0.0; 2]; channels];
                vectorized(|| {
                    for pixel in row.chunks_exact(channels) {
                        for (sums, &value) in sums.iter_mut().zip(pixel) {
                            let value = f64::from(value);
                            sums[0] += value;
                            sums[1] += value * value;
                        }
                    }
                });
                sums
            })
            .collect();
        let size = channels / self.groups;
        #[expect(clippy::cast_precision_loss, reason = "pixels of a map")]
        let count = (map.side * map.side * size) as f64;
        let mut line = Line { factor: Vec::with_capacity(channels), offset: Vec::with_capacity(channels) };
        for group in 0..self.groups {
            let range = group * size..(group + 1) * size;
            let total =
                |at: usize| sums.iter().flat_map(|row| &row[range.clone()]).map(|sums| sums[at]).sum::<f64>();
            let mean = total(0) / count;
            let deviation = (total(1) / count - mean * mean).max(0.0);
            let inverse = 1.0 / (deviation + self.epsilon).sqrt();
            for channel in range.clone() {
                let factor = f64::from(self.scale[channel]) * inverse;
                #[expect(clippy::cast_possible_truncation, reason = "the map is f32")]
                line.factor.push(factor as f32);
                #[expect(clippy::cast_possible_truncation, reason = "the map is f32")]
                line.offset.push((f64::from(self.shift[channel]) - mean * factor) as f32);
            }
        }
        line
    }
}

impl Line {
    /// Applies the affine map and `then` to every value of a row of pixels.
    fn each(&self, input: &[f32], output: &mut [f32], then: impl Fn(f32) -> f32) {
        let channels = self.factor.len();
        vectorized(|| {
            for (output, input) in output.chunks_exact_mut(channels).zip(input.chunks_exact(channels)) {
                for (((output, input), factor), offset) in
                    output.iter_mut().zip(input).zip(&self.factor).zip(&self.offset)
                {
                    *output = then(input * factor + offset);
                }
            }
        });
    }
}
