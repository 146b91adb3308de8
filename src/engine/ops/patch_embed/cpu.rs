//! CPU reference of the input embedding.

use rayon::prelude::*;

use super::{PatchEmbed, PatchEmbedParameters};
use crate::{
    engine::{
        Float, Parameters, Tensor,
        ops::{
            linear::{self, Bias},
            three_dims,
        },
    },
    error::Result,
};

/// Embeds text, the pyramid's rows and the tables as the input sequence.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn forward<T: Float>(
    parameters: &Parameters,
    text: &Tensor,
    rows: &Tensor,
    settings: &PatchEmbed,
) -> Result<Tensor> {
    let (first, tokens) = (settings.first, settings.levels.tokens());
    let PatchEmbedParameters { weight, bias, start, level, position } = settings.parameters;
    let rows = after_first::<T>(rows, tokens, first)?;
    let words = linear::cpu::forward::<T>(parameters, &rows, weight, &[Bias { parameter: bias, column: 0 }])?;
    let [batch, given, channels] = three_dims("patch_embed", "the pyramid", &words)?;
    // The part shared by all samples: level, position and start embeddings in one table.
    let mut table = vec![T::ZERO; tokens * channels];
    if let Some(level) = level {
        let level = parameters.value(level).as_slice::<T>()?;
        for (row, &at) in table.chunks_mut(channels).zip(settings.levels.host()) {
            row.copy_from_slice(&level[at as usize * channels..][..channels]);
        }
    }
    if let Some(position) = position {
        let values = parameters.value(position).as_slice::<T>()?;
        for (token, row) in table.chunks_mut(channels).enumerate() {
            let index = settings.indices.as_ref().map_or(token, |indices| indices[token]);
            for (sum, value) in row.iter_mut().zip(&values[index * channels..]) {
                *sum += *value;
            }
        }
    }
    let values = parameters.value(start).as_slice::<T>()?;
    for (sum, value) in table[..first * channels].iter_mut().zip(values) {
        *sum += *value;
    }
    let (text, words) = (text.as_slice::<T>()?, words.as_slice::<T>()?);
    let mut x = T::numbers(batch * tokens * channels);
    x.par_chunks_mut(tokens * channels).enumerate().for_each(|(sample, x)| {
        x.copy_from_slice(&table);
        let (head, tail) = x.split_at_mut(first * channels);
        for row in head.chunks_mut(channels) {
            for (x, text) in row.iter_mut().zip(&text[sample * channels..]) {
                *x += *text;
            }
        }
        for (x, word) in tail.iter_mut().zip(&words[sample * given * channels..]) {
            *x += *word;
        }
    });
    Tensor::new(&[batch, tokens, channels], x)
}

/// The rows of all tokens except the first scale's; drops their zero rows if present.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(super) fn after_first<T: Float>(rows: &Tensor, tokens: usize, first: usize) -> Result<Tensor> {
    let [batch, given, width] = three_dims("patch_embed", "the pyramid", rows)?;
    if given != tokens {
        return Ok(rows.clone());
    }
    let samples = rows.as_slice::<T>()?.chunks((tokens * width).max(1));
    let kept = samples.flat_map(|sample| &sample[first * width..]).copied().collect();
    Tensor::new(&[batch, tokens - first, width], kept)
}

/// The gradient of the pyramid's rows; if the first scale has rows, theirs are 0.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(super) fn d_rows<T: Float>(d_words: &Tensor, weight: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let [batch, given, _] = three_dims("patch_embed", "the pyramid", d_words)?;
    let (width, tokens) = (shape[2], shape[1]);
    let d = linear::cpu::backward_input::<T>(d_words, weight, &[batch, given, width])?;
    if tokens == given {
        return Ok(d);
    }
    let zeros = vec![T::ZERO; (tokens - given) * width];
    let samples = d.as_slice::<T>()?.chunks((given * width).max(1));
    Tensor::new(shape, samples.flat_map(|sample| zeros.iter().chain(sample)).copied().collect())
}

/// Splits the gradient of the sequence into those of the text and of the pyramid's projected rows.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn split<T: Float>(d: &Tensor, shape: [usize; 3], first: usize) -> Result<[Tensor; 2]> {
    let [batch, tokens, channels] = shape;
    let given = (tokens - first) * channels;
    let (mut d_text, mut d_words) = (vec![T::ZERO; batch * channels], T::numbers(batch * given));
    for (sample, (d, d_text)) in
        d.as_slice::<T>()?.chunks(tokens * channels).zip(d_text.chunks_mut(channels)).enumerate()
    {
        let (head, tail) = d.split_at(first * channels);
        for row in head.chunks(channels) {
            for (sum, value) in d_text.iter_mut().zip(row) {
                *sum += *value;
            }
        }
        d_words[sample * given..][..given].copy_from_slice(tail);
    }
    Ok([Tensor::new(&[batch, channels], d_text)?, Tensor::new(&[batch, tokens - first, channels], d_words)?])
}
