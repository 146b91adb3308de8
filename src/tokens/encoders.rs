//! The encoders of a run or a configuration, with the token cache if one is configured.

use std::{path::Path, sync::Arc};

use crate::{
    config::{Config, ImageTokenizerKind, TextEncoderKind},
    encode::{
        ImageTokenizer, TextEncoder,
        hashed::HashedWords,
        pretrained::{self, Pretrained, is_pretrained},
        saved::{TEXT_ENCODER, read_description},
    },
    engine::cuda::Device,
    error::{Error, Result},
    interrupt::Interrupt,
    tokens::{
        IMAGE_TOKENIZER_FOLDER, TEXT_ENCODER_FOLDER,
        cache::{CachedText, TokenCache},
        fitting::image_tokenizer,
    },
};

/// Checks that the tokenizer's token maps and image side match the configuration.
pub(crate) fn expect_pyramid(config: &Config, tokenizer: &dyn ImageTokenizer) -> Result<()> {
    if tokenizer.quantizer().patch_nums() != config.networks.patch_nums
        || tokenizer.image_side() != config.networks.image_side()
    {
        return Err(Error::invalid(format!(
            "the image tokenizer makes token maps of sides {:?} from images of {} pixels, but the configuration says \
             {:?} and {}",
            tokenizer.quantizer().patch_nums(),
            tokenizer.image_side(),
            config.networks.patch_nums,
            config.networks.image_side()
        )));
    }
    Ok(())
}

/// Marker file in an encoder's folder, written when the folder is complete.
pub(crate) const READY: &str = "ready";

pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

/// The configured text encoder, initialized or loaded.
///
/// # Errors
/// If it cannot be created or loaded.
pub fn text_encoder(config: &Config) -> Result<Box<dyn TextEncoder>> {
    let settings = &config.text_encoder;
    match (settings.kind, &settings.path) {
        // The folder of a saved encoder contains its description.
        (_, Some(path)) if path.join(TEXT_ENCODER).exists() => crate::encode::load_text_encoder(path),
        (TextEncoderKind::HashedWords { .. }, Some(path)) => crate::encode::load_text_encoder(path),
        (TextEncoderKind::HashedWords { tokens, channels }, None) => {
            Ok(Box::new(HashedWords::new(tokens, channels, config.seed)?))
        }
        (TextEncoderKind::Pretrained { kind, tokens, channels }, Some(path)) => {
            let mean_over_padding = config.compat.t5_mean_over_padding;
            let settings =
                pretrained::PretrainedSettings { path: path.clone(), tokens, channels, mean_over_padding };
            Ok(Box::new(Pretrained::open(kind, settings)?))
        }
        (TextEncoderKind::Pretrained { .. }, None) => {
            Err(Error::invalid("text_encoder.path must name the folder of the text encoder"))
        }
    }
}

/// Loads the image tokenizer that a run saved in `folder`, with its weights from the configured path.
///
/// # Errors
/// If it cannot be loaded.
pub fn saved_image_tokenizer(config: &Config, folder: &Path) -> Result<Box<dyn ImageTokenizer>> {
    let settings = &config.image_tokenizer;
    let moved = settings.path.as_deref().filter(|_| settings.kind == ImageTokenizerKind::VqVae);
    crate::encode::load_moved_image_tokenizer(folder, moved)
}

/// Loads the text encoder that a run saved in `folder`, from the configured path.
///
/// # Errors
/// If it cannot be loaded.
pub fn saved_text_encoder(config: &Config, folder: &Path) -> Result<Box<dyn TextEncoder>> {
    // A path of another kind, or of a description, is where the run's copy came from.
    let moved = config.text_encoder.path.as_deref().filter(|path| {
        matches!(config.text_encoder.kind, TextEncoderKind::Pretrained { .. })
            && !path.join(TEXT_ENCODER).exists()
    });
    crate::encode::load_moved_text_encoder(folder, moved)
}

/// The text encoder that a run saved in `folder`, with states from the token cache where available.
///
/// # Errors
/// If it cannot be loaded, or the cache has another encoder's states.
pub(crate) fn cached_text_encoder(
    config: &Config,
    folder: &Path,
    later: &Path,
    cache: Option<&Arc<TokenCache>>,
) -> Result<Box<dyn TextEncoder>> {
    let Some(cache) = cache else { return saved_text_encoder(config, folder) };
    cache.expect_text(&read_description(&folder.join(TEXT_ENCODER))?.fingerprint)?;
    let (config, folders) = (config.clone(), [folder.to_path_buf(), later.to_path_buf()]);
    CachedText::wrap(cache, move || {
        let there = folders.iter().find(|folder| folder.join(TEXT_ENCODER).exists());
        saved_text_encoder(&config, there.unwrap_or(&folders[0]))
    })
}

/// The encoders of a trained model.
pub(crate) struct Encoders {
    pub(crate) tokenizer: Box<dyn ImageTokenizer>,
    pub(crate) text: Box<dyn TextEncoder>,
    /// The token cache of these encoders.
    pub(crate) cache: Option<Arc<TokenCache>>,
}

impl Encoders {
    /// Loads the encoders of a run. The configuration locates weights of which the run has no copy.
    pub(crate) fn of(run: &Path, config: &Config) -> Result<Self> {
        let cache = TokenCache::configured(config)?;
        let tokenizer = saved_image_tokenizer(config, &run.join(IMAGE_TOKENIZER_FOLDER))?;
        if let Some(cache) = &cache {
            cache.expect(config, tokenizer.as_ref())?;
        }
        let folder = run.join(TEXT_ENCODER_FOLDER);
        let text = cached_text_encoder(config, &folder, &folder, cache.as_ref())?;
        Ok(Self { tokenizer, text, cache })
    }

    /// Loads the encoders that a configuration names, for weights that were not trained by this program.
    ///
    /// # Errors
    /// If the configuration names no image tokenizer, or an encoder cannot be read.
    pub(crate) fn named(config: &Config, interrupt: &Interrupt) -> Result<Self> {
        if config.image_tokenizer.path.is_none() {
            return Err(Error::invalid(
                "released weights need the image tokenizer they were trained with: set image_tokenizer.kind to vqvae \
                 and image_tokenizer.path to its weights, or image_tokenizer.path to the folder image_tokenizer of a run",
            ));
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if matches!(config.text_encoder.kind, TextEncoderKind::HashedWords { .. }) {
            tracing::warn!(
                "captions are encoded by hashed words; unless the weights were trained on them, set text_enc_path to \
                 the folder of their text encoder"
            );
        }
        let (tokenizer, ..) = image_tokenizer(config, (Path::new(""), &[]), None, interrupt, &mut ())?;
        let cache = TokenCache::configured(config)?;
        if let Some(cache) = &cache {
            cache.expect(config, tokenizer.as_ref())?;
        }
        let text = text_encoder(config)?;
        let text = match &cache {
            None => text,
            Some(cache) => {
                cache.expect_text(&text.fingerprint())?;
                let config = config.clone();
                CachedText::wrap(cache, move || text_encoder(&config))?
            }
        };
        Ok(Self { tokenizer, text, cache })
    }

    /// Whether the run or the configuration uses a pretrained text encoder.
    pub(crate) fn text_is_pretrained(config: &Config, run: Option<&Path>) -> Result<bool> {
        let described = match run {
            Some(run) => Some(run.join(TEXT_ENCODER_FOLDER)),
            None => config.text_encoder.path.clone().filter(|path| path.join(TEXT_ENCODER).exists()),
        };
        match described {
            Some(folder) => is_pretrained(&folder),
            None => Ok(matches!(config.text_encoder.kind, TextEncoderKind::Pretrained { .. })),
        }
    }

    /// Moves the encoders to `device`, if given.
    ///
    /// # Errors
    /// See [`on`].
    pub(crate) fn on(self, device: Option<&Device>) -> Result<Self> {
        let (tokenizer, text) = on(device, self.tokenizer, self.text)?;
        Ok(Self { tokenizer, text, ..self })
    }

    /// The vocabulary, the channels per code and the text channels, which determine the network's size.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let quantizer = self.tokenizer.quantizer();
        (quantizer.vocabulary(), quantizer.channels(), self.text.channels())
    }
}

/// Moves encoders to `device`, if given.
///
/// # Errors
/// If the device runs out of memory or fails.
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
