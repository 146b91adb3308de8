//! The small JSON files next to a vocabulary: special tokens, the padding token, and the maximum length.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{error::Result, files::mistaken::read_json};

/// CLIP's start token, unless the files name another.
pub(super) const CLIP_BEGIN: &str = "<|startoftext|>";
/// CLIP's end token, which is also the padding and the unknown token, unless the files name others.
pub(super) const CLIP_END: &str = "<|endoftext|>";

/// A token in either file: a string, or an object with settings of which only the text matters here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Settings { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Settings { content: text } => text,
        }
    }
}

/// The fields of `special_tokens_map.json` and `tokenizer_config.json` that matter here.
#[derive(Default, Deserialize)]
struct File {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
    /// 1e30 if unknown.
    model_max_length: Option<f64>,
}

/// The special tokens. `None`: not in any file.
#[derive(Clone, Debug, Default)]
pub(super) struct Special {
    pub(super) begin: Option<String>,
    pub(super) end: Option<String>,
    pub(super) pad: Option<String>,
    pub(super) unknown: Option<String>,
    pub(super) model_max_length: Option<usize>,
}

impl Special {
    /// Reads both files if they exist, `special_tokens_map.json` first, and returns which of them exist.
    pub(super) fn read(folder: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let (mut special, mut files) = (Self::default(), Vec::new());
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if !path.exists() {
                continue;
            }
            let file: File = read_json(&path, "a tokenizer's settings")?;
            for (held, found) in [
                (&mut special.begin, file.bos_token),
                (&mut special.end, file.eos_token),
                (&mut special.pad, file.pad_token),
                (&mut special.unknown, file.unk_token),
            ] {
                if held.is_none() {
                    *held = found.map(Token::into_text);
                }
            }
            special.model_max_length = file.model_max_length.and_then(tokens).or(special.model_max_length);
            files.push(path);
        }
        Ok((special, files))
    }
}

/// A length that was actually set; the writers of the file use 1e30 for none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn tokens(length: f64) -> Option<usize> {
    (1.0..1e6).contains(&length).then_some(length as usize)
}
