//! Locates the files of a pretrained text encoder in the folder that the user names.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folders of the model and the tokenizer; they may be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    /// `config.json` and the weights.
    pub(super) model: PathBuf,
    /// The tokenizer's files.
    pub(super) tokenizer: PathBuf,
}

/// The files of which a tokenizer's folder has at least one.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "vocab.json", "spiece.model"];

impl Folder {
    /// Accepts the root of a pipeline (with `text_encoder/` and `tokenizer/`), or the folder of the encoder itself
    /// with the tokenizer's files in it, in a subfolder `tokenizer`, or in a sibling folder.
    pub(super) fn find(given: &Path) -> Result<Self> {
        let refuse = |message: String| Error::Checkpoint { path: given.to_path_buf(), message };
        if !given.is_dir() {
            return Err(refuse(
                "no such folder; text_encoder.path must be the folder of a text encoder".to_owned(),
            ));
        }
        let inner = given.join("text_encoder");
        let model = if inner.join("config.json").exists() { inner } else { given.to_path_buf() };
        if !model.join("config.json").exists() {
            return Err(refuse(
                "contains no text encoder: neither config.json nor text_encoder/config.json is there"
                    .to_owned(),
            ));
        }
        let whole = std::path::absolute(&model).map_err(Error::io("resolve", &model))?;
        // "text_encoder_2" has the sibling "tokenizer_2".
        let sibling = whole.parent().zip(whole.file_name()).map(|(parent, name)| {
            let suffix = name.to_str().and_then(|name| name.strip_prefix("text_encoder"));
            parent.join(format!("tokenizer{}", suffix.unwrap_or_default()))
        });
        let folders: Vec<PathBuf> =
            [Some(model.join("tokenizer")), Some(model.clone()), sibling].into_iter().flatten().collect();
        let holds = |folder: &&PathBuf| TOKENIZER_FILES.iter().any(|file| folder.join(file).exists());
        match folders.iter().find(holds) {
            Some(tokenizer) => Ok(Self { tokenizer: tokenizer.clone(), model }),
            None => Err(refuse(format!(
                "contains no tokenizer; copy the tokenizer's files ({}) of the encoder's Hugging Face folder to one of {}",
                "tokenizer.json, spiece.model, or vocab.json and merges.txt",
                folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}
