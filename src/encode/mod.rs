//! Encodes images as token codes and captions as text states. Two traits make the built-in encoders (PCA patches,
//! hashed words) and the released ones (VQ-VAE, CLIP, T5) interchangeable.

mod codebook;
mod components;
pub(crate) mod convolution;
pub mod hashed;
pub mod pca;
pub mod pretrained;
mod projection;
pub mod saved;
pub mod tokenizers;
pub(crate) mod transformer;
pub mod vqvae;

use std::path::Path;

use crate::{
    engine::{Tensor, cuda::Device, ops::pyramid::PyramidQuantizer},
    error::{Error, Result},
};
use tokenizers::TokenIds;

/// Encodes images as pyramids of codes, and decodes them.
pub trait ImageTokenizer: Send + Sync {
    /// The pyramid's quantizer: side lengths of the token maps, codebook, convolutions.
    fn quantizer(&self) -> &PyramidQuantizer;

    /// The side in pixels of the square images that [`encode`](Self::encode) takes.
    fn image_side(&self) -> usize;

    /// Encodes images `[B, 3, R, R]` in [-1, 1] (f32) as codes `[B, L]` (u32), coarsest scale first.
    ///
    /// # Errors
    /// If the shape does not match.
    fn encode(&self, images: &Tensor) -> Result<Tensor>;

    /// Decodes codes `[B, L]` to images `[B, 3, R, R]` in [-1, 1].
    ///
    /// # Errors
    /// If the shape does not match or a code is out of range.
    fn decode(&self, codes: &Tensor) -> Result<Tensor>;

    /// Maps images `[B, 3, R, R]` in [-1, 1] to features before quantization, `[B, Cvae, H, H]`, where `H` is the side
    /// of the finest token map.
    ///
    /// # Errors
    /// If the shape does not match or a value is not finite.
    fn features(&self, images: &Tensor) -> Result<Tensor>;

    /// SHA-256 over kind, sizes and weights: tokenizers with the same fingerprint produce the same codes.
    fn fingerprint(&self) -> String;

    /// Writes the tokenizer into a folder (safetensors and JSON), atomically, so that `load` restores it.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Moves the networks, if any, to a device. Images and codes stay on the host, and the fingerprint is unchanged.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn ImageTokenizer>>;
}

/// The output of a text encoder for a batch of captions.
#[derive(Clone, Debug, PartialEq)]
pub struct TextStates {
    /// One vector per token, `[B, T, D]` f32.
    pub states: Tensor,
    /// 1 for a token, 0 for padding, `[B, T]` u32. Each caption has at least one token.
    pub mask: Tensor,
    /// One vector per caption, `[B, D]` f32.
    pub pooled: Tensor,
}

/// Encodes captions as text states.
pub trait TextEncoder: Send + Sync {
    /// Tokens per caption, padded or truncated (`T`).
    fn tokens(&self) -> usize;

    /// Channels per token (`D`).
    fn channels(&self) -> usize;

    /// Encodes captions in any script, including empty ones.
    ///
    /// # Errors
    /// If the encoder fails.
    fn encode(&self, captions: &[&str]) -> Result<TextStates>;

    /// The token ids of captions, for [`encode_ids`](Self::encode_ids).
    ///
    /// # Errors
    /// If the encoder has no token ids, such as the hashed-word encoder.
    fn ids(&self, _captions: &[&str]) -> Result<TokenIds> {
        Err(no_ids())
    }

    /// Encodes captions given as token ids; bit-identical to [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the encoder has no token ids, the shapes do not match, an id is out of range, or the encoder fails.
    fn encode_ids(&self, _ids: &TokenIds) -> Result<TextStates> {
        Err(no_ids())
    }

    /// SHA-256 over kind, sizes and weights.
    fn fingerprint(&self) -> String;

    /// Writes the encoder into a folder, atomically, so that `load` restores it.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Moves the network, if any, to a device. Captions and states stay on the host, and the fingerprint is unchanged.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextEncoder>>;
}

fn no_ids() -> Error {
    Error::argument("this text encoder has no token ids; --text ids requires clip or t5")
}

/// Loads the image tokenizer saved in `folder`, of any kind.
///
/// # Errors
/// If there is none, its kind is unknown, or a file is damaged.
pub fn load_image_tokenizer(folder: &Path) -> Result<Box<dyn ImageTokenizer>> {
    load_moved_image_tokenizer(folder, None)
}

/// As [`load_image_tokenizer`]; weights that are not stored in the folder are read from `moved`, if given.
///
/// # Errors
/// As for [`load_image_tokenizer`], or if the weights differ from those saved.
pub(crate) fn load_moved_image_tokenizer(
    folder: &Path,
    moved: Option<&Path>,
) -> Result<Box<dyn ImageTokenizer>> {
    let path = folder.join(saved::IMAGE_TOKENIZER);
    match saved::read_description(&path)?.kind.as_str() {
        pca::KIND => Ok(Box::new(pca::PcaTokenizer::load(folder)?)),
        vqvae::KIND => Ok(Box::new(vqvae::VqVae::load(folder, moved)?)),
        other => Err(saved::unknown_kind(&path, other, &[pca::KIND, vqvae::KIND])),
    }
}

/// Loads the text encoder saved in `folder`, of any kind. The folder does not contain the weights of a pretrained
/// encoder, only a description with their path.
///
/// # Errors
/// If there is none, its kind is unknown, a file is damaged, or a pretrained encoder is missing or has changed.
pub fn load_text_encoder(folder: &Path) -> Result<Box<dyn TextEncoder>> {
    load_moved_text_encoder(folder, None)
}

/// As [`load_text_encoder`]; a pretrained encoder is read from `moved`, if given.
///
/// # Errors
/// As for [`load_text_encoder`].
pub fn load_moved_text_encoder(folder: &Path, moved: Option<&Path>) -> Result<Box<dyn TextEncoder>> {
    let path = folder.join(saved::TEXT_ENCODER);
    let kind = saved::read_description(&path)?.kind;
    if let Some(kind) = pretrained::EncoderKind::named(&kind) {
        return Ok(Box::new(pretrained::Pretrained::load(kind, folder, moved)?));
    }
    match kind.as_str() {
        hashed::KIND => Ok(Box::new(hashed::HashedWords::load(folder)?)),
        other => {
            let [clip, t5] = [pretrained::EncoderKind::Clip, pretrained::EncoderKind::T5]
                .map(pretrained::EncoderKind::name);
            Err(saved::unknown_kind(&path, other, &[hashed::KIND, clip, t5]))
        }
    }
}
