//! Images to token codes and captions to text states. Tokenizers and text encoders sit behind two traits, so that
//! the embedded ones (PCA patches, hashed words) and the released ones (VQ-VAE, CLIP, T5) are interchangeable.

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

/// Turns images into pyramids of codes and back.
pub trait ImageTokenizer: Send + Sync {
    /// The pyramid's quantizer: sides of the token maps, codebook, convolutions.
    fn quantizer(&self) -> &PyramidQuantizer;

    /// The side in pixels of the square images that [`encode`](Self::encode) takes.
    fn image_side(&self) -> usize;

    /// Images `[B, 3, R, R]` in [-1, 1] (f32) to codes `[B, L]` (u32), coarsest scale first.
    ///
    /// # Errors
    /// If the shape does not fit.
    fn encode(&self, images: &Tensor) -> Result<Tensor>;

    /// Codes `[B, L]` to images `[B, 3, R, R]` in [-1, 1].
    ///
    /// # Errors
    /// If the shape does not fit or a code is out of range.
    fn decode(&self, codes: &Tensor) -> Result<Tensor>;

    /// Images `[B, 3, R, R]` in [-1, 1] to their features before they are quantized, `[B, Cvae, H, H]`, `H` being the side of
    /// the finest token map.
    ///
    /// # Errors
    /// If the shape does not fit or a number is not finite.
    fn features(&self, images: &Tensor) -> Result<Tensor>;

    /// SHA-256 over kind, sizes and weights: two tokenizers with one fingerprint give the same codes.
    fn fingerprint(&self) -> String;

    /// Writes the tokenizer into a folder (safetensors and JSON), whole, so that `load` gives it back.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// The same tokenizer, its networks computing on a device if it has any: images and codes stay on the host, and the
    /// fingerprint is the same.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn ImageTokenizer>>;
}

/// What a text encoder says of a batch of captions.
#[derive(Clone, Debug, PartialEq)]
pub struct TextStates {
    /// One vector a token, `[B, T, D]` f32.
    pub states: Tensor,
    /// 1 for a token, 0 for padding, `[B, T]` u32. At least one token of each caption is 1.
    pub mask: Tensor,
    /// One vector a caption, `[B, D]` f32.
    pub pooled: Tensor,
}

/// Turns captions into text states.
pub trait TextEncoder: Send + Sync {
    /// Tokens a caption, padded or cut (`T`).
    fn tokens(&self) -> usize;

    /// Channels of a token's vector (`D`).
    fn channels(&self) -> usize;

    /// Captions in any script, the empty one too, to text states.
    ///
    /// # Errors
    /// If the encoder fails.
    fn encode(&self, captions: &[&str]) -> Result<TextStates>;

    /// Captions to the token ids that [`encode_ids`](Self::encode_ids) takes.
    ///
    /// # Errors
    /// If the encoder has no ids: hashed words have none.
    fn ids(&self, _captions: &[&str]) -> Result<TokenIds> {
        Err(no_ids())
    }

    /// What [`encode`](Self::encode) gives, to the bit, for captions of these ids.
    ///
    /// # Errors
    /// If the encoder has no ids, the shapes do not fit, an id is out of range, or the encoder fails.
    fn encode_ids(&self, _ids: &TokenIds) -> Result<TextStates> {
        Err(no_ids())
    }

    /// SHA-256 over kind, sizes and weights.
    fn fingerprint(&self) -> String;

    /// Writes the encoder into a folder, whole, so that `load` gives it back.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// The same encoder, its network computing on a device if it has one: captions and states stay on the host, and the
    /// fingerprint is the same.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    fn to_device(self: Box<Self>, device: &Device) -> Result<Box<dyn TextEncoder>>;
}

fn no_ids() -> Error {
    Error::argument("this text encoder makes no token ids; --text ids is for clip and t5")
}

/// Loads the image tokenizer that was saved in `folder`, whatever its kind.
///
/// # Errors
/// If there is none, its kind is unknown or a file is damaged.
pub fn load_image_tokenizer(folder: &Path) -> Result<Box<dyn ImageTokenizer>> {
    load_moved_image_tokenizer(folder, None)
}

/// The same; weights that are not kept in the folder are in `moved` now, if that is given.
///
/// # Errors
/// As for [`load_image_tokenizer`], or if the weights are other ones.
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

/// Loads the text encoder that was saved in `folder`, whatever its kind. A released encoder is not in the folder; its
/// description says where it is.
///
/// # Errors
/// If there is none, its kind is unknown, a file is damaged, or a released encoder is gone or was changed.
pub fn load_text_encoder(folder: &Path) -> Result<Box<dyn TextEncoder>> {
    load_moved_text_encoder(folder, None)
}

/// The same, where a released encoder is now in `moved`; other kinds have no use for it.
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
