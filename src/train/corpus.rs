//! A corpus as the networks see it: every record's codes and caption, each picture decoded and tokenised once.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::{Config, ImageTokenizerKind, TextEncoderKind},
    data::{
        ColumnNames, Corpus, Loader, PictureBytes, Preprocess, RELEASED_EMPTY_CAPTION, Record, load_picture,
    },
    encode::{
        ImageTokenizer, TextEncoder, TextStates,
        hashed::HashedWords,
        pca::{FitReport, PcaSettings, PcaTokenizer},
        pretrained::{self, Pretrained},
        saved::{TEXT_ENCODER, read_description},
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Purpose, Random, Tensor},
    error::{Error, LeftOutRows, Reasons, Result},
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
    let corpus = Corpus::open(path, &columns(config))?.skipping_malformed(config.data.skip_bad_rows);
    Ok(if config.compat.empty_caption_text {
        corpus.with_empty_caption(RELEASED_EMPTY_CAPTION)
    } else {
        corpus
    })
}

/// Says how far a long job is; called from the thread that does it.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Fits the configured image tokenizer to a seeded sample of the records of `table`, or loads the one that is named. The
/// decoded pictures are given back, so that none is decoded twice.
///
/// An image that is not there or cannot be decoded is no part of the fit, and given back as such: it is left out and counted
/// wherever the corpus is read. A file that the system fails to read ends the fit, as the same command would give another
/// tokenizer when it can be read again.
///
/// # Errors
/// If no picture can be used (which `failed_out` then lists, if it is given), a file cannot be read, the sizes do not fit, or the
/// run is interrupted.
pub fn image_tokenizer(
    config: &Config,
    (table, records): (&Path, &[Record]),
    failed_out: Option<&Path>,
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitPictures)> {
    if let Some(path) = &config.image_tokenizer.path {
        let open = || -> Result<Box<dyn ImageTokenizer>> {
            match config.image_tokenizer.kind {
                ImageTokenizerKind::Pca => crate::encode::load_image_tokenizer(path),
                ImageTokenizerKind::VqVae => Ok(Box::new(VqVae::open(VqVaeSettings {
                    path: path.clone(),
                    patch_nums: config.networks.patch_nums.clone(),
                })?)),
            }
        };
        let tokenizer = interrupt.while_reading(NO_STEP, open)?;
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
    places.retain(|&place| records[place].malformed.is_none());
    let total = places.len() as u64;
    let requests = places.into_iter().map(|place| (place, records[place].image.clone())).collect::<Vec<_>>();
    let preprocess = preprocess(config, settings.side);
    let loader = Loader::new(requests, preprocess, config.data.workers, AHEAD)?;
    let mut pictures = HashMap::new();
    let mut failed = Vec::new();
    for (done, (place, picture)) in loader.enumerate() {
        interrupted(interrupt)?;
        progress("decoding for the tokenizer", done as u64 + 1, total);
        let picture = match picture {
            Err(_) => look_again(&records[place].image, &preprocess)?,
            found => found,
        };
        if let Err(error) = &picture {
            let Record { id, line, .. } = &records[place];
            failed.push(FailedRecord { id: id.clone(), line: *line, reason: error.to_string() });
        }
        pictures.insert(place, picture);
    }
    let mut used: Vec<(usize, &PictureBytes)> =
        pictures.iter().filter_map(|(place, picture)| Some((*place, picture.as_ref().ok()?))).collect();
    used.sort_unstable_by_key(|(place, _)| *place);
    if used.is_empty() {
        return Err(none_usable(table, &failed, failed_out)?);
    }
    if used.len() < pictures.len() {
        tracing::warn!(
            "{} of {total} images that the tokenizer is fitted to cannot be used and are left out",
            pictures.len() - used.len()
        );
    }
    let (tokenizer, report) = interrupt.while_reading(NO_STEP, || {
        PcaTokenizer::fit(settings, used.iter().map(|(_, picture)| picture.to_tensor()))
    })?;
    Ok((Box::new(tokenizer), Some(report), FitPictures(pictures)))
}

/// An image that could not be read, once more: what was wrong for a moment is not to change the tokenizer.
///
/// # Errors
/// If the file is there and the system fails to read it, which is no property of the image.
fn look_again(path: &Path, preprocess: &Preprocess) -> Result<Result<PictureBytes>> {
    let found = load_picture(path, preprocess);
    if found.is_err()
        && let Err(error) = read_through(path)
    {
        return Err(Error::Image {
            path: path.to_path_buf(),
            message: format!(
                "cannot be read ({error}), and the image tokenizer would be another one without it; mend that, or remove the row \
                 from the table"
            ),
        });
    }
    Ok(found)
}

/// Reads a file to its end. That there is none, or something else than a file, is no failure.
fn read_through(path: &Path) -> io::Result<()> {
    let of_the_name = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::InvalidInput
                | ErrorKind::InvalidFilename
        )
    };
    let read = || match fs::metadata(path)?.is_file() {
        true => io::copy(&mut File::open(path)?, &mut io::sink()).map(|_| ()),
        // A named pipe is not opened, as that would wait for a writer.
        false => Ok(()),
    };
    match read() {
        Err(error) if !of_the_name(&error) => Err(error),
        _ => Ok(()),
    }
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

/// Writes a table of records that were left out.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_failed<'a>(path: &Path, failed: impl Iterator<Item = &'a FailedRecord>) -> Result<()> {
    let row = |record: &FailedRecord| [record.id.clone(), record.line.to_string(), record.reason.clone()];
    write_csv(path, &["id", "line", "reason"], failed.map(row))
}

/// Why a job ends that can use no row of `table`: the reasons with their counts. `failed_out`, if it is given, lists every row.
///
/// # Errors
/// If the list cannot be written.
pub(crate) fn none_usable(table: &Path, failed: &[FailedRecord], failed_out: Option<&Path>) -> Result<Error> {
    if let Some(path) = failed_out {
        write_failed(path, failed.iter())?;
    }
    let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
    Ok(reasons.none_usable(table, failed_out))
}

/// What an interrupted run says before its first step.
pub(crate) const NO_STEP: &str = "no step had been done yet, so there was nothing to save";

/// What it says before it has continued.
pub(crate) const AS_IT_WAS: &str = "the run is as it was; give the same command again";

fn interrupted(interrupt: &Interrupt) -> Result<()> {
    interrupt.check(NO_STEP)
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
    /// For each record of the table, the beginning of a SHA-256 over id, caption and codes; 0 for one that could not be used.
    pub(crate) rows: Vec<u64>,
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
        let mut corpus = Self {
            ids: Vec::new(),
            captions: Vec::new(),
            failed: Vec::new(),
            codes,
            tokens,
            rows: Vec::with_capacity(records.len()),
        };
        let mut left_out = LeftOutRows::default();
        for (record, reason) in records.drain(..).zip(reasons) {
            let codes = corpus.codes_of(corpus.ids.len());
            corpus.rows.push(reason.as_ref().map_or_else(|| row_digest(&record, codes), |_| 0));
            match reason {
                None => {
                    corpus.ids.push(record.id);
                    corpus.captions.push(record.caption);
                }
                Some(reason) => {
                    left_out.add(&record.id, &reason);
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
            rows: Vec::new(),
        }
    }

    fn codes_of(&self, place: usize) -> &[u16] {
        self.codes.get(place * self.tokens..(place + 1) * self.tokens).unwrap_or_default()
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

/// What a record is known by; never 0.
fn row_digest(record: &Record, codes: &[u16]) -> u64 {
    let mut hash = Sha256::new();
    let (id, caption) = (&record.id, &record.caption);
    hash.update(format!("{}:{id}{}:{caption}", id.len(), caption.len()));
    for code in codes {
        hash.update(code.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)).max(1)
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
