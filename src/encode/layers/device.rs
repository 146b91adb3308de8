//! The layers on a device.

use super::{Attention, Linear, Norm};
use crate::{
    engine::{
        Tensor,
        autograd::contributions::cuda::{self as arithmetic, residual_forward},
        cuda::{Buffer, Operand, Products, Target},
        ops::{
            activation::{Activation, cuda::activation_forward},
            affine_norm::cuda::affine_norm,
            softmax::cuda::{Scores, softmax},
        },
    },
    error::Result,
};

pub(super) fn linear(layer: &Linear, y: &mut Buffer<f32>, x: &Buffer<f32>) -> Result<()> {
    let [outputs, inputs] = [layer.weight.dim(0), layer.weight.dim(1)];
    let weight = layer.weight.buffer::<f32>()?;
    let bias = layer.bias.as_ref().map(Tensor::buffer::<f32>).transpose()?;
    let sizes = [x.len() / inputs.max(1), outputs, inputs];
    x.device().product(y, sizes, (x, false), (weight, true), bias, 1.0, 0.0)
}

pub(super) fn norm(layer: &Norm, y: &mut Buffer<f32>, x: &Buffer<f32>) -> Result<()> {
    let bias = layer.bias.as_ref().map(Tensor::buffer::<f32>).transpose()?;
    affine_norm(y, x, layer.weight.buffer()?, bias, layer.epsilon)
}

pub(super) fn activate(kind: Activation, y: &mut Buffer<f32>, x: &Buffer<f32>) -> Result<()> {
    activation_forward(kind, y, x, None, x.len())
}

pub(super) fn add(x: &mut Buffer<f32>, y: &Buffer<f32>) -> Result<()> {
    residual_forward(x, None, y, None)
}

pub(super) fn multiply(to: &mut Buffer<f32>, x: &Buffer<f32>, y: &Buffer<f32>) -> Result<()> {
    arithmetic::multiply(to, x, y)
}

/// The heads of a sample are done at once, in the rows in which they lie side by side.
pub(super) fn attention(
    of: &Attention<'_>,
    y: &mut Buffer<f32>,
    [queries, keys, values]: [&Buffer<f32>; 3],
    channels: usize,
) -> Result<()> {
    let (device, tokens, heads) = (queries.device(), of.tokens, of.heads);
    let (sample, width) = (tokens * channels, channels / heads);
    let batch = queries.len() / sample;
    // Rows of 32 bytes, so that all samples lie alike for the products.
    let row = tokens.next_multiple_of(8);
    let head = tokens * row;
    let part = |rows, at: usize| Operand { first: at * sample, step: width, ..Operand::of(rows, channels) };
    let products = |sizes, a, b| Products { sizes, batch: heads, a, b, bias: None, alpha: 1.0, beta: 0.0 };
    let mut scores = device.uninitialised::<f32>(batch * heads * head)?;
    for at in 0..batch {
        let target = Target { buffer: &mut scores, first: at * heads * head, row, step: head };
        let (a, b) = (part(queries, at), part(keys, at).transposed());
        device.products(target, &products([tokens, tokens, width], a, b))?;
    }
    let mut weights = device.uninitialised::<f32>(scores.len())?;
    let scores = Scores {
        products: &scores,
        sizes: [batch, heads, tokens, tokens],
        row,
        scale: of.scale,
        bias: of.bias.map(Tensor::buffer).transpose()?,
        mask: Some(of.mask.buffer()?),
        causal: of.causal,
    };
    softmax(&mut weights, &scores)?;
    for at in 0..batch {
        let a = Operand { first: at * heads * head, step: head, ..Operand::of(&weights, row) };
        let target = Target { buffer: y, first: at * sample, row: channels, step: width };
        device.products(target, &products([tokens, width, tokens], a, part(values, at)))?;
    }
    Ok(())
}
