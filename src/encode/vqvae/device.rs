//! The VQ-VAE on a device: pictures and features come from the host and go there.

use std::sync::{Mutex, PoisonError};

use super::network::{Decoder, Encoder, PlacedConvolution, PlacedNorm};
use crate::{
    encode::pyramid::PyramidQuantizer,
    engine::{
        Tensor,
        cuda::{Buffer, Device},
        ops::pyramid::cuda::{PyramidTables, pyramid_quantize},
    },
    error::Result,
};

/// Pictures that the networks work on at once: enough for the small maps to fill a card, few enough for memory. There are
/// always as many, the last one being repeated, so that all are computed alike and no bit of one depends on the others.
const PICTURES: usize = 4;

/// Pictures quantised at once.
const QUANTISED: usize = 64;

/// The networks and the quantiser on a device.
#[derive(Debug)]
pub(super) struct Placed {
    device: Device,
    encoder: Encoder<PlacedConvolution, PlacedNorm>,
    decoder: Decoder<PlacedConvolution, PlacedNorm>,
    tokens: usize,
    tables: Mutex<PyramidTables>,
}

impl Placed {
    /// Puts networks and quantiser on a device.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn new(
        encoder: &Encoder,
        decoder: &Decoder,
        quantizer: &PyramidQuantizer,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            encoder: encoder.placed(device)?,
            decoder: decoder.placed(device)?,
            tokens: quantizer.tokens(),
            tables: Mutex::new(quantizer.on_device(device, QUANTISED)?),
        })
    }

    /// Does `work` on as many pieces of `from` at a time as there always are; the first of what it gives for each are kept.
    fn each(
        &self,
        from: &[f32],
        length: usize,
        work: impl Fn(&Tensor) -> Result<Buffer<f32>>,
    ) -> Result<Vec<f32>> {
        let mut made = Vec::new();
        for pieces in from.chunks(PICTURES * length) {
            let mut filled = pieces.to_vec();
            while filled.len() < PICTURES * length {
                filled.extend_from_within(filled.len() - length..);
            }
            let filled = Tensor::new(&[filled.len()], filled)?.ahead_to(&self.device)?;
            made.push((work(&filled)?, pieces.len() / length));
        }
        // Downloads wait, so they come last.
        let mut found = Vec::new();
        for (made, pieces) in made {
            let made = made.to_host()?;
            found.extend_from_slice(&made[..made.len() / PICTURES * pieces]);
        }
        Ok(found)
    }

    /// Pictures `[B, 3, side, side]` to features `[B, H², Cvae]`, not checked.
    pub(super) fn features(&self, pictures: &[f32], side: usize) -> Result<Vec<f32>> {
        self.each(pictures, 3 * side * side, |pictures| self.encoder.run(pictures.buffer::<f32>()?, side))
    }

    /// Features `[B, side², Cvae]` to pictures `[B, 3, R, R]`, not clamped.
    pub(super) fn pictures(&self, features: &[f32], side: usize, picture: usize) -> Result<Vec<f32>> {
        let length = side * side * self.decoder.channels();
        let mut pictures =
            self.each(features, length, |features| self.decoder.run(features.buffer::<f32>()?, side))?;
        let mut planes = vec![0.0; picture];
        for pixels in pictures.chunks_exact_mut(picture) {
            for (at, pixel) in pixels.chunks_exact(3).enumerate() {
                for (channel, &value) in pixel.iter().enumerate() {
                    planes[channel * picture / 3 + at] = value;
                }
            }
            pixels.copy_from_slice(&planes);
        }
        Ok(pictures)
    }

    /// Finite features `[B, Cvae, H, H]` to codes `[B, L]`.
    pub(super) fn codes(&self, features: &Tensor) -> Result<Tensor> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut codes = Vec::with_capacity(features.dim(0) * self.tokens);
        let sample = features.len() / features.dim(0).max(1);
        for some in features.as_slice::<f32>()?.chunks((QUANTISED * sample).max(1)) {
            let mut found = self.device.uninitialised::<u32>(some.len() / sample * self.tokens)?;
            pyramid_quantize(&mut found, &self.device.upload(some)?, &mut tables)?;
            codes.extend(found.to_host()?);
        }
        Tensor::new(&[features.dim(0), self.tokens], codes)
    }
}
