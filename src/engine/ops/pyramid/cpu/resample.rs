//! Resampling of square feature maps: area (adaptive average) down, bicubic up, and the pyramid's 3×3 convolution.
//!
//! Maps are channels-last, `[side, side, C]`, so that every inner loop runs over contiguous channels. Multiplications
//! and additions are not fused, so the results do not depend on the CPU's vector instructions.

use pulp::{Arch, Simd, WithSimd};

use crate::{
    engine::Tensor,
    error::{Error, Result},
};

/// The bicubic kernel's parameter, as in `torch.nn.functional.interpolate`.
const A: f64 = -0.75;

/// Bicubic resizing of a square map: corners not aligned, A = -0.75, no antialiasing, samples clamped to the border
/// (`F.interpolate(mode="bicubic")` in the upstream `models/quant.py`).
#[derive(Clone, Debug)]
pub struct Bicubic {
    input: usize,
    taps: Vec<[(usize, f32); 4]>,
}

impl Bicubic {
    /// Prepares resizing from maps of side `input` to maps of side `output`.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "positions on a map of a few pixels"
    )]
    pub fn new(input: usize, output: usize) -> Self {
        let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
        let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
        let scale = input as f64 / output as f64;
        let taps = (0..output)
            .map(|at| {
                let position = scale * (at as f64 + 0.5) - 0.5;
                let floor = position.floor();
                let t = position - floor;
                let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
                std::array::from_fn(|tap| {
                    let source = (floor as isize - 1 + tap as isize).clamp(0, input as isize - 1);
                    (source as usize, weights[tap] as f32)
                })
            })
            .collect();
        Self { input, taps }
    }

    /// Four input positions and their weights for each output position.
    pub(crate) fn taps(&self) -> &[[(usize, f32); 4]] {
        &self.taps
    }

    /// Resizes `map` `[input, input, C]` into `resized` `[output, output, C]`; `rows` is scratch space.
    ///
    /// # Panics
    /// If the slices do not have these sizes.
    pub fn resize(&self, map: &[f32], channels: usize, rows: &mut Vec<f32>, resized: &mut [f32]) {
        let output = self.taps.len();
        assert_eq!(map.len(), self.input * self.input * channels, "the map has the size it was made for");
        assert_eq!(resized.len(), output * output * channels, "the result has the size it was made for");
        rows.clear();
        rows.resize(self.input * output * channels, 0.0);
        Arch::new().dispatch(Resize { taps: &self.taps, input: self.input, channels, map, rows, resized });
    }
}

struct Resize<'a> {
    taps: &'a [[(usize, f32); 4]],
    input: usize,
    channels: usize,
    map: &'a [f32],
    rows: &'a mut [f32],
    resized: &'a mut [f32],
}

impl WithSimd for Resize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { taps, input, channels, map, rows, resized } = self;
        let width = taps.len() * channels;
        for y in 0..input {
            let row = &map[y * input * channels..][..input * channels];
            for (x, taps) in taps.iter().enumerate() {
                let target = &mut rows[y * width + x * channels..][..channels];
                blend(taps, row, channels, target);
            }
        }
        for (y, taps) in taps.iter().enumerate() {
            blend(taps, rows, width, &mut resized[y * width..][..width]);
        }
    }
}

/// The weighted sum of four runs of `length` values.
#[inline(always)]
fn blend(taps: &[(usize, f32); 4], source: &[f32], length: usize, target: &mut [f32]) {
    let [a, b, c, d] = taps.map(|(at, weight)| (&source[at * length..][..length], weight));
    for (at, target) in target[..length].iter_mut().enumerate() {
        *target = a.0[at] * a.1 + b.0[at] * b.1 + c.0[at] * c.1 + d.0[at] * d.1;
    }
}

/// Adaptive average pooling of a square map to a smaller or equal side, for any ratio: output `i` is the
/// mean over inputs `floor(i·in/out)..ceil((i+1)·in/out)` (`F.interpolate(mode="area")`).
#[derive(Clone, Debug)]
pub struct Area {
    input: usize,
    windows: Vec<(usize, usize)>,
}

impl Area {
    /// Prepares pooling from maps of side `input` to maps of side `output`.
    pub fn new(input: usize, output: usize) -> Self {
        let windows =
            (0..output).map(|at| (at * input / output, ((at + 1) * input).div_ceil(output))).collect();
        Self { input, windows }
    }

    /// Pools `map` `[input, input, C]` into `pooled` `[output, output, C]`.
    ///
    /// # Panics
    /// If the slices do not have these sizes.
    pub fn pool(&self, map: &[f32], channels: usize, pooled: &mut [f32]) {
        assert_eq!(map.len(), self.input * self.input * channels, "the map has the size it was made for");
        let cells = self.windows.len() * self.windows.len();
        assert_eq!(pooled.len(), cells * channels, "the result has the size it was made for");
        Arch::new().dispatch(Pool { windows: &self.windows, input: self.input, channels, map, pooled });
    }
}

struct Pool<'a> {
    windows: &'a [(usize, usize)],
    input: usize,
    channels: usize,
    map: &'a [f32],
    pooled: &'a mut [f32],
}

impl WithSimd for Pool<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { windows, input, channels, map, pooled } = self;
        let mut cells = pooled.chunks_exact_mut(channels);
        for &(top, bottom) in windows {
            for &(left, right) in windows {
                let Some(cell) = cells.next() else { return };
                cell.fill(0.0);
                for y in top..bottom {
                    for x in left..right {
                        let source = &map[(y * input + x) * channels..][..channels];
                        for (sum, value) in cell.iter_mut().zip(source) {
                            *sum += value;
                        }
                    }
                }
                #[expect(clippy::cast_precision_loss, reason = "a count of pixels")]
                let count = ((bottom - top) * (right - left)) as f32;
                for sum in cell {
                    *sum /= count;
                }
            }
        }
    }
}

const LANES: usize = 16;
const PIXELS: usize = 4;

/// The pyramid's residual convolution φ(h) = (1 - r)·h + r·conv3×3(h), zero-padded (`Phi` in the upstream
/// `models/quant.py`, where r is `quant_resi` = 0.5).
#[derive(Clone, Debug)]
pub struct ResidualConvolution {
    ratio: f32,
    channels: usize,
    /// Output channels in groups of [`LANES`], `[groups, 9, C, LANES]`, so that one group's weights stay in cache.
    packed: Vec<[f32; LANES]>,
    bias: Vec<[f32; LANES]>,
}

impl ResidualConvolution {
    /// Builds φ from PyTorch's `weight` `[C, C, 3, 3]` and `bias` `[C]`, of any float type.
    ///
    /// # Errors
    /// If the shapes do not match.
    #[expect(clippy::cast_possible_truncation, reason = "weights are used as f32")]
    pub fn new(weight: &Tensor, bias: &Tensor, ratio: f32) -> Result<Self> {
        let channels = bias.len();
        if bias.shape() != [channels] || weight.shape() != [channels, channels, 3, 3] || channels == 0 {
            return Err(Error::shape(
                "convolution of the pyramid",
                format!(
                    "expected weight [C, C, 3, 3] and bias [C], got {:?} and {:?}",
                    weight.shape(),
                    bias.shape()
                ),
            ));
        }
        let (weight, bias) = (weight.to_f64_vec()?, bias.to_f64_vec()?);
        let groups = channels.div_ceil(LANES);
        let mut packed = vec![[0.0; LANES]; groups * 9 * channels];
        let mut packed_bias = vec![[0.0; LANES]; groups];
        for out in 0..channels {
            let (group, lane) = (out / LANES, out % LANES);
            packed_bias[group][lane] = bias[out] as f32;
            for into in 0..channels {
                for tap in 0..9 {
                    packed[(group * 9 + tap) * channels + into][lane] =
                        weight[(out * channels + into) * 9 + tap] as f32;
                }
            }
        }
        Ok(Self { ratio, channels, packed, bias: packed_bias })
    }

    /// The channels `C`.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// The weights, `[9, C in, C out]`, window in row-major order.
    pub(crate) fn weight(&self) -> Vec<f32> {
        let mut weight = Vec::with_capacity(9 * self.channels * self.channels);
        for row in 0..9 * self.channels {
            weight.extend(
                (0..self.channels).map(|out| self.packed[out / LANES * 9 * self.channels + row][out % LANES]),
            );
        }
        weight
    }

    /// The bias, `[C]`.
    pub(crate) fn bias(&self) -> Vec<f32> {
        self.bias.iter().flatten().copied().take(self.channels).collect()
    }

    /// The share r of the convolution.
    pub(crate) fn ratio(&self) -> f32 {
        self.ratio
    }

    /// Applies φ in place to `map` `[side, side, C]`; `padded` is scratch space.
    ///
    /// # Panics
    /// If the slice does not have this size.
    pub(crate) fn apply(&self, map: &mut [f32], side: usize, padded: &mut Vec<f32>) {
        assert_eq!(map.len(), side * side * self.channels, "the map has the size given");
        let width = (side + 2) * self.channels;
        padded.clear();
        padded.resize((side + 2) * width, 0.0);
        for (y, row) in map.chunks_exact(side * self.channels).enumerate() {
            padded[(y + 1) * width + self.channels..][..row.len()].copy_from_slice(row);
        }
        Arch::new().dispatch(Convolve { convolution: self, side, padded, map });
    }
}

struct Convolve<'a> {
    convolution: &'a ResidualConvolution,
    side: usize,
    padded: &'a [f32],
    map: &'a mut [f32],
}

impl WithSimd for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { convolution, side, padded, map } = self;
        let group = 9 * convolution.channels;
        for (at, (weights, bias)) in convolution.packed.chunks_exact(group).zip(&convolution.bias).enumerate()
        {
            for y in 0..side {
                let mut x = 0;
                while x + PIXELS <= side {
                    convolve::<PIXELS>(convolution, at, weights, bias, (side, y, x), padded, map);
                    x += PIXELS;
                }
                for x in x..side {
                    convolve::<1>(convolution, at, weights, bias, (side, y, x), padded, map);
                }
            }
        }
    }
}

/// One group of output channels of `N` neighboring pixels.
#[inline(always)]
fn convolve<const N: usize>(
    convolution: &ResidualConvolution,
    group: usize,
    weights: &[[f32; LANES]],
    bias: &[f32; LANES],
    (side, y, x): (usize, usize, usize),
    padded: &[f32],
    map: &mut [f32],
) {
    let channels = convolution.channels;
    let mut sums = [*bias; N];
    for (tap, weights) in weights.chunks_exact(channels).enumerate() {
        let start = ((y + tap / 3) * (side + 2) + x + tap % 3) * channels;
        let source: [&[f32]; N] =
            std::array::from_fn(|pixel| &padded[start + pixel * channels..][..channels]);
        for (into, weights) in weights.iter().enumerate() {
            for pixel in 0..N {
                let value = source[pixel][into];
                for lane in 0..LANES {
                    sums[pixel][lane] += value * weights[lane];
                }
            }
        }
    }
    let used = LANES.min(channels - group * LANES);
    for (pixel, sums) in sums.iter().enumerate() {
        let target = &mut map[(y * side + x + pixel) * channels + group * LANES..][..used];
        for (value, sum) in target.iter_mut().zip(sums) {
            *value = *value * (1.0 - convolution.ratio) + sum * convolution.ratio;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Purpose, Random};

    fn random(length: usize) -> Vec<f32> {
        let mut random = Random::new(3, Purpose::Test, length as u64);
        (0..length).map(|_| random.normal() as f32).collect()
    }

    #[test]
    fn area_of_a_ratio_that_is_not_whole_takes_overlapping_windows() {
        let area = Area::new(4, 3);
        assert_eq!(area.windows, [(0, 2), (1, 3), (2, 4)]);
        let map: Vec<f32> = (0..16u8).map(f32::from).collect();
        let mut pooled = vec![0.0; 9];
        area.pool(&map, 1, &mut pooled);
        assert_eq!(pooled, [2.5, 3.5, 4.5, 6.5, 7.5, 8.5, 10.5, 11.5, 12.5]);
    }

    #[test]
    fn area_to_the_same_side_is_the_identity() {
        let map = random(5 * 5 * 3);
        let mut pooled = vec![0.0; map.len()];
        Area::new(5, 5).pool(&map, 3, &mut pooled);
        assert_eq!(pooled, map);
    }

    #[test]
    fn bicubic_keeps_constants_and_gives_the_kernel_of_a_minus_three_quarters() {
        let (mut rows, mut resized) = (Vec::new(), vec![0.0; 7 * 7]);
        Bicubic::new(3, 7).resize(&[2.0; 9], 1, &mut rows, &mut resized);
        assert!(resized.iter().all(|value| (value - 2.0).abs() < 1e-6), "{resized:?}");
        // Halfway between two pixels the taps are (-3/32, 19/32, 19/32, -3/32) for A = -0.75.
        let middle = Bicubic::new(4, 1).taps[0];
        let expected = [(0, -0.093_75), (1, 0.593_75), (2, 0.593_75), (3, -0.093_75)];
        assert_eq!(middle, expected);
    }

    #[test]
    fn bicubic_of_one_pixel_is_that_pixel_everywhere() {
        let (mut rows, mut resized) = (Vec::new(), vec![0.0; 4 * 4 * 2]);
        Bicubic::new(1, 4).resize(&[3.0, -5.0], 2, &mut rows, &mut resized);
        assert!(resized.chunks_exact(2).all(|pixel| pixel == [3.0, -5.0]), "{resized:?}");
    }

    #[test]
    fn convolution_is_the_plain_sum_for_any_number_of_channels_and_side() {
        for (channels, side) in [(1, 1), (3, 5), (8, 4), (17, 6), (32, 3)] {
            let weight = random(channels * channels * 9);
            let bias = random(channels);
            let convolution = ResidualConvolution::new(
                &Tensor::new(&[channels, channels, 3, 3], weight.clone()).unwrap(),
                &Tensor::new(&[channels], bias.clone()).unwrap(),
                0.25,
            )
            .unwrap();
            let map = random(side * side * channels + 1)[1..].to_vec();
            let mut found = map.clone();
            convolution.apply(&mut found, side, &mut Vec::new());
            for y in 0..side {
                for x in 0..side {
                    for out in 0..channels {
                        let mut sum = f64::from(bias[out]);
                        for (tap, into) in (0..9).flat_map(|tap| (0..channels).map(move |into| (tap, into))) {
                            let (row, column) =
                                ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
                            if row < side && column < side {
                                sum += f64::from(map[(row * side + column) * channels + into])
                                    * f64::from(weight[(out * channels + into) * 9 + tap]);
                            }
                        }
                        let at = (y * side + x) * channels + out;
                        let expected = 0.75 * f64::from(map[at]) + 0.25 * sum;
                        assert!((f64::from(found[at]) - expected).abs() < 2e-5, "{channels} {side} {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn convolution_refuses_shapes_that_do_not_fit() {
        let weight = Tensor::new(&[2, 2, 3, 3], vec![0f32; 36]).unwrap();
        let bias = Tensor::new(&[3], vec![0f32; 3]).unwrap();
        let error = ResidualConvolution::new(&weight, &bias, 0.5).unwrap_err().to_string();
        assert!(error.contains("[2, 2, 3, 3]") && error.contains("[3]"), "{error}");
    }
}
