//! `cache.json`: the tables, encoders and settings that a token cache was built from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::damaged;
use crate::{
    data::{AlphaRule, Preprocess},
    error::{Error, Result},
    files::sealed::{Unsealed, unseal},
};

/// The file that marks a folder as a token cache.
pub(crate) const CACHE: &str = "cache.json";
/// The format version that is written. Version 1 has no checksum and does not record the state of the images: such a
/// cache can be read, but not extended.
pub(crate) const FORMAT: u32 = 2;

/// Upper bound on the tokens per caption.
const MOST_TOKENS: usize = 4096;
const MOST_CHANNELS: usize = 16_384;

/// The data that the cache stores per caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextKept {
    /// States in bfloat16: half the size of f32, with an 8-bit significand.
    Bf16,
    /// States exactly as the encoder computes them.
    F32,
    /// Token ids, which are small; the encoder's network runs when states are needed.
    Ids,
}

/// Float type of stored text states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floats {
    Bf16,
    F32,
}

impl TextKept {
    pub(crate) fn floats(self) -> Option<Floats> {
        match self {
            Self::Bf16 => Some(Floats::Bf16),
            Self::F32 => Some(Floats::F32),
            Self::Ids => None,
        }
    }
}

/// The encoder of the text states and their shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextDescription {
    /// Fingerprint of the encoder.
    pub(crate) encoder: String,
    pub(crate) tokens: usize,
    pub(crate) channels: usize,
    #[serde(alias = "floats")]
    pub(crate) kept: TextKept,
}

/// The image preprocessing options that affect tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preparation {
    pub(crate) drop_alpha: bool,
    pub(crate) apply_orientation: bool,
    pub(crate) clip_gray16: bool,
    /// Absent from caches written before the key existed, all of which used the default.
    #[serde(default)]
    pub(crate) truncated_images: bool,
}

impl Preparation {
    pub(crate) fn of(preprocess: &Preprocess) -> Self {
        Self {
            drop_alpha: preprocess.alpha == AlphaRule::Drop,
            apply_orientation: preprocess.apply_orientation,
            clip_gray16: preprocess.clip_gray16,
            truncated_images: preprocess.truncated,
        }
    }
}

/// An encoded table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableDescription {
    pub(crate) path: PathBuf,
    pub(crate) rows: u64,
    pub(crate) sha256: String,
}

/// `cache.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    pub(crate) format: u32,
    /// Fingerprint of the image tokenizer.
    pub(crate) image_tokenizer: String,
    /// Side length of the images, in pixels.
    pub(crate) side: usize,
    pub(crate) patch_nums: Vec<usize>,
    pub(crate) vocabulary: usize,
    pub(crate) preparation: Preparation,
    pub(crate) text: Option<TextDescription>,
    /// SHA-256 over the configuration keys that determine the encoders.
    pub(crate) settings: String,
    pub(crate) shard_rows: usize,
    pub(crate) tables: Vec<TableDescription>,
}

impl Description {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CACHE);
        if !path.is_file() {
            return Err(Error::invalid(format!(
                "{} contains no token cache (there is no {CACHE} in it); create it with `encode --out {0}`, or use none: \
                 --set token_cache=",
                folder.display()
            )));
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let none = |error: serde_json::Error| {
            damaged(&path, format!("is not the description of a token cache: {error}"))
        };
        let (text, sealed) = match unseal(&bytes) {
            Unsealed::Whole(text) => (text, true),
            Unsealed::Without => (bytes, false),
            Unsealed::Broken => {
                let cure = "encode the corpus again with --overwrite";
                return Err(damaged(
                    &path,
                    format!("is damaged: its contents do not match its SHA-256; {cure}"),
                ));
            }
        };
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let Form { format } = serde_json::from_slice(&text).map_err(none)?;
        match (format, sealed) {
            (FORMAT, true) | (1, false) => {}
            (FORMAT, false) => {
                let cure = "encode the corpus again with --overwrite";
                return Err(damaged(&path, format!("is damaged: its SHA-256 is missing; {cure}")));
            }
            _ => {
                let message = format!("has format {format}, but this version reads formats 1 and {FORMAT}");
                return Err(damaged(&path, message));
            }
        }
        let found: Self = serde_json::from_slice(&text).map_err(none)?;
        let text = found.text.as_ref();
        if text.is_some_and(|text| text.tokens > MOST_TOKENS || text.channels > MOST_CHANNELS) {
            return Err(damaged(&path, "has more tokens or channels per caption than any encoder"));
        }
        Ok(found)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.patch_nums.iter().fold(0, |sum: usize, &side| sum.saturating_add(side.saturating_mul(side)))
    }
}
