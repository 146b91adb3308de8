//! Resampling of 8-bit images, bit-identical to Pillow (`src/libImaging/Resample.c`): fixed-point coefficients, a
//! horizontal and then a vertical pass, each rounded to 8 bits.

use std::f64::consts::PI;

/// Fraction bits of a coefficient: 32, minus 8 for the pixel and 2 for the overshoot of the filter.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Lobes of the Lanczos filter on each side.
const LANCZOS_SUPPORT: f64 = 3.0;

/// The resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Three lobes on each side; used for training images.
    Lanczos,
    /// Keys' cubic with a = −½; used for CLIP's images.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => LANCZOS_SUPPORT,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Lanczos => lanczos(x),
            Self::Bicubic => bicubic(x.abs()),
        }
    }
}

/// The input pixels of one output pixel, and their fixed-point coefficients.
struct Taps {
    first: usize,
    coefficients: Vec<i32>,
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

fn lanczos(x: f64) -> f64 {
    if (-LANCZOS_SUPPORT..LANCZOS_SUPPORT).contains(&x) { sinc(x) * sinc(x / LANCZOS_SUPPORT) } else { 0.0 }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// `precompute_coeffs` and `normalize_coeffs_8bpc`: one entry per output pixel.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "truncating where the C code truncates is what makes the result equal"
)]
fn taps(input_side: usize, output_side: usize, filter: Filter) -> Vec<Taps> {
    let scale = input_side as f64 / output_side as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..output_side)
        .map(|output| {
            let center = (output as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input_side);
            let weights: Vec<f64> =
                (first..end).map(|input| filter.weight((input as f64 - center + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            let one = f64::from(1u32 << PRECISION_BITS);
            let coefficients = weights
                .into_iter()
                .map(|weight| if sum == 0.0 { weight } else { weight / sum })
                .map(|weight| (weight * one + if weight < 0.0 { -0.5 } else { 0.5 }) as i32)
                .collect();
            Taps { first, coefficients }
        })
        .collect()
}

fn to_level(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resamples an RGB image of `input` pixels (width and height) to `output`; the result is `[height, width, 3]`.
///
/// `read_row(y, row)` fills `row`, `[width, 3]`, with row `y` of the input. It is called once per row, from the top,
/// so that the input need not exist as a whole. All sizes must be at least 1.
pub fn resample(
    input: [usize; 2],
    output: [usize; 2],
    filter: Filter,
    mut read_row: impl FnMut(usize, &mut [u8]),
) -> Vec<u8> {
    let ([input_width, input_height], [width, height]) = (input, output);
    let stride = width * 3;
    if input == output {
        let mut output = vec![0; height * stride];
        output.chunks_exact_mut(stride).enumerate().for_each(|(y, row)| read_row(y, row));
        return output;
    }
    let across = taps(input_width, width, filter);
    let down = taps(input_height, height, filter);
    let half = 1 << (PRECISION_BITS - 1);

    let mut row = vec![0; input_width * 3];
    let mut narrow = vec![0; input_height * stride];
    for (y, narrow_row) in narrow.chunks_exact_mut(stride).enumerate() {
        read_row(y, &mut row);
        for (pixel, Taps { first, coefficients }) in narrow_row.chunks_exact_mut(3).zip(&across) {
            let mut sums = [half; 3];
            for (input, &coefficient) in row[first * 3..].chunks_exact(3).zip(coefficients) {
                for channel in 0..3 {
                    sums[channel] += i32::from(input[channel]) * coefficient;
                }
            }
            pixel.copy_from_slice(&sums.map(to_level));
        }
    }

    let mut sums = vec![0; stride];
    let mut output = Vec::with_capacity(height * stride);
    for Taps { first, coefficients } in &down {
        sums.fill(half);
        for (narrow_row, &coefficient) in narrow[first * stride..].chunks_exact(stride).zip(coefficients) {
            for (sum, &level) in sums.iter_mut().zip(narrow_row) {
                *sum += i32::from(level) * coefficient;
            }
        }
        output.extend(sums.iter().copied().map(to_level));
    }
    output
}
