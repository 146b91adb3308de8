//! Lanczos resampling of 8-bit squares, bit for bit as Pillow does it (`src/libImaging/Resample.c`): coefficients in
//! fixed point, a horizontal pass and then a vertical one, each rounded to 8 bits.

use std::f64::consts::PI;

/// Bits after the point in a coefficient: 32, less 8 for the pixel and 2 for the overshoot of the filter.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Lobes of the Lanczos filter on each side.
const LANCZOS_SUPPORT: f64 = 3.0;

/// The pixels that make one output pixel, and their fixed-point coefficients.
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

/// `precompute_coeffs` and `normalize_coeffs_8bpc`: one entry an output pixel.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "truncating where the C code truncates is what makes the result equal"
)]
fn taps(input_side: usize, output_side: usize) -> Vec<Taps> {
    let scale = input_side as f64 / output_side as f64;
    let filter_scale = scale.max(1.0);
    let support = LANCZOS_SUPPORT * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..output_side)
        .map(|output| {
            let center = (output as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input_side);
            let weights: Vec<f64> =
                (first..end).map(|input| lanczos((input as f64 - center + 0.5) * inverse)).collect();
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

/// Resamples a square RGB picture to `output_side`; the result is `[output_side, output_side, 3]`, row by row.
///
/// `read_row(y, row)` fills `row`, `[input_side, 3]`, with row `y` of the input. It is called once for each row, from
/// the top, so that the input need not exist as a whole. Both sides must be at least 1.
pub fn lanczos_square(
    input_side: usize,
    output_side: usize,
    mut read_row: impl FnMut(usize, &mut [u8]),
) -> Vec<u8> {
    let stride = output_side * 3;
    if input_side == output_side {
        let mut output = vec![0; output_side * stride];
        output.chunks_exact_mut(stride).enumerate().for_each(|(y, row)| read_row(y, row));
        return output;
    }
    let taps = taps(input_side, output_side);
    let half = 1 << (PRECISION_BITS - 1);

    let mut row = vec![0; input_side * 3];
    let mut narrow = vec![0; input_side * stride];
    for (y, narrow_row) in narrow.chunks_exact_mut(stride).enumerate() {
        read_row(y, &mut row);
        for (pixel, Taps { first, coefficients }) in narrow_row.chunks_exact_mut(3).zip(&taps) {
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
    let mut output = Vec::with_capacity(output_side * stride);
    for Taps { first, coefficients } in &taps {
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
