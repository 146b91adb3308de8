//! The softmax over keys with a scale, a bias, a mask and the order of tokens, and the attention around it, forward only: that of text
//! encoders and of CLIP's image tower, which are never trained.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{Tensor, ops::last_dim},
    error::Result,
};

/// Which tokens a token sees, and how queries and keys meet. Mask and bias are where the rows are.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Tokens per sample, `T`.
    pub tokens: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// Tokens see only themselves and those before them.
    pub causal: bool,
    /// Keys that are seen at all, 1 or 0, `[B·T]` u32.
    pub mask: &'a Tensor,
    /// Added to the products, `[H, T, T]`.
    pub bias: Option<&'a Tensor>,
}

impl Keys<'_> {
    /// Attention: queries, keys and values `[B·T, H·D]` to rows of the same shape.
    ///
    /// A key that is not seen has the weight 0 exactly, which is what the released code's most negative number comes to after a
    /// softmax; a token that sees no key at all gets zeros.
    ///
    /// # Errors
    /// If the sizes do not fit, a tensor is not f32, or the device fails.
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
