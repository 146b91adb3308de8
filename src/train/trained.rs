//! A trained run as the commands that come after it find it: configuration, encoders and checkpoints.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Config, TextEncoderKind},
    encode::{ImageTokenizer, TextEncoder, pretrained::is_pretrained, saved::TEXT_ENCODER},
    engine::cuda::Device,
    error::{Error, Result},
    interrupt::Interrupt,
    train::{
        cache::{CachedText, TokenCache},
        checkpoint::{Checkpoint, State, expect_fingerprint, folder},
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
    ///
    /// # Errors
    /// If the path is neither.
    pub(crate) fn new(given: &Path) -> Result<Self> {
        if RunDirectory::is_run(given) {
            if RunDirectory::was_stopped(given)? {
                tracing::warn!("{} has not come to its end: its newest checkpoint is taken", given.display());
            }
            return Ok(Self { run: given.to_path_buf(), checkpoint: None });
        }
        let refuse =
            |message: &str| Error::Checkpoint { path: given.to_path_buf(), message: message.to_owned() };
        let about = fs::metadata(given).map_err(Error::io("read", given))?;
        if !about.is_dir() {
            return Err(refuse(
                "is a file; name the folder of a run, or one of the folders in its `checkpoints`",
            ));
        }
        // A path such as `.` has its parents only when it is resolved.
        let resolved = fs::canonicalize(given).map_err(Error::io("read", given))?;
        let run = [given, &resolved].into_iter().find_map(|path| {
            let run = path.parent().and_then(Path::parent)?;
            // Two folders up from `checkpoint` there is nothing, which is here.
            let run = if run.as_os_str().is_empty() { Path::new(".") } else { run };
            RunDirectory::is_run(run).then(|| run.to_path_buf())
        });
        match run {
            Some(run) => Ok(Self { run, checkpoint: Some(given.to_path_buf()) }),
            None => Err(refuse(
                "is neither a run of `train` or `fit` nor one of the folders in a run's `checkpoints`",
            )),
        }
    }

    /// The checkpoint that is named, or the run's newest.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        match &self.checkpoint {
            Some(folder) => Ok(folder.clone()),
            None => Checkpoint::newest(&checkpoints(&self.run))?.ok_or_else(|| no_checkpoint(&self.run)),
        }
    }
}

/// All checkpoints of a run that are kept, oldest first. One of an interrupt is only taken where there is no other: a run that was
/// stopped and went on has the same ones as one that was not.
pub(crate) fn every_checkpoint(run: &Path) -> Result<Vec<PathBuf>> {
    let path = checkpoints(run);
    let mut found = Vec::new();
    if path.exists() {
        found = folder::list(&path)?;
        if found.is_empty() {
            found = folder::interrupted(&path)?;
        }
    }
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
    /// What `encode` kept by them.
    pub(crate) cache: Option<Arc<TokenCache>>,
}

impl Encoders {
    /// Reads those of a run; its configuration says where weights are that the run holds no copy of.
    pub(crate) fn of(run: &Path, config: &Config) -> Result<Self> {
        let cache = TokenCache::configured(config)?;
        let tokenizer = corpus::saved_image_tokenizer(config, &run.join("image_tokenizer"))?;
        if let Some(cache) = &cache {
            cache.expect(config, tokenizer.as_ref())?;
        }
        let folder = run.join("text_encoder");
        let text = corpus::cached_text_encoder(config, &folder, &folder, cache.as_ref())?;
        Ok(Self { tokenizer, text, cache })
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
        let (tokenizer, ..) =
            corpus::image_tokenizer(config, (Path::new(""), &[]), None, interrupt, &mut |_, _, _| {})?;
        let cache = TokenCache::configured(config)?;
        if let Some(cache) = &cache {
            cache.expect(config, tokenizer.as_ref())?;
        }
        let text = corpus::text_encoder(config)?;
        let text = match &cache {
            None => text,
            Some(cache) => {
                cache.expect_text(&text.fingerprint())?;
                let config = config.clone();
                CachedText::wrap(cache, move || corpus::text_encoder(&config))?
            }
        };
        Ok(Self { tokenizer, text, cache })
    }

    /// Whether captions are encoded by a released encoder, in a run or as a configuration says.
    pub(crate) fn text_is_pretrained(config: &Config, run: Option<&Path>) -> Result<bool> {
        let described = match run {
            Some(run) => Some(run.join("text_encoder")),
            None => config.text_encoder.path.clone().filter(|path| path.join(TEXT_ENCODER).exists()),
        };
        match described {
            Some(folder) => is_pretrained(&folder),
            None => Ok(matches!(config.text_encoder.kind, TextEncoderKind::Pretrained { .. })),
        }
    }

    /// The same encoders, computing on a device if there is one.
    ///
    /// # Errors
    /// As for [`on`].
    pub(crate) fn on(self, device: Option<&Device>) -> Result<Self> {
        let (tokenizer, text) = on(device, self.tokenizer, self.text)?;
        Ok(Self { tokenizer, text, ..self })
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

/// Encoders that compute on a device, if there is one.
///
/// # Errors
/// If there is not enough memory, or the device fails.
pub(crate) fn on(
    device: Option<&Device>,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Box<dyn TextEncoder>,
) -> Result<(Box<dyn ImageTokenizer>, Box<dyn TextEncoder>)> {
    match device {
        None => Ok((tokenizer, text)),
        Some(device) => Ok((tokenizer.to_device(device)?, text.to_device(device)?)),
    }
}
