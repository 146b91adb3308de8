//! A corpus as the networks see it: every record's codes and caption, each picture decoded and tokenised once.

use std::{collections::HashMap, path::Path, sync::Arc};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::{Config, ImageTokenizerKind, TextEncoderKind},
    data::{ColumnNames, Corpus, Loader, Preprocess, RELEASED_EMPTY_CAPTION, Record},
    encode::{
        ImageTokenizer, TextEncoder, TextStates,
        hashed::HashedWords,
        pca::{FitReport, PcaSettings, PcaTokenizer},
        pretrained::{self, Pretrained},
        saved::{TEXT_ENCODER, read_description},
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Purpose, Random, Tensor},
    error::{Error, Result},
    files::{hexadecimal, write_csv},
    interrupt::Interrupt,
    train::{
        batch::Batch,
        cache::{CachedText, TokenCache},
        tokenise::{FitPictures, Tokenise},
    },
};

/// Pictures decoded ahead of their use.
const AHEAD: usize = 128;

/// A record that could not be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRecord {
    /// The record's id.
    pub id: String,
    /// Its line in the table.
    pub line: u64,
    /// What is wrong.
    pub reason: String,
}

/// How pictures are decoded under a configuration, for a tokenizer of this side.
pub fn preprocess(config: &Config, side: usize) -> Preprocess {
    let mut preprocess = Preprocess::default_for(side);
    let released = Preprocess::released(side);
    if config.compat.drop_alpha {
        preprocess.alpha = released.alpha;
    }
    preprocess.apply_orientation = !config.compat.ignore_exif;
    preprocess.clip_grey16 = config.compat.clip_grey16;
    preprocess.max_pixels = config.data.max_pixels;
    preprocess.truncated = config.data.truncated_images;
    preprocess
}

/// The columns that a configuration names.
pub fn columns(config: &Config) -> ColumnNames {
    ColumnNames {
        id: config.data.id_column.clone(),
        image: config.data.image_column.clone(),
        caption: config.data.caption_column.clone(),
    }
}

/// Opens a corpus as a configuration wants it read.
///
/// # Errors
/// If the table cannot be used.
pub fn open(config: &Config, path: &Path) -> Result<Corpus> {
    let corpus = Corpus::open(path, &columns(config))?;
    Ok(if config.compat.empty_caption_text {
        corpus.with_empty_caption(RELEASED_EMPTY_CAPTION)
    } else {
        corpus
    })
}

/// Says how far a long job is; called from the thread that does it.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Fits the configured image tokenizer to a seeded sample of the records, or loads the one that is named. The decoded
/// pictures are given back, so that none is decoded twice.
///
/// # Errors
/// If no picture can be used, the sizes do not fit, or the run is interrupted.
pub fn image_tokenizer(
    config: &Config,
    records: &[Record],
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitPictures)> {
    if let Some(path) = &config.image_tokenizer.path {
        let tokenizer = match config.image_tokenizer.kind {
            ImageTokenizerKind::Pca => crate::encode::load_image_tokenizer(path)?,
            ImageTokenizerKind::VqVae => Box::new(VqVae::open(VqVaeSettings {
                path: path.clone(),
                patch_nums: config.networks.patch_nums.clone(),
            })?),
        };
        return Ok((tokenizer, None, FitPictures::default()));
    }
    let settings = PcaSettings {
        side: config.networks.image_side(),
        patch: config.networks.patch_size,
        components: config.image_tokenizer.components,
        codes: config.image_tokenizer.codes,
        patch_nums: config.networks.patch_nums.clone(),
        seed: config.seed,
    };
    let mut places: Vec<usize> = (0..records.len()).collect();
    Random::new(config.seed, Purpose::Fit, 0).shuffle(&mut places);
    places.truncate(config.image_tokenizer.fit_images);
    places.sort_unstable();
    let total = places.len() as u64;
    let requests = places.into_iter().map(|place| (place, records[place].image.clone())).collect::<Vec<_>>();
    let loader = Loader::new(requests, preprocess(config, settings.side), config.data.workers, AHEAD)?;
    let mut pictures = HashMap::new();
    for (done, (place, picture)) in loader.enumerate() {
        interrupted(interrupt)?;
        progress("decoding for the tokenizer", done as u64 + 1, total);
        if let Ok(picture) = picture {
            pictures.insert(place, picture);
        }
    }
    let mut order: Vec<usize> = pictures.keys().copied().collect();
    order.sort_unstable();
    let (tokenizer, report) =
        PcaTokenizer::fit(settings, order.iter().map(|place| pictures[place].to_tensor()))?;
    Ok((Box::new(tokenizer), Some(report), FitPictures(pictures)))
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
            let settings = pretrained::Settings { path: path.clone(), tokens, channels, mean_over_padding };
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
    cache: Option<&Arc<TokenCache>>,
) -> Result<Box<dyn TextEncoder>> {
    let Some(cache) = cache else { return saved_text_encoder(config, folder) };
    cache.expect_text(&read_description(&folder.join(TEXT_ENCODER))?.fingerprint)?;
    let (config, folder) = (config.clone(), folder.to_path_buf());
    CachedText::wrap(cache, move || saved_text_encoder(&config, &folder))
}

/// Writes a table of records that were left out.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_failed<'a>(path: &Path, failed: impl Iterator<Item = &'a FailedRecord>) -> Result<()> {
    let row = |record: &FailedRecord| [record.id.clone(), record.line.to_string(), record.reason.clone()];
    write_csv(path, &["id", "line", "reason"], failed.map(row))
}

fn interrupted(interrupt: &Interrupt) -> Result<()> {
    interrupt.check("no step had been done yet, so there was nothing to save")
}

/// Usable records with their codes.
#[derive(Clone, Debug)]
pub struct EncodedCorpus {
    /// Ids of the usable records, in the table's order.
    pub ids: Vec<String>,
    /// Their captions.
    pub captions: Vec<String>,
    /// Records that could not be used.
    pub failed: Vec<FailedRecord>,
    codes: Vec<u16>,
    tokens: usize,
}

impl EncodedCorpus {
    /// Every record's codes, from the cache or from its picture.
    ///
    /// # Errors
    /// If the vocabulary has more than 65,536 codes or the run is interrupted.
    pub(crate) fn encode(
        tokenise: Tokenise<'_>,
        mut records: Vec<Record>,
        pictures: &mut FitPictures,
        interrupt: &Interrupt,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let tokens = tokenise.tokenizer.quantizer().tokens();
        let total = records.len() as u64;
        let (mut codes, mut reasons) = (Vec::new(), Vec::with_capacity(records.len()));
        let origins = tokenise.each(&records, pictures, |place, found| {
            interrupted(interrupt)?;
            progress("tokenising", place as u64 + 1, total);
            reasons.push(match found {
                Ok(found) => {
                    codes.extend(found);
                    None
                }
                Err(error) => Some(error.to_string()),
            });
            Ok(())
        })?;
        if let Some(cache) = tokenise.cache {
            let folder = cache.folder().display();
            if origins.changed > 0 {
                tracing::warn!(
                    "{} pictures were changed since {folder} was made; they are tokenised anew",
                    origins.changed
                );
            }
            tracing::info!("{} of {total} pictures' tokens are in {folder}", origins.cached);
        }
        let mut corpus = Self { ids: Vec::new(), captions: Vec::new(), failed: Vec::new(), codes, tokens };
        for (record, reason) in records.drain(..).zip(reasons) {
            match reason {
                None => {
                    corpus.ids.push(record.id);
                    corpus.captions.push(record.caption);
                }
                Some(reason) => {
                    tracing::warn!("left out {}: {reason}", record.id);
                    corpus.failed.push(FailedRecord { id: record.id, line: record.line, reason });
                }
            }
        }
        Ok(corpus)
    }

    /// Usable records.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Takes the last `count` of a seeded shuffle out, as a corpus of its own: for validation where none is given.
    pub fn split_off(&mut self, count: usize, seed: u64) -> Self {
        let mut places: Vec<usize> = (0..self.len()).collect();
        Random::new(seed, Purpose::Shuffle, u64::MAX).shuffle(&mut places);
        let mut held = places.split_off(self.len() - count);
        held.sort_unstable();
        places.sort_unstable();
        let taken = self.part(&held, Vec::new());
        let failed = std::mem::take(&mut self.failed);
        *self = self.part(&places, failed);
        taken
    }

    /// The records at `places`.
    fn part(&self, places: &[usize], failed: Vec<FailedRecord>) -> Self {
        Self {
            ids: places.iter().map(|&place| self.ids[place].clone()).collect(),
            captions: places.iter().map(|&place| self.captions[place].clone()).collect(),
            failed,
            codes: places.iter().flat_map(|&place| self.codes_of(place)).copied().collect(),
            tokens: self.tokens,
        }
    }

    fn codes_of(&self, place: usize) -> &[u16] {
        &self.codes[place * self.tokens..(place + 1) * self.tokens]
    }

    /// SHA-256 over ids, captions and codes in order.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (id, caption) in self.ids.iter().zip(&self.captions) {
            hash.update(format!("{}:{id}{}:{caption}", id.len(), caption.len()));
        }
        for code in &self.codes {
            hash.update(code.to_le_bytes());
        }
        hexadecimal(&hash.finalize())
    }

    /// The records at `places` as one batch; `drop_caption` says of which the caption is left out.
    ///
    /// # Errors
    /// If an encoder fails.
    pub fn batch(
        &self,
        places: &[usize],
        drop_caption: impl Fn(usize, &str) -> bool,
        tokenizer: &dyn ImageTokenizer,
        text: &dyn TextEncoder,
    ) -> Result<Batch> {
        let codes: Vec<u32> =
            places.iter().flat_map(|&place| self.codes_of(place)).map(|&code| u32::from(code)).collect();
        let captions: Vec<&str> = places
            .iter()
            .enumerate()
            .map(
                |(at, &place)| {
                    if drop_caption(at, &self.captions[place]) { "" } else { self.captions[place].as_str() }
                },
            )
            .collect();
        batch(Tensor::new(&[places.len(), self.tokens], codes)?, &captions, tokenizer, text)
    }
}

/// Codes `[B, L]` and captions as one batch, the networks' input not yet made.
///
/// # Errors
/// If an encoder fails.
pub fn batch(
    codes: Tensor,
    captions: &[&str],
    tokenizer: &dyn ImageTokenizer,
    text: &dyn TextEncoder,
) -> Result<Batch> {
    let quantizer = tokenizer.quantizer();
    let text: TextStates = text.encode(captions)?;
    let last_scale = quantizer.patch_nums().last().map_or(0, |side| side * side);
    Ok(Batch { codes, input: None, through: None, text, last_scale })
}

/// Maps every record of a chunk on all threads, in order.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    items.par_iter().map(work).collect()
}
