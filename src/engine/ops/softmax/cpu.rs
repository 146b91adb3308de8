//! CPU reference.

use rayon::prelude::*;

use super::Keys;
use crate::{
    engine::{
        Tensor,
        matmul::{Matrix, product},
    },
    error::Result,
};

/// Queries, keys and values `[B·T, C]` to rows of the same shape; see [`Keys::attend`].
///
/// # Errors
/// If the dtype of the mask or the bias does not match.
pub(crate) fn attention(
    of: &Keys<'_>,
    [queries, keys, values]: [&[f32]; 3],
    channels: usize,
) -> Result<Vec<f32>> {
    let sample = of.tokens * channels;
    let mask = of.mask.as_slice::<u32>()?;
    let bias = of.bias.map(Tensor::as_slice::<f32>).transpose()?;
    let mut output = vec![0.0; queries.len()];
    output.par_chunks_exact_mut(sample).enumerate().for_each(|(at, output)| {
        let rows = [queries, keys, values].map(|rows| &rows[at * sample..(at + 1) * sample]);
        one_sample(of, output, rows, &mask[at * of.tokens..][..of.tokens], bias, channels);
    });
    Ok(output)
}

fn one_sample(
    of: &Keys<'_>,
    output: &mut [f32],
    [queries, keys, values]: [&[f32]; 3],
    mask: &[u32],
    bias: Option<&[f32]>,
    channels: usize,
) {
    let (tokens, width) = (of.tokens, channels / of.heads);
    let mut weights = vec![0.0; tokens * tokens];
    for head in 0..of.heads {
        let of_head = |rows| Matrix::strided(rows, tokens, width, channels);
        let first = head * width;
        product(
            &mut weights,
            tokens,
            of_head(&queries[first..]),
            of_head(&keys[first..]).transposed(),
            false,
        );
        for (at, row) in weights.chunks_exact_mut(tokens).enumerate() {
            let bias = bias.map(|bias| &bias[(head * tokens + at) * tokens..][..tokens]);
            let visible = if of.causal { at + 1 } else { tokens };
            softmax(row, of.scale, bias, mask, visible);
        }
        let weights = Matrix::new(&weights, tokens, tokens);
        product(&mut output[first..], channels, weights, of_head(&values[first..]), false);
    }
}

/// Turns the logits of one token into weights, over the unmasked keys among the first `visible`.
fn softmax(row: &mut [f32], scale: f32, bias: Option<&[f32]>, mask: &[u32], visible: usize) {
    for (at, value) in row.iter_mut().enumerate() {
        *value = if at < visible && mask[at] == 1 {
            *value * scale + bias.map_or(0.0, |bias| bias[at])
        } else {
            f32::NEG_INFINITY
        };
    }
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = if *value == f32::NEG_INFINITY { 0.0 } else { f32::exp(*value - most) };
        sum += *value;
    }
    if sum > 0.0 {
        row.iter_mut().for_each(|value| *value /= sum);
    }
}

/// `softmax(scale · row)` in place, without a mask.
pub(crate) fn softmax_of_row(row: &mut [f32], scale: f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in &mut *row {
        *value = ((*value - largest) * scale).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}
