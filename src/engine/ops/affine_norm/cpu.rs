//! CPU reference.

use rayon::prelude::*;

/// Rows per task.
const ROWS: usize = 16;

/// Normalizes the rows of `x` `[R, C]`; see [`affine_norm`](super::affine_norm).
#[expect(clippy::cast_precision_loss, reason = "a row has few channels")]
pub(crate) fn affine_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Vec<f32> {
    let channels = weight.len();
    let mut y = x.to_vec();
    y.par_chunks_mut(ROWS * channels).flat_map_iter(|rows| rows.chunks_exact_mut(channels)).for_each(|row| {
        if bias.is_some() {
            let mean = row.iter().sum::<f32>() / channels as f32;
            row.iter_mut().for_each(|value| *value -= mean);
        }
        let square = row.iter().map(|value| value * value).sum::<f32>() / channels as f32;
        let scale = 1.0 / f32::sqrt(square + epsilon);
        for (value, weight) in row.iter_mut().zip(weight) {
            *value *= scale * weight;
        }
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    });
    y
}
