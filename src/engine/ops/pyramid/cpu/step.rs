//! Scale-by-scale sampling.

use super::super::{OP, PyramidQuantizer, Scale, Workspace, add, layout::transpose};
use crate::{
    engine::Tensor,
    error::{Error, Result},
};

impl PyramidQuantizer {
    /// Looks up the codebook vectors of one scale's codes: `[B, pn²]` to `[B, Cvae, pn, pn]`.
    ///
    /// # Errors
    /// If there is no such scale, the shape does not match or a code is out of range.
    pub fn embed(&self, scale: usize, codes: &Tensor) -> Result<Tensor> {
        let side = self.scale(scale)?.side;
        let &[batch, cells] = codes.shape() else {
            return Err(Error::shape(OP, format!("expected codes [B, {}]", side * side)));
        };
        if cells != side * side {
            return Err(Error::shape(
                OP,
                format!("scale {scale} has {} codes, got {:?}", side * side, codes.shape()),
            ));
        }
        let values = codes.as_slice::<u32>()?;
        self.check_range(values, cells)?;
        let (channels, codebook) = (self.channels(), self.codebook.as_slice::<f32>()?);
        let mut embedded = vec![0.0; batch * channels * cells];
        for (map, codes) in embedded.chunks_exact_mut(channels * cells).zip(values.chunks_exact(cells)) {
            for (cell, &code) in codes.iter().enumerate() {
                for channel in 0..channels {
                    map[channel * cells + cell] = codebook[code as usize * channels + channel];
                }
            }
        }
        Tensor::new(&[batch, channels, side, side], embedded)
    }

    /// One step of sampling (`get_next_autoregressive_input`): adds scale `scale`'s vectors `embedded`
    /// `[B, Cvae, pn, pn]` (from [`embed`](Self::embed), or soft ones) to the running `reconstruction`
    /// `[B, Cvae, H, H]`, and returns the input of the next scale, `[B, Cvae, pn', pn']`; after the last scale, the
    /// reconstruction itself.
    ///
    /// # Errors
    /// If there is no such scale or the shapes do not match.
    pub fn next_input(&self, scale: usize, reconstruction: &mut Tensor, embedded: &Tensor) -> Result<Tensor> {
        let at = self.scale(scale)?;
        let (channels, full) = (self.channels(), self.side());
        let batch = reconstruction.shape().first().copied().unwrap_or(0);
        for (tensor, side) in [(&*reconstruction, full), (embedded, at.side)] {
            if tensor.shape() != [batch, channels, side, side] {
                return Err(Error::shape(
                    OP,
                    format!(
                        "expected [{batch}, {channels}, {side}, {side}] at scale {scale}, got {:?}",
                        tensor.shape()
                    ),
                ));
            }
        }
        let mut maps = transpose(reconstruction.as_slice()?, channels, full * full);
        let vectors = transpose(embedded.as_slice()?, channels, at.side * at.side);
        let mut work = Workspace::default();
        for (map, vectors) in
            maps.chunks_exact_mut(self.map_length()).zip(vectors.chunks_exact(at.side * at.side * channels))
        {
            work.embedded.clear();
            work.embedded.extend_from_slice(vectors);
            self.resize(scale, &mut work);
            add(map, &work.resized);
        }
        *reconstruction = self.channels_first(batch, &maps)?;
        let Some(next) = self.scales.get(scale + 1) else { return Ok(reconstruction.clone()) };
        let mut pooled = vec![0.0; batch * next.side * next.side * channels];
        for (map, pooled) in maps
            .chunks_exact(self.map_length())
            .zip(pooled.chunks_exact_mut(next.side * next.side * channels))
        {
            next.down.pool(map, channels, pooled);
        }
        Tensor::new(
            &[batch, channels, next.side, next.side],
            transpose(&pooled, next.side * next.side, channels),
        )
    }

    fn scale(&self, scale: usize) -> Result<&Scale> {
        self.scales
            .get(scale)
            .ok_or_else(|| Error::argument(format!("no scale {scale}: there are {}", self.scales.len())))
    }
}
