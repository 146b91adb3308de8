//! The VQ-VAE on a device: inputs and outputs are on the host.

use std::{
    borrow::Cow,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{
    Hosted,
    network::{Decoder, Encoder, PlacedConvolution, PlacedNorm},
};
use crate::{
    engine::{
        Tensor,
        cuda::{Buffer, Device},
        ops::pyramid::{
            PyramidQuantizer,
            cuda::{PyramidTables, pyramid_quantize},
        },
    },
    error::Result,
};

/// Number of images per batch: enough for the small maps to fill a GPU, few enough for memory. The batch size is
/// constant (the last image is repeated), so that an image's bits do not depend on the others.
const IMAGES: usize = 4;

/// Images quantized per batch.
const QUANTIZED: usize = 64;

/// The networks and the quantizer on a device, each copied there on first use: reading cached tokens needs none,
/// and tokenizing does not need the decoder.
#[derive(Debug)]
pub(super) struct Placed {
    device: Device,
    hosted: Box<Hosted>,
    encoder: OnceLock<Encoder<PlacedConvolution, PlacedNorm>>,
    decoder: OnceLock<Decoder<PlacedConvolution, PlacedNorm>>,
    tables: OnceLock<Mutex<PyramidTables>>,
}

/// The content of `slot`, initialized on first use.
fn filled<T>(slot: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(held) = slot.get() {
        return Ok(held);
    }
    let made = make()?;
    Ok(slot.get_or_init(|| made))
}

impl Placed {
    /// The networks of the host, to be copied to a device.
    pub(super) fn new(hosted: Box<Hosted>, device: &Device) -> Self {
        let device = device.clone();
        Self { device, hosted, encoder: OnceLock::new(), decoder: OnceLock::new(), tables: OnceLock::new() }
    }

    /// Runs `work` on batches of constant size over `from`; results of padding are dropped.
    fn each(
        &self,
        from: &[f32],
        length: usize,
        work: impl Fn(&Buffer<f32>) -> Result<Buffer<f32>>,
    ) -> Result<Vec<f32>> {
        let mut made = Vec::new();
        for pieces in from.chunks(IMAGES * length) {
            let mut filled = Cow::Borrowed(pieces);
            while filled.len() < IMAGES * length {
                let last = filled.len() - length;
                filled.to_mut().extend_from_within(last..);
            }
            let filled = self.device.upload_ahead(&filled)?.arrive()?;
            made.push((work(&filled)?, pieces.len() / length));
        }
        // Downloads block, so they come last.
        let mut found = Vec::new();
        for (made, pieces) in made {
            let made = made.to_host()?;
            found.extend_from_slice(&made[..made.len() / IMAGES * pieces]);
        }
        Ok(found)
    }

    /// Images `[B, 3, side, side]` to features `[B, H², Cvae]`, unchecked.
    pub(super) fn features(&self, images: &[f32], side: usize) -> Result<Vec<f32>> {
        let encoder = filled(&self.encoder, || self.hosted.encoder.placed(&self.device))?;
        self.each(images, 3 * side * side, |images| encoder.run(images, side))
    }

    /// Features `[B, side², Cvae]` to images `[B, 3, R, R]`, not clamped.
    pub(super) fn images(&self, features: &[f32], side: usize, image: usize) -> Result<Vec<f32>> {
        let decoder = filled(&self.decoder, || self.hosted.decoder.placed(&self.device))?;
        let length = side * side * decoder.channels();
        let mut images = self.each(features, length, |features| decoder.run(features, side))?;
        let mut planes = vec![0.0; image];
        for pixels in images.chunks_exact_mut(image) {
            for (at, pixel) in pixels.chunks_exact(3).enumerate() {
                for (channel, &value) in pixel.iter().enumerate() {
                    planes[channel * image / 3 + at] = value;
                }
            }
            pixels.copy_from_slice(&planes);
        }
        Ok(images)
    }

    /// Finite features `[B, Cvae, H, H]` to codes `[B, L]`.
    pub(super) fn codes(&self, quantizer: &PyramidQuantizer, features: &Tensor) -> Result<Tensor> {
        let tables = filled(&self.tables, || Ok(Mutex::new(quantizer.on_device(&self.device, QUANTIZED)?)))?;
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = quantizer.tokens();
        let mut codes = Vec::with_capacity(features.dim(0) * tokens);
        let sample = features.len() / features.dim(0).max(1);
        for some in features.as_slice::<f32>()?.chunks((QUANTIZED * sample).max(1)) {
            let mut found = self.device.uninitialized::<u32>(some.len() / sample * tokens)?;
            pyramid_quantize(&mut found, &self.device.upload(some)?, &mut tables)?;
            codes.extend(found.to_host()?);
        }
        Tensor::new(&[features.dim(0), tokens], codes)
    }
}
