//! Tokenizes captions with the tokenizer that a pretrained text encoder was trained with: CLIP's BPE, T5's Unigram.
//!
//! The vocabulary comes from the folder's tokenizer files. Every caption has the same number of ids, including the
//! start and end tokens: longer captions are truncated before the end token, shorter ones are padded after it.

mod bounded;
mod clean;
mod clip;
mod entities;
mod mojibake;
mod sentencepiece;
mod special;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use tokenizers::{
    Encoding, PaddingDirection, PaddingParams, PaddingStrategy, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

pub use clean::fix_text;

use crate::{
    engine::Tensor,
    error::{Error, Result},
    files::mistaken::{read_json, refusal},
};
use bounded::{Refusal, SavedTokenizer};
use special::Special;

/// The file of a saved fast tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Token ids of a batch of captions.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenIds {
    /// `[B, T]` u32.
    pub ids: Tensor,
    /// 1 for a token, including special tokens, and 0 for padding, `[B, T]` u32.
    pub mask: Tensor,
}

/// The tokenizer of a text encoder.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    pipeline: Pipeline,
    length: usize,
    largest_id: u32,
    files: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
enum Pipeline {
    /// Loaded from `file`, a `tokenizer.json` or `spiece.model`; `fix` says whether captions are cleaned first, as the
    /// upstream tokenizer does.
    Saved { tokenizer: Box<SavedTokenizer>, fix: bool, file: PathBuf },
    /// Loaded from `vocab.json` and `merges.txt`.
    Clip(Box<clip::ClipTokenizer>),
}

impl TextTokenizer {
    /// Loads CLIP's tokenizer: from `tokenizer.json` if the folder has it, otherwise from `vocab.json` and
    /// `merges.txt`.
    ///
    /// `length` is the number of ids per caption; `None`: the value in `tokenizer_config.json`, at most `most`.
    ///
    /// # Errors
    /// If the folder has neither, a file is damaged, or `length` has no room for the start and end tokens.
    pub fn clip(folder: &Path, length: Option<usize>, most: usize) -> Result<Self> {
        let (special, mut files) = Special::read(folder)?;
        let length = length.unwrap_or_else(|| special.model_max_length.unwrap_or(most).min(most));
        let saved = folder.join(TOKENIZER);
        let (pipeline, pad) = if saved.exists() {
            let tokenizer = open(&saved)?;
            files.push(saved.clone());
            let pad = padding(&tokenizer, &special, special::CLIP_END, folder)?;
            (Pipeline::Saved { tokenizer: Box::new(tokenizer), fix: true, file: saved }, pad)
        } else {
            let (tokenizer, pad, mut read) = clip::open(folder, &special)?;
            files.append(&mut read);
            (Pipeline::Clip(Box::new(tokenizer)), pad)
        };
        Self::of(pipeline, pad, length, files, folder)
    }

    /// Loads T5's tokenizer: from `tokenizer.json` if the folder has it, otherwise from SentencePiece's `spiece.model`.
    /// `length` is the number of ids per caption.
    ///
    /// # Errors
    /// If the folder has neither, a file is damaged, or `length` has no room for the end token.
    pub fn t5(folder: &Path, length: usize) -> Result<Self> {
        let (special, mut files) = Special::read(folder)?;
        let (saved, pieces) = (folder.join(TOKENIZER), folder.join(sentencepiece::SPIECE));
        let (tokenizer, file) = if saved.exists() {
            files.push(saved.clone());
            (open(&saved)?, saved)
        } else if pieces.exists() {
            let (tokenizer, mut read) = sentencepiece::open(folder, &special)?;
            files.append(&mut read);
            (tokenizer, pieces)
        } else {
            return Err(unusable(
                folder,
                "has neither tokenizer.json nor spiece.model; copy one of them from the encoder's Hugging Face folder",
            ));
        };
        let pad = padding(&tokenizer, &special, "<pad>", folder)?;
        let pipeline = Pipeline::Saved { tokenizer: Box::new(tokenizer), fix: false, file };
        Self::of(pipeline, pad, length, files, folder)
    }

    fn of(
        mut pipeline: Pipeline,
        (pad_token, pad_id): (String, u32),
        length: usize,
        mut files: Vec<PathBuf>,
        folder: &Path,
    ) -> Result<Self> {
        let cut = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let pad = PaddingParams {
            strategy: PaddingStrategy::Fixed(length),
            direction: PaddingDirection::Right,
            pad_to_multiple_of: None,
            pad_id,
            pad_type_id: 0,
            pad_token,
        };
        // The empty caption has only the special tokens, unless a saved tokenizer already pads it.
        if let Pipeline::Saved { tokenizer, .. } = &mut pipeline {
            tokenizer.with_padding(None);
        }
        let marks = pipeline.one("")?.get_ids().len();
        if length <= marks {
            return Err(unusable(
                folder,
                format!(
                    "{length} tokens per caption leave no room for a word besides {marks} special tokens"
                ),
            ));
        }
        let (cuts, vocabulary) = match &mut pipeline {
            Pipeline::Saved { tokenizer, .. } => {
                tokenizer.with_padding(Some(pad));
                (tokenizer.with_truncation(Some(cut)).map(|_| ()), tokenizer.get_vocab(true))
            }
            Pipeline::Clip(tokenizer) => {
                tokenizer.with_padding(Some(pad));
                (tokenizer.with_truncation(Some(cut)).map(|_| ()), tokenizer.get_vocab(true))
            }
        };
        cuts.map_err(|error| {
            unusable(folder, format!("captions cannot be cut to {length} tokens: {error}"))
        })?;
        let largest_id = vocabulary.values().copied().max().unwrap_or(0).max(pad_id);
        files.sort();
        Ok(Self { pipeline, length, largest_id, files })
    }

    /// Ids per caption, `T`.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The largest id that can occur.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// The files that were read, sorted by name.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Tokenizes captions.
    ///
    /// # Errors
    /// If the tokenizer rejects a caption or expands it beyond its limit, which an intact tokenizer never does.
    pub fn encode(&self, captions: &[&str]) -> Result<TokenIds> {
        let encoded: Vec<Encoding> =
            captions.par_iter().map(|caption| self.pipeline.one(caption)).collect::<Result<_>>()?;
        let gather = |part: fn(&Encoding) -> &[u32]| -> Result<Tensor> {
            let values: Vec<u32> = encoded.iter().flat_map(part).copied().collect();
            Tensor::new(&[captions.len(), self.length], values)
        };
        Ok(TokenIds { ids: gather(Encoding::get_ids)?, mask: gather(Encoding::get_attention_mask)? })
    }
}

impl Pipeline {
    fn one(&self, caption: &str) -> Result<Encoding> {
        let refuse =
            |error| Error::invalid(format!("the tokenizer refuses the caption {caption:?}: {error}"));
        let (tokenizer, fix, file) = match self {
            Self::Saved { tokenizer, fix, file } => (tokenizer, *fix, file),
            Self::Clip(tokenizer) => return tokenizer.encode_fast(caption, true).map_err(refuse),
        };
        let text = if fix { Cow::Owned(fix_text(caption)) } else { Cow::Borrowed(caption) };
        match bounded::within_room(text.len(), || tokenizer.encode_fast(&*text, true)) {
            Ok(encoding) => Ok(encoding),
            Err(Refusal::Library(error)) => Err(refuse(error)),
            Err(error @ Refusal::TooLong { .. }) => Err(unusable(file, error.to_string())),
        }
    }
}

fn open(path: &Path) -> Result<SavedTokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    bounded::read(&bytes).map_err(|error| unusable(path, refusal("a tokenizer's JSON", &bytes, error)))
}

/// Text and id of the padding token: from the folder's settings, else from the tokenizer, else the token `usual`.
fn padding(
    tokenizer: &SavedTokenizer,
    special: &Special,
    usual: &str,
    folder: &Path,
) -> Result<(String, u32)> {
    if let (None, Some(own)) = (&special.pad, tokenizer.get_padding()) {
        return Ok((own.pad_token.clone(), own.pad_id));
    }
    let token = special.pad.as_deref().unwrap_or(usual);
    let id = tokenizer
        .token_to_id(token)
        .ok_or_else(|| unusable(folder, format!("the vocabulary lacks the token {token:?} to pad with")))?;
    Ok((token.to_owned(), id))
}

/// Tokens with their ids, from `added_tokens.json`.
fn read_ids(path: &Path) -> Result<Vec<(String, u32)>> {
    let ids: BTreeMap<String, u32> = read_json(path, "an object of ids")?;
    Ok(ids.into_iter().collect())
}

fn unusable(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}
