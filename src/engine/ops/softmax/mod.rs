//! Attention and its softmax with scale, bias and mask, forward only, for the frozen text encoders and CLIP's image
//! tower.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{Tensor, ops::last_dim},
    error::Result,
};

/// Settings of an attention, and which keys a token attends to. Mask and bias are on the device of the rows.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Tokens per sample, `T`.
    pub tokens: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Multiplies the attention logits.
    pub scale: f32,
    /// Whether tokens attend only to themselves and earlier tokens.
    pub causal: bool,
    /// Key mask, 1 or 0, `[B·T]` u32.
    pub mask: &'a Tensor,
    /// Added to the logits, `[H, T, T]`.
    pub bias: Option<&'a Tensor>,
}

impl Keys<'_> {
    /// Attention: queries, keys and values `[B·T, H·D]` to rows of the same shape.
    ///
    /// A masked key has a weight of exactly 0, which is what the upstream code's most negative float becomes after a
    /// softmax; a token without any key gets zeros.
    ///
    /// # Errors
    /// If the sizes do not match, a tensor is not f32, or the device fails.
    pub(crate) fn attend(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let channels = last_dim("softmax", queries)?;
        match queries.device() {
            None => {
                let rows = [queries.as_slice()?, keys.as_slice()?, values.as_slice()?];
                Tensor::new(queries.shape(), cpu::attention(self, rows, channels)?)
            }
            Some(device) => Tensor::written(device, queries.shape(), |y| {
                cuda::attention(self, y, [queries.buffer()?, keys.buffer()?, values.buffer()?], channels)
            }),
        }
    }
}
