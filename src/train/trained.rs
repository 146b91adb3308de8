//! A trained run as the commands that come after it find it: configuration, encoders and checkpoints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, TextEncoderKind},
    encode::{ImageTokenizer, TextEncoder},
    engine::cuda::Device,
    error::{Error, Result},
    interrupt::Interrupt,
    train::{
        checkpoint::{Checkpoint, State, expect_fingerprint},
        corpus,
        run_directory::RunDirectory,
    },
};

/// What a user's path to a run or a checkpoint names.
pub(crate) struct Named {
    /// The run that the checkpoint belongs to.
    pub(crate) run: PathBuf,
    /// The checkpoint itself, where one is named.
    pub(crate) checkpoint: Option<PathBuf>,
}

impl Named {
    /// A run directory, or one checkpoint in it.
    pub(crate) fn new(given: &Path) -> Self {
        if RunDirectory::is_run(given) {
            return Self { run: given.to_path_buf(), checkpoint: None };
        }
        let run = given.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        Self { run: run.to_path_buf(), checkpoint: Some(given.to_path_buf()) }
    }

    /// The checkpoint that is named, or the run's newest.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        match &self.checkpoint {
            Some(folder) => Ok(folder.clone()),
            None => Checkpoint::newest(&checkpoints(&self.run))?.ok_or_else(|| no_checkpoint(&self.run)),
        }
    }
}

/// All checkpoints of a run that are kept, oldest first.
pub(crate) fn every_checkpoint(run: &Path) -> Result<Vec<PathBuf>> {
    let path = checkpoints(run);
    let mut found = Vec::new();
    if path.exists() {
        for entry in fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let entry = entry.map_err(Error::io("read", &path))?;
            let name = entry.file_name();
            if let Some(step) =
                name.to_string_lossy().strip_prefix("step-").and_then(|step| step.parse().ok())
            {
                found.push((step, entry.path()));
            }
        }
    }
    found.sort_by_key(|&(step, _): &(u64, _)| step);
    if found.is_empty() {
        Err(no_checkpoint(run))
    } else {
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }
}

fn checkpoints(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

fn no_checkpoint(run: &Path) -> Error {
    Error::invalid(format!("{} has no checkpoint yet; train it further first", run.display()))
}

/// The configuration of a run with `key=value` arguments on top.
///
/// # Errors
/// If there is no run or an argument cannot be used.
pub(crate) fn configuration(run: &Path, sets: &[String]) -> Result<Config> {
    let held = RunDirectory::config_of(run)?;
    Config::parse(&run.display().to_string(), &held.to_json().to_string(), sets)
}

/// The encoders that a run was trained with.
pub(crate) struct Encoders {
    pub(crate) tokenizer: Box<dyn ImageTokenizer>,
    pub(crate) text: Box<dyn TextEncoder>,
}

impl Encoders {
    /// Reads those of a run; its configuration says where weights are that the run holds no copy of.
    pub(crate) fn of(run: &Path, config: &Config) -> Result<Self> {
        Ok(Self {
            tokenizer: corpus::saved_image_tokenizer(config, &run.join("image_tokenizer"))?,
            text: corpus::saved_text_encoder(config, &run.join("text_encoder"))?,
        })
    }

    /// Those that a configuration names, for weights that were not trained here.
    ///
    /// # Errors
    /// If it names no image tokenizer, or one cannot be read.
    pub(crate) fn named(config: &Config, interrupt: &Interrupt) -> Result<Self> {
        if config.image_tokenizer.path.is_none() {
            return Err(Error::invalid(
                "released weights need the image tokenizer they were trained with: set image_tokenizer.kind to vqvae and \
                 image_tokenizer.path to its weights",
            ));
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if matches!(config.text_encoder.kind, TextEncoderKind::HashedWords { .. }) {
            tracing::warn!(
                "captions are encoded by hashed words; unless the weights were trained on them, set text_enc_path to the folder \
                 of their text encoder"
            );
        }
        let (tokenizer, ..) = corpus::image_tokenizer(config, &[], interrupt, &mut |_, _, _| {})?;
        Ok(Self { tokenizer, text: corpus::text_encoder(config)? })
    }

    /// The same encoders, computing on a device if there is one.
    ///
    /// # Errors
    /// If there is not enough memory, or the device fails.
    pub(crate) fn on(self, device: Option<&Device>) -> Result<Self> {
        let Some(device) = device else { return Ok(self) };
        Ok(Self { tokenizer: self.tokenizer.to_device(device)?, text: self.text.to_device(device)? })
    }

    /// Refuses a checkpoint that was made with others.
    pub(crate) fn expect(&self, folder: &Path, state: &State) -> Result<()> {
        let (tokenizer, text) = (self.tokenizer.fingerprint(), self.text.fingerprint());
        expect_fingerprint(folder, "image tokenizer", &state.image_tokenizer, &tokenizer)?;
        expect_fingerprint(folder, "text encoder", &state.text_encoder, &text)
    }

    /// Vocabulary, channels of a code, and channels of the text, which a network's size depends on.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let quantizer = self.tokenizer.quantizer();
        (quantizer.vocabulary(), quantizer.channels(), self.text.channels())
    }
}
