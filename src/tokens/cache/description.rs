//! `cache.json`: by what the tokens and text states of a cache were made, and of what.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::damaged;
use crate::{
    data::{AlphaRule, Preprocess},
    error::{Error, Result},
    files::sealed::{Unsealed, unseal},
};

/// The file that makes a folder a token cache.
pub(crate) const CACHE: &str = "cache.json";
/// The form of the files that this version writes. Form 1, which was not sealed and did not say what the images were, is read,
/// but not gone on with.
pub(crate) const FORMAT: u32 = 2;

/// The most that a configuration may ask of a text encoder.
const MOST_TOKENS: usize = 4096;
const MOST_CHANNELS: usize = 16_384;

/// What is kept of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextKept {
    /// Its states in bfloat16: half the space; a state is rounded to 8 bits.
    Bf16,
    /// Its states as the encoder gives them.
    F32,
    /// Its token ids: next to no space; the encoder's network runs when states are needed.
    Ids,
}

/// The floats that text states are kept in.
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

/// By what the text states were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextDescription {
    /// The encoder's fingerprint.
    pub(crate) encoder: String,
    pub(crate) tokens: usize,
    pub(crate) channels: usize,
    #[serde(alias = "floats")]
    pub(crate) kept: TextKept,
}

/// What of an image's preparation changes its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preparation {
    pub(crate) drop_alpha: bool,
    pub(crate) apply_orientation: bool,
    pub(crate) clip_gray16: bool,
    /// Absent from caches that were made before there was the key, all of them without it.
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

/// A table that was encoded.
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
    /// The image tokenizer's fingerprint.
    pub(crate) image_tokenizer: String,
    /// Pixels of an image's side.
    pub(crate) side: usize,
    pub(crate) patch_nums: Vec<usize>,
    pub(crate) vocabulary: usize,
    pub(crate) preparation: Preparation,
    pub(crate) text: Option<TextDescription>,
    /// SHA-256 over the keys of the configuration that the encoders were made by.
    pub(crate) settings: String,
    pub(crate) shard_rows: usize,
    pub(crate) tables: Vec<TableDescription>,
}

impl Description {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CACHE);
        if !path.is_file() {
            return Err(Error::invalid(format!(
                "{} holds no token cache (there is no {CACHE} in it); make one with `encode --out {0}`, or go without: \
                 --set token_cache=",
                folder.display()
            )));
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let none = |error: serde_json::Error| {
            damaged(&path, format!("not the description of a token cache: {error}"))
        };
        let (text, sealed) = match unseal(&bytes) {
            Unsealed::Whole(text) => (text, true),
            Unsealed::Without => (bytes, false),
            Unsealed::Broken => {
                let cure = "encode the corpus again, with --overwrite";
                return Err(damaged(
                    &path,
                    format!("is damaged: its SHA-256 is not the one at its end; {cure}"),
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
                let cure = "encode the corpus again, with --overwrite";
                return Err(damaged(&path, format!("is damaged: it does not end with its SHA-256; {cure}")));
            }
            _ => {
                let message = format!("has the form {format}, but this version reads forms 1 and {FORMAT}");
                return Err(damaged(&path, message));
            }
        }
        let found: Self = serde_json::from_slice(&text).map_err(none)?;
        let text = found.text.as_ref();
        if text.is_some_and(|text| text.tokens > MOST_TOKENS || text.channels > MOST_CHANNELS) {
            return Err(damaged(
                &path,
                "says that a caption has more tokens or channels than any encoder gives",
            ));
        }
        Ok(found)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.patch_nums.iter().fold(0, |sum: usize, &side| sum.saturating_add(side.saturating_mul(side)))
    }
}
