//! The encoders of a run or a configuration, with the token cache where one is named.

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

/// Refuses a tokenizer whose token maps or images have other sides than the configuration's.
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

/// Written into an encoder's folder when all of it is there.
pub(crate) const READY: &str = "ready";

pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

/// The configured text encoder, fresh or loaded.
///
/// # Errors
/// If it cannot be made.
pub fn text_encoder(config: &Config) -> Result<Box<dyn TextEncoder>> {
    let settings = &config.text_encoder;
    match (settings.kind, &settings.path) {
        // A folder that an encoder was saved in says itself what it is.
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

/// The image tokenizer that a run saved in `folder`, its weights being where the configuration says that they are now.
///
/// # Errors
/// If it cannot be loaded.
pub fn saved_image_tokenizer(config: &Config, folder: &Path) -> Result<Box<dyn ImageTokenizer>> {
    let settings = &config.image_tokenizer;
    let moved = settings.path.as_deref().filter(|_| settings.kind == ImageTokenizerKind::VqVae);
    crate::encode::load_moved_image_tokenizer(folder, moved)
}

/// The text encoder that a run saved in `folder`, from where the configuration says that it is now.
///
/// # Errors
/// If it cannot be loaded.
pub fn saved_text_encoder(config: &Config, folder: &Path) -> Result<Box<dyn TextEncoder>> {
    // The path of another kind of encoder, or of a description, is where the run's copy was made from.
    let moved = config.text_encoder.path.as_deref().filter(|path| {
        matches!(config.text_encoder.kind, TextEncoderKind::Pretrained { .. })
            && !path.join(TEXT_ENCODER).exists()
    });
    crate::encode::load_moved_text_encoder(folder, moved)
}

/// The text encoder that a run saved in `folder`, its states taken from the token cache where that holds some.
///
/// # Errors
/// If it cannot be loaded, or the cache's states are another encoder's.
pub(crate) fn cached_text_encoder(
    config: &Config,
    folder: &Path,
    later: &Path,
    cache: Option<&Arc<TokenCache>>,
) -> Result<Box<dyn TextEncoder>> {
    let Some(cache) = cache else { return saved_text_encoder(config, folder) };
    cache.expect_text(&read_description(&folder.join(TEXT_ENCODER))?.fingerprint)?;
    let (config, places) = (config.clone(), [folder.to_path_buf(), later.to_path_buf()]);
    CachedText::wrap(cache, move || {
        let there = places.iter().find(|place| place.join(TEXT_ENCODER).exists());
        saved_text_encoder(&config, there.unwrap_or(&places[0]))
    })
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
        let tokenizer = saved_image_tokenizer(config, &run.join(IMAGE_TOKENIZER_FOLDER))?;
        if let Some(cache) = &cache {
            cache.expect(config, tokenizer.as_ref())?;
        }
        let folder = run.join(TEXT_ENCODER_FOLDER);
        let text = cached_text_encoder(config, &folder, &folder, cache.as_ref())?;
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

    /// Whether captions are encoded by a released encoder, in a run or as a configuration says.
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

    /// The same encoders, computing on a device if there is one.
    ///
    /// # Errors
    /// As for [`on`].
    pub(crate) fn on(self, device: Option<&Device>) -> Result<Self> {
        let (tokenizer, text) = on(device, self.tokenizer, self.text)?;
        Ok(Self { tokenizer, text, ..self })
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
