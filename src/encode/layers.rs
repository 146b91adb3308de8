//! What the released text encoders are made of, forward only and in f32 on the host: linear layers, norms, activations
//! and attention. Rows are tokens, `[B·T, channels]`.

use rayon::prelude::*;

use crate::{
    engine::{
        Float, Tensor,
        float::vectorised,
        matmul::{Matrix, linear_forward, product},
        ops::activation,
    },
    error::Result,
};

/// Rows handled by one task of an elementwise pass.
const ROWS: usize = 16;

/// `y = x · wᵀ`, with a bias or without.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// `[O, I]`.
    pub(super) weight: Tensor,
    /// `[O]`.
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// Rows `[R, I]` to rows `[R, O]`.
    pub(super) fn apply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let [outputs, inputs] = [self.weight.dim(0), self.weight.dim(1)];
        let mut y = vec![0.0; x.len() / inputs * outputs];
        let bias = self.bias.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
        linear_forward(&mut y, x, self.weight.as_slice::<f32>()?, bias, inputs, outputs);
        Ok(y)
    }
}

/// A norm over a row's channels, with what it is multiplied with and, in CLIP, what is added.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    /// `[C]`.
    pub(super) weight: Tensor,
    /// `[C]`: the mean is taken off first (layer norm). `None`: it is not (T5's root-mean-square norm).
    pub(super) bias: Option<Tensor>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Rows to rows.
    #[expect(clippy::cast_precision_loss, reason = "a row has few channels")]
    pub(super) fn apply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let weight = self.weight.as_slice::<f32>()?;
        let bias = self.bias.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
        let channels = weight.len();
        let mut y = x.to_vec();
        y.par_chunks_mut(ROWS * channels).flat_map_iter(|rows| rows.chunks_exact_mut(channels)).for_each(
            |row| {
                if bias.is_some() {
                    let mean = row.iter().sum::<f32>() / channels as f32;
                    row.iter_mut().for_each(|value| *value -= mean);
                }
                let square = row.iter().map(|value| value * value).sum::<f32>() / channels as f32;
                let scale = 1.0 / f32::sqrt(square + self.epsilon);
                for (value, weight) in row.iter_mut().zip(weight) {
                    *value *= scale * weight;
                }
                if let Some(bias) = bias {
                    row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
            },
        );
        Ok(y)
    }
}

/// The non-linearities that configurations of text encoders name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nonlinearity {
    /// `x·sigmoid(1.702·x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// One that the networks have, too.
    Shared(activation::Activation),
}

impl Nonlinearity {
    /// The names that are understood.
    pub(super) const NAMES: &str = "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu";

    /// By the name in a configuration.
    pub(super) fn named(name: &str) -> Option<Self> {
        use activation::Activation::{GeluErf, GeluTanh, Silu};
        Some(match name {
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "gelu" => Self::Shared(GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::Shared(GeluTanh),
            "silu" | "swish" => Self::Shared(Silu),
            _ => return None,
        })
    }

    /// Of every number.
    pub(super) fn apply(self, mut x: Vec<f32>) -> Result<Vec<f32>> {
        match self {
            Self::QuickGelu => x.par_chunks_mut(16_384).for_each(|chunk| {
                vectorised(|| chunk.iter_mut().for_each(|x| *x *= (1.702 * *x).sigmoid()));
            }),
            Self::Relu => x.par_chunks_mut(16_384).for_each(|chunk| {
                chunk.iter_mut().for_each(|x| *x = x.max(0.0));
            }),
            Self::Shared(kind) => {
                let length = x.len();
                let y = activation::cpu::forward::<f32>(&Tensor::new(&[length], x)?, kind)?;
                return Ok(y.as_slice::<f32>()?.to_vec());
            }
        }
        Ok(x)
    }
}

/// Which tokens a token sees, and how queries and keys meet.
pub(super) struct Attention<'a> {
    /// Tokens a sample, `T`.
    pub(super) tokens: usize,
    /// Heads, `H`.
    pub(super) heads: usize,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f32,
    /// Tokens see only themselves and those before them.
    pub(super) causal: bool,
    /// Keys that are seen at all, 1 or 0, `[B·T]`. `None`: all.
    pub(super) mask: Option<&'a [u32]>,
    /// Added to the products, `[H, T, T]`.
    pub(super) bias: Option<&'a [f32]>,
}

impl Attention<'_> {
    /// Queries, keys and values `[B·T, H·D]` to rows of the same shape.
    ///
    /// A key that is not seen has the weight 0 exactly, which is what the released code's most negative number comes to
    /// after a softmax; a token that sees no key at all gets zeros.
    pub(super) fn apply(&self, queries: &[f32], keys: &[f32], values: &[f32], channels: usize) -> Vec<f32> {
        let sample = self.tokens * channels;
        let mut output = vec![0.0; queries.len()];
        output.par_chunks_exact_mut(sample).enumerate().for_each(|(at, output)| {
            let mask = self.mask.map(|mask| &mask[at * self.tokens..][..self.tokens]);
            let of = at * sample..(at + 1) * sample;
            self.sample(output, &queries[of.clone()], &keys[of.clone()], &values[of], mask, channels);
        });
        output
    }

    fn sample(
        &self,
        output: &mut [f32],
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        mask: Option<&[u32]>,
        channels: usize,
    ) {
        let (tokens, width) = (self.tokens, channels / self.heads);
        let mut weights = vec![0.0; tokens * tokens];
        for head in 0..self.heads {
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
                let bias = self.bias.map(|bias| &bias[(head * tokens + at) * tokens..][..tokens]);
                let seen = if self.causal { at + 1 } else { tokens };
                self.softmax(row, bias, mask, seen);
            }
            let weights = Matrix::new(&weights, tokens, tokens);
            product(&mut output[first..], channels, weights, of_head(&values[first..]), false);
        }
    }

    /// Products of one token with every key to weights: of the first `seen` keys, those that the mask lets through.
    fn softmax(&self, row: &mut [f32], bias: Option<&[f32]>, mask: Option<&[u32]>, seen: usize) {
        for (at, value) in row.iter_mut().enumerate() {
            let visible = at < seen && mask.is_none_or(|mask| mask[at] == 1);
            *value = if visible {
                *value * self.scale + bias.map_or(0.0, |bias| bias[at])
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
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(16_384)
        .zip(y.par_chunks(16_384))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

/// `x *= y`, number by number.
pub(super) fn multiply(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(16_384)
        .zip(y.par_chunks(16_384))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

/// The first row, of `channels` numbers, that holds one that is not finite.
pub(super) fn first_not_finite(x: &[f32], channels: usize) -> Option<usize> {
    x.par_iter().position_first(|value| !value.is_finite()).map(|at| at / channels)
}
