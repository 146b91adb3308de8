//! The layers on the host.

use rayon::prelude::*;

use super::{Attention, Linear, Norm};
use crate::{
    engine::{
        Tensor,
        matmul::{Matrix, linear_forward, product},
    },
    error::Result,
};

/// Rows handled by one task of an elementwise pass.
const ROWS: usize = 16;
/// Numbers handled by one.
const CHUNK: usize = 16_384;

pub(super) fn linear(layer: &Linear, x: &[f32], inputs: usize, outputs: usize) -> Result<Vec<f32>> {
    let mut y = vec![0.0; x.len() / inputs * outputs];
    let bias = layer.bias.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
    linear_forward(&mut y, x, layer.weight.as_slice::<f32>()?, bias, inputs, outputs);
    Ok(y)
}

#[expect(clippy::cast_precision_loss, reason = "a row has few channels")]
pub(super) fn norm(layer: &Norm, x: &[f32]) -> Result<Vec<f32>> {
    let weight = layer.weight.as_slice::<f32>()?;
    let bias = layer.bias.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
    let channels = weight.len();
    let mut y = x.to_vec();
    y.par_chunks_mut(ROWS * channels).flat_map_iter(|rows| rows.chunks_exact_mut(channels)).for_each(|row| {
        if bias.is_some() {
            let mean = row.iter().sum::<f32>() / channels as f32;
            row.iter_mut().for_each(|value| *value -= mean);
        }
        let square = row.iter().map(|value| value * value).sum::<f32>() / channels as f32;
        let scale = 1.0 / f32::sqrt(square + layer.epsilon);
        for (value, weight) in row.iter_mut().zip(weight) {
            *value *= scale * weight;
        }
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    });
    Ok(y)
}

/// Queries, keys and values `[B·T, C]` to rows of the same shape.
pub(super) fn attention(
    of: &Attention<'_>,
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
    of: &Attention<'_>,
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
            let seen = if of.causal { at + 1 } else { tokens };
            softmax(row, of.scale, bias, mask, seen);
        }
        let weights = Matrix::new(&weights, tokens, tokens);
        product(&mut output[first..], channels, weights, of_head(&values[first..]), false);
    }
}

/// Products of one token with every key to weights: of the first `seen` keys, those that the mask lets through.
fn softmax(row: &mut [f32], scale: f32, bias: Option<&[f32]>, mask: &[u32], seen: usize) {
    for (at, value) in row.iter_mut().enumerate() {
        *value = if at < seen && mask[at] == 1 {
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

pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(CHUNK)
        .zip(y.par_chunks(CHUNK))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

pub(super) fn multiply(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(CHUNK).zip(y).map(|(x, y)| x * y).collect()
}

/// The first row, of `channels` numbers, that holds one that is not finite.
pub(in crate::encode) fn first_not_finite(x: &[f32], channels: usize) -> Option<usize> {
    x.par_iter().position_first(|value| !value.is_finite()).map(|at| at / channels)
}
