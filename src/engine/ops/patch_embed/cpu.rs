//! The CPU reference of the start of the sequence.

use rayon::prelude::*;

use super::PatchEmbed;
use crate::{
    engine::{Float, Parameters, Tensor, ops::three_dims},
    error::Result,
};

/// Text, words and tables to the sequence.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn forward<T: Float>(
    parameters: &Parameters,
    text: &Tensor,
    words: &Tensor,
    settings: &PatchEmbed,
) -> Result<Tensor> {
    let [batch, given, channels] = three_dims("patch_embed", "the pyramid", words)?;
    let (first, tokens) = (settings.first, settings.levels.len());
    // What every sample gets: level, position and start in one table.
    let mut table = vec![T::ZERO; tokens * channels];
    if let Some(level) = settings.level {
        let level = parameters.value(level).as_slice::<T>()?;
        for (row, &at) in table.chunks_mut(channels).zip(settings.levels.iter()) {
            row.copy_from_slice(&level[at as usize * channels..][..channels]);
        }
    }
    for (id, rows) in [(settings.position, tokens), (Some(settings.start), first)] {
        if let Some(id) = id {
            let values = parameters.value(id).as_slice::<T>()?;
            for (sum, value) in table[..rows * channels].iter_mut().zip(values) {
                *sum += *value;
            }
        }
    }
    let (text, words) = (text.as_slice::<T>()?, words.as_slice::<T>()?);
    let mut x = table.repeat(batch);
    x.par_chunks_mut(tokens * channels).enumerate().for_each(|(sample, x)| {
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

/// The gradients of text and words from that of the sequence.
///
/// # Errors
/// If a tensor holds another type than `T`.
pub fn split<T: Float>(d: &Tensor, shape: [usize; 3], first: usize) -> Result<[Tensor; 2]> {
    let [batch, tokens, channels] = shape;
    let (mut d_text, mut d_words) = (vec![T::ZERO; batch * channels], Vec::new());
    d_words.reserve_exact(batch * (tokens - first) * channels);
    for (d, d_text) in d.as_slice::<T>()?.chunks(tokens * channels).zip(d_text.chunks_mut(channels)) {
        let (head, tail) = d.split_at(first * channels);
        for row in head.chunks(channels) {
            for (sum, value) in d_text.iter_mut().zip(row) {
                *sum += *value;
            }
        }
        d_words.extend_from_slice(tail);
    }
    Ok([Tensor::new(&[batch, channels], d_text)?, Tensor::new(&[batch, tokens - first, channels], d_words)?])
}
