//! Where a released text encoder's files are below the folder that the user names.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The model's folder and the tokenizer's; they may be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder {
    /// `config.json` and the weights.
    pub(super) model: PathBuf,
    /// The tokenizer's files.
    pub(super) tokenizer: PathBuf,
}

/// The files of which one at least is in a tokenizer's folder.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "vocab.json", "spiece.model"];

impl Folder {
    /// Understands the root of a pipeline (`text_encoder/` and `tokenizer/` in it), and the folder of the encoder itself
    /// with the tokenizer's files in it, in a folder `tokenizer` in it, or in one beside it.
    pub(super) fn find(given: &Path) -> Result<Self> {
        let refuse = |message: String| Error::Checkpoint { path: given.to_path_buf(), message };
        if !given.is_dir() {
            return Err(refuse(
                "there is no such folder; text_encoder.path names the folder of a text encoder".to_owned(),
            ));
        }
        let inner = given.join("text_encoder");
        let model = if inner.join("config.json").exists() { inner } else { given.to_path_buf() };
        if !model.join("config.json").exists() {
            return Err(refuse(
                "holds no text encoder: neither config.json nor text_encoder/config.json is there".to_owned(),
            ));
        }
        let whole = std::path::absolute(&model).map_err(Error::io("resolve", &model))?;
        // "text_encoder_2" has "tokenizer_2" beside it.
        let beside = whole.parent().zip(whole.file_name()).map(|(parent, name)| {
            let suffix = name.to_str().and_then(|name| name.strip_prefix("text_encoder"));
            parent.join(format!("tokenizer{}", suffix.unwrap_or_default()))
        });
        let places: Vec<PathBuf> =
            [Some(model.join("tokenizer")), Some(model.clone()), beside].into_iter().flatten().collect();
        let holds = |place: &&PathBuf| TOKENIZER_FILES.iter().any(|file| place.join(file).exists());
        match places.iter().find(holds) {
            Some(tokenizer) => Ok(Self { tokenizer: tokenizer.clone(), model }),
            None => Err(refuse(format!(
                "holds no tokenizer; copy the tokenizer's files ({}) of the encoder's Hugging Face folder to one of {}",
                "tokenizer.json, spiece.model, or vocab.json and merges.txt",
                places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}
