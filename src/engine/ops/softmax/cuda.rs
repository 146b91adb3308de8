//! Launchers for `kernels/softmax.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use super::Keys;
use crate::{
    engine::{
        Tensor,
        cuda::{Argument, Buffer, Kernel, Launch, Operand, Products, Target},
        ops::{blocks, size},
    },
    error::{Error, Result},
};

const OP: &str = "softmax";
/// Rows per block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;

/// Attention logits, and which keys a query attends to.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// `[B, H, Q, row]`; only the first `K` elements of each row are used.
    pub products: &'a Buffer<f32>,
    /// `B`, `H`, `Q` and `K`.
    pub sizes: [usize; 4],
    /// Row stride of products and weights, in elements.
    pub row: usize,
    /// Multiplies the products.
    pub scale: f32,
    /// Added to the scaled products, `[H, Q, K]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Key mask, 1 or 0, `[B, K]`; `None`: all.
    pub mask: Option<&'a Buffer<u32>>,
    /// Whether queries attend only to themselves and earlier keys.
    pub causal: bool,
}

/// `weights = softmax(scale·products + bias)` over the unmasked keys, 0 for the others. A query without keys gets
/// zeros. Elements between `K` and `row` are unchanged.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn softmax(weights: &mut Buffer<f32>, scores: &Scores<'_>) -> Result<()> {
    let Scores { products, sizes, row, scale, bias, mask, causal } = *scores;
    let [batch, heads, queries, keys] = sizes;
    let rows = batch * heads * queries;
    let fits = keys <= row
        && products.len() == rows * row
        && bias.is_none_or(|bias| bias.len() == heads * queries * keys)
        && mask.is_none_or(|mask| mask.len() == batch * keys);
    if !fits {
        return Err(Error::shape(
            OP,
            format!(
                "{} products, {:?} elements of bias and {:?} of mask do not match the sizes {sizes:?} with a row stride of {row}",
                products.len(),
                bias.map(Buffer::len),
                mask.map(Buffer::len)
            ),
        ));
    }
    weights.expect_len(OP, "the weights", products.len())?;
    if rows == 0 || keys == 0 {
        return Ok(());
    }
    let whole = |value: usize| -> Result<Argument> { Ok(Argument::U32(size(OP, "rows", value)?)) };
    let arguments = [
        weights.write(),
        products.read(),
        bias.map_or(Argument::null::<f32>(), Buffer::read),
        mask.map_or(Argument::null::<u32>(), Buffer::read),
        whole(rows)?,
        whole(heads)?,
        whole(queries)?,
        whole(keys)?,
        whole(row)?,
        Argument::U32(u32::from(causal)),
        Argument::F32(scale),
    ];
    let launch = Launch::linear(blocks(OP, rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; the weights are borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { products.device().launch(&Kernel::new(OP, "softmax_f32"), &launch, &arguments) }
}

/// Attention; all heads of a sample are computed at once, directly on interleaved rows.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub(crate) fn attention(
    of: &Keys<'_>,
    y: &mut Buffer<f32>,
    [queries, keys, values]: [&Buffer<f32>; 3],
    channels: usize,
) -> Result<()> {
    let (device, tokens, heads) = (queries.device(), of.tokens, of.heads);
    let (sample, width) = (tokens * channels, channels / heads);
    let batch = queries.len() / sample;
    // Rows of 32 bytes, so that all samples have the same alignment in the products.
    let row = tokens.next_multiple_of(8);
    let head = tokens * row;
    let part = |rows, at: usize| Operand { first: at * sample, step: width, ..Operand::of(rows, channels) };
    let products = |sizes, a, b| Products { sizes, batch: heads, a, b, bias: None, alpha: 1.0, beta: 0.0 };
    let mut scores = device.uninitialized::<f32>(batch * heads * head)?;
    for at in 0..batch {
        let target = Target { buffer: &mut scores, first: at * heads * head, row, step: head };
        let (a, b) = (part(queries, at), part(keys, at).transposed());
        device.products(target, &products([tokens, tokens, width], a, b))?;
    }
    let mut weights = device.uninitialized::<f32>(scores.len())?;
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
