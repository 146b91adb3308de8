//! Layouts of the quantizer's features and codes, and checks of its inputs.

use super::{OP, PyramidQuantizer};
use crate::{
    engine::Tensor,
    error::{Error, Result},
};

impl PyramidQuantizer {
    /// Checks features `[B, Cvae, H, H]` and converts them to channels-last maps `[B, H², Cvae]`.
    pub(crate) fn channels_last(&self, features: &Tensor) -> Result<Vec<f32>> {
        let (channels, side) = (self.channels(), self.side());
        let batch = features.shape().first().copied().unwrap_or(0);
        if features.shape() != [batch, channels, side, side] {
            return Err(Error::shape(
                OP,
                format!(
                    "expected features [B, {channels}, {side}, {side}] (the last of patch_nums is {side}), got {:?}",
                    features.shape()
                ),
            ));
        }
        let values = features.as_slice::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::not_finite(format!(
                "the features of sample {} of the batch are not finite",
                at / self.map_length()
            )));
        }
        Ok(transpose(values, channels, side * side))
    }

    /// Converts channels-last maps `[B, H², Cvae]` to features `[B, Cvae, H, H]`.
    pub(crate) fn channels_first(&self, batch: usize, maps: &[f32]) -> Result<Tensor> {
        let (channels, side) = (self.channels(), self.side());
        Tensor::new(&[batch, channels, side, side], transpose(maps, side * side, channels))
    }

    /// Checks codes `[B, L]`; returns B and the codes.
    pub(super) fn checked_codes<'a>(&self, codes: &'a Tensor) -> Result<(usize, &'a [u32])> {
        let batch = codes.shape().first().copied().unwrap_or(0);
        if codes.shape() != [batch, self.tokens] {
            return Err(Error::shape(
                OP,
                format!("expected codes [B, {}], got {:?}", self.tokens, codes.shape()),
            ));
        }
        let values = codes.as_slice::<u32>()?;
        self.check_range(values, self.tokens)?;
        Ok((batch, values))
    }

    pub(super) fn check_range(&self, codes: &[u32], per_sample: usize) -> Result<()> {
        match codes.iter().position(|&code| code as usize >= self.vocabulary()) {
            None => Ok(()),
            Some(at) => Err(Error::argument(format!(
                "code {} (sample {}, token {}) is out of range: the codebook has {} codes",
                codes[at],
                at / per_sample,
                at % per_sample,
                self.vocabulary()
            ))),
        }
    }
}

/// Transposes each sample's `[rows, columns]` to `[columns, rows]`.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; values.len()];
    for (from, to) in values.chunks_exact(rows * columns).zip(transposed.chunks_exact_mut(rows * columns)) {
        for (column, to) in to.chunks_exact_mut(rows).enumerate() {
            for (row, to) in to.iter_mut().enumerate() {
                *to = from[row * columns + column];
            }
        }
    }
    transposed
}
