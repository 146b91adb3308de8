//! A text encoder that takes states or token ids from the token cache where available.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Floats, TextDescription, TokenCache, shard};
use crate::{
    encode::{TextEncoder, TextStates, tokenizers::TokenIds},
    engine::{Tensor, cuda::Device},
    error::Result,
};

/// Opens the underlying encoder.
type Open = dyn Fn() -> Result<Box<dyn TextEncoder>> + Send + Sync;

/// Wraps the encoder that computed a cache's states, and reports its fingerprint. The encoder itself, which may be
/// gigabytes, is opened for the first caption that is not in the cache.
pub(crate) struct CachedText {
    cache: Arc<TokenCache>,
    text: TextDescription,
    open: Box<Open>,
    encoder: Mutex<Option<Arc<dyn TextEncoder>>>,
}

impl CachedText {
    /// Wraps the encoder that `open` returns. If the cache has no text, that encoder is returned unchanged.
    ///
    /// # Errors
    /// If `open` is called and fails.
    pub(crate) fn wrap(
        cache: &Arc<TokenCache>,
        open: impl Fn() -> Result<Box<dyn TextEncoder>> + Send + Sync + 'static,
    ) -> Result<Box<dyn TextEncoder>> {
        let Some(text) = cache.description.text.clone() else { return open() };
        Ok(Box::new(Self { cache: Arc::clone(cache), text, open: Box::new(open), encoder: Mutex::default() }))
    }

    fn encoder(&self) -> Result<Arc<dyn TextEncoder>> {
        let mut opened = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = &*opened {
            return Ok(Arc::clone(encoder));
        }
        let encoder: Arc<dyn TextEncoder> = (self.open)()?.into();
        self.cache.expect_text(&encoder.fingerprint())?;
        Ok(Arc::clone(opened.insert(encoder)))
    }

    /// The states of captions: from the cache, or computed by the encoder and rounded in the same way.
    fn kept_states(&self, captions: &[&str], floats: Floats) -> Result<TextStates> {
        let TextDescription { tokens, channels, .. } = self.text;
        let batch = captions.len();
        let mut states = vec![0.0; batch * tokens * channels];
        let mut mask = vec![0u32; batch * tokens];
        let mut pooled = vec![0.0; batch * channels];
        let mut missing = Vec::new();
        for (at, caption) in captions.iter().enumerate() {
            match self.cache.captions.get(&shard::key(caption.as_bytes())) {
                None => missing.push(at),
                Some(slot) => self.cache.text[slot.shard as usize].read(
                    slot.row as usize,
                    &mut states[at * tokens * channels..][..tokens * channels],
                    &mut mask[at * tokens..][..tokens],
                    &mut pooled[at * channels..][..channels],
                )?,
            }
        }
        if !missing.is_empty() {
            let absent: Vec<&str> = missing.iter().map(|&at| captions[at]).collect();
            let found = self.encoder()?.encode(&absent)?;
            let (found_states, found_mask, found_pooled) = (
                found.states.as_slice::<f32>()?,
                found.mask.as_slice::<u32>()?,
                found.pooled.as_slice::<f32>()?,
            );
            for (from, &to) in missing.iter().enumerate() {
                // Rounded like the stored states: a caption's states do not depend on whether it is in the cache.
                let copy = |into: &mut [f32], values: &[f32], length: usize| {
                    let into = &mut into[to * length..][..length];
                    into.copy_from_slice(&values[from * length..][..length]);
                    floats.round(into);
                };
                copy(&mut states, found_states, tokens * channels);
                copy(&mut pooled, found_pooled, channels);
                let caption_mask = &found_mask[from * tokens..][..tokens];
                mask[to * tokens..][..tokens].copy_from_slice(caption_mask);
                let rows = states[to * tokens * channels..].chunks_exact_mut(channels);
                rows.zip(caption_mask).filter(|(_, one)| **one == 0).for_each(|(row, _)| row.fill(0.0));
            }
        }
        Ok(TextStates {
            states: Tensor::new(&[batch, tokens, channels], states)?,
            mask: Tensor::new(&[batch, tokens], mask)?,
            pooled: Tensor::new(&[batch, channels], pooled)?,
        })
    }
}

impl TextEncoder for CachedText {
    fn tokens(&self) -> usize {
        self.text.tokens
    }

    fn channels(&self) -> usize {
        self.text.channels
    }

    fn encode(&self, captions: &[&str]) -> Result<TextStates> {
        match self.text.kept.floats() {
            Some(floats) => self.kept_states(captions, floats),
            None => self.encoder()?.encode_ids(&self.ids(captions)?),
        }
    }

    fn ids(&self, captions: &[&str]) -> Result<TokenIds> {
        if self.text.kept.floats().is_some() {
            return self.encoder()?.ids(captions);
        }
        let (batch, tokens) = (captions.len(), self.text.tokens);
        let (mut ids, mut mask) = (vec![0u32; batch * tokens], vec![0u32; batch * tokens]);
        let mut missing = Vec::new();
        for (at, caption) in captions.iter().enumerate() {
            match self.cache.captions.get(&shard::key(caption.as_bytes())) {
                None => missing.push(at),
                Some(slot) => self.cache.text[slot.shard as usize].read_ids(
                    slot.row as usize,
                    &mut ids[at * tokens..][..tokens],
                    &mut mask[at * tokens..][..tokens],
                )?,
            }
        }
        if !missing.is_empty() {
            let absent: Vec<&str> = missing.iter().map(|&at| captions[at]).collect();
            let found = self.encoder()?.ids(&absent)?;
            for (into, found) in [(&mut ids, &found.ids), (&mut mask, &found.mask)] {
                for (&to, found) in missing.iter().zip(found.as_slice::<u32>()?.chunks_exact(tokens)) {
                    into[to * tokens..][..tokens].copy_from_slice(found);
                }
            }
        }
        Ok(TokenIds { ids: Tensor::new(&[batch, tokens], ids)?, mask: Tensor::new(&[batch, tokens], mask)? })
    }

    fn encode_ids(&self, ids: &TokenIds) -> Result<TextStates> {
        self.encoder()?.encode_ids(ids)
    }

    fn fingerprint(&self) -> String {
        self.text.encoder.clone()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.encoder()?.save(folder)
    }

    /// The underlying encoder is moved to the device when it is opened.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextEncoder>> {
        let Self { cache, text, open, .. } = *self;
        let device = device.clone();
        let open = Box::new(move || open()?.to_device(&device));
        Ok(Box::new(Self { cache, text, open, encoder: Mutex::default() }))
    }
}
