//! Preparation before the first step: records, encoders, tokens.

use std::{path::Path, sync::Arc};

use crate::{
    config::{Config, Portion},
    data::Record,
    encode::{ImageTokenizer, TextEncoder, pca::FitReport, pretrained::is_pretrained, saved::TEXT_ENCODER},
    engine::{Purpose, Random, cuda::Device},
    error::{Error, Result},
    files::write_atomic,
    interrupt::{Interrupt, NO_STEP},
    jobs::progress::Progress,
    tokens::{
        TEXT_ENCODER_FOLDER,
        cache::TokenCache,
        encoded::EncodedCorpus,
        encoders::{self, READY, expect_pyramid, make_folder, on},
        fitting, records,
        tokenize::{FitImages, Tokenize},
    },
    training::{inputs::Inputs, run_directory::RunDirectory},
};

/// The encoders and the two encoded sets.
pub(crate) struct Prepared {
    pub(crate) tokenizer: Box<dyn ImageTokenizer>,
    pub(crate) text: Box<dyn TextEncoder>,
    pub(crate) train: EncodedCorpus,
    pub(crate) validation: EncodedCorpus,
    /// The fit of the tokenizer, if this run fitted it.
    pub(crate) fit: Option<FitReport>,
    /// Fingerprint of the samples and their order.
    pub(crate) fingerprint: String,
}

impl Prepared {
    /// Records that were skipped.
    pub(crate) fn failed(&self) -> usize {
        self.train.failed.len() + self.validation.failed.len()
    }
}

fn portion(config: &Config, mut records: Vec<Record>) -> Vec<Record> {
    let count = |share: f64| ((records.len() as f64 * share).round().max(1.0)) as usize;
    match config.data.portion {
        Portion::All => records,
        Portion::First(share) => {
            let count = count(share);
            records.truncate(count);
            records
        }
        Portion::Random(share) => {
            let count = count(share);
            let mut indices: Vec<usize> = (0..records.len()).collect();
            Random::new(config.seed, Purpose::Select, 0).shuffle(&mut indices);
            indices.truncate(count);
            indices.sort_unstable();
            let mut kept = indices.into_iter().peekable();
            let mut index = 0;
            records.retain(|_| {
                let keep = kept.next_if_eq(&index).is_some();
                index += 1;
                keep
            });
            records
        }
    }
}

/// Whether a run uses validation records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValidationUse {
    /// It does: the configured validation set, or training records that are held out.
    Needed,
    /// It does not: each cross-fitted proxy evaluates records that it was not trained on.
    Unused,
}

/// Prepares the data and encoders of a run; encoders compute on the device if there is one.
///
/// # Errors
/// If the data or an encoder cannot be used, a file cannot be written, or the user interrupts.
pub(crate) fn prepare(
    config: &Config,
    directory: &RunDirectory,
    validation: ValidationUse,
    device: Option<&Device>,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Prepared> {
    let table = config.data.train_csv()?;
    let read = |table: &Path| interrupt.while_reading(NO_STEP, || config.open_corpus(table)?.read_all());
    let records = portion(config, read(table)?);
    let cache = interrupt.while_reading(NO_STEP, || TokenCache::configured(config))?;
    let cache = cache.as_ref();
    let (tokenizer, fit, mut images) =
        saved_or_fitted(config, directory, cache, (table, &records), interrupt, progress)?;
    if let Some(cache) = cache {
        cache.expect(config, tokenizer.as_ref())?;
    }
    let text = text_encoder(config, directory, cache, interrupt)?;
    let (tokenizer, text) = on(device, tokenizer, text)?;
    let tokenize = Tokenize { config, tokenizer: tokenizer.as_ref(), cache: cache.map(AsRef::as_ref) };
    let mut train = EncodedCorpus::encode(tokenize, records, &mut images, interrupt, progress)?;
    expect_usable(table, &train, directory)?;
    let unused = validation == ValidationUse::Unused;
    if unused && config.data.validation_portion.is_some() {
        tracing::warn!(
            "validation_portion: not used, because the rule `{}` needs no validation set",
            config.training.rule.rule
        );
    }
    let named = match &config.data.validation {
        None => None,
        Some(path) if unused => {
            tracing::warn!(
                "{}: not read, because the rule `{}` needs no validation set",
                path.display(),
                config.training.rule.rule
            );
            None
        }
        Some(path) => {
            let same = match (path.canonicalize(), table.canonicalize()) {
                (Ok(path), Ok(table)) => path == table,
                // A list or a pattern.
                _ => path == table,
            };
            if same {
                tracing::warn!("{} is both the training and the validation set", path.display());
            }
            let records = read(path)?;
            let none = &mut FitImages::default();
            let validation = EncodedCorpus::encode(tokenize, records, none, interrupt, progress)?;
            expect_usable(path, &validation, directory)?;
            Some((path.as_path(), validation))
        }
    };
    expect_inputs(config, directory, &train, named.as_ref())?;
    let (validation, note) = match named {
        Some((_, validation)) => (validation, None),
        None if unused => (train.split_off(0, config.seed), None),
        None => {
            let share = config.data.validation_portion.unwrap_or(DEFAULT_VALIDATION_PORTION);
            let count = ((train.len() as f64 * share).round() as usize).max(config.training.batch);
            if train.len() < count + config.training.batch {
                return Err(Error::not_enough_data(format!(
                    "{} usable records are too few to hold out {count} for validation and train on batches of {}; pass \
                     --validation FILE.csv, or a smaller batch, such as --set bs={}",
                    train.len(),
                    config.training.batch,
                    (train.len() / 4).max(1)
                )));
            }
            let note = format!("no validation set: holding out {count} training records");
            (train.split_off(count, config.seed), Some(note))
        }
    };
    if let Some(note) = note {
        progress.note(&note);
    }
    records::write_failed(&directory.failed(), train.failed.iter().chain(&validation.failed))?;
    let mut fingerprint = format!("{}+{}", train.fingerprint(), validation.fingerprint());
    if cache.is_some_and(|cache| cache.rounds_text()) {
        // Rounded text states change the training, so a run must not resume with unrounded ones, or vice versa.
        fingerprint.push_str("+text states in bf16");
    }
    Ok(Prepared { tokenizer, text, train, validation, fit, fingerprint })
}

/// Refuses a table without usable records, and lists the reasons in the run.
fn expect_usable(table: &Path, encoded: &EncodedCorpus, directory: &RunDirectory) -> Result<()> {
    if encoded.is_empty() {
        return Err(records::none_usable(table, &encoded.failed, Some(&directory.failed()))?);
    }
    Ok(())
}

/// Refuses records that differ from those at the start of the run, or stores them for a new run.
fn expect_inputs(
    config: &Config,
    directory: &RunDirectory,
    train: &EncodedCorpus,
    validation: Option<&(&Path, EncodedCorpus)>,
) -> Result<()> {
    let training = config.data.train_csv()?;
    let mut tables = vec![(training, train)];
    tables.extend(validation.map(|(path, validation)| (*path, validation)));
    let inputs = Inputs::of(config, &tables)?;
    if !directory.has_progress() {
        return inputs.write(&directory.inputs());
    }
    inputs.expect_same_records(&directory.inputs(), |table| {
        let records = config.open_corpus(table)?.read_all()?;
        Ok(if table == training { portion(config, records) } else { records })
    })
}

/// Share of the training set held out when the configuration names no validation set.
const DEFAULT_VALIDATION_PORTION: f64 = 0.05;

/// The tokenizer of the run: the saved one, otherwise a new one, which is saved before training starts.
fn saved_or_fitted(
    config: &Config,
    directory: &RunDirectory,
    cache: Option<&Arc<TokenCache>>,
    records: (&Path, &[Record]),
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitImages)> {
    let folder = directory.image_tokenizer();
    // Before the first checkpoint, the images may have changed since the tokenizer was fitted, so it is fitted again.
    if folder.join(READY).exists() && directory.has_progress() {
        let saved = interrupt.while_reading(NO_STEP, || encoders::saved_image_tokenizer(config, &folder))?;
        return Ok((saved, None, FitImages::default()));
    }
    let (tokenizer, report, images) = match cache {
        // If the configuration names no tokenizer, the one that wrote the cache is used and nothing is fitted.
        Some(cache) if config.image_tokenizer.path.is_none() => {
            (crate::encode::load_image_tokenizer(&cache.image_tokenizer())?, None, FitImages::default())
        }
        _ => {
            let failed_out = directory.failed();
            fitting::image_tokenizer(config, records, Some(&failed_out), interrupt, progress)?
        }
    };
    expect_pyramid(config, tokenizer.as_ref())?;
    make_folder(&folder)?;
    tokenizer.save(&folder)?;
    write_atomic(&folder.join(READY), b"")?;
    Ok((tokenizer, report, images))
}

/// The text encoder of the run: the saved one, otherwise the configuration's, which is saved first.
fn text_encoder(
    config: &Config,
    directory: &RunDirectory,
    cache: Option<&Arc<TokenCache>>,
    interrupt: &Interrupt,
) -> Result<Box<dyn TextEncoder>> {
    let folder = directory.text_encoder();
    let later = directory.path().join(TEXT_ENCODER_FOLDER);
    let saved =
        || interrupt.while_reading(NO_STEP, || encoders::cached_text_encoder(config, &folder, &later, cache));
    if folder.join(READY).exists() {
        return saved();
    }
    // As for images: if no folder is named, the released encoder that wrote the cache is used.
    let kept = cache.and_then(|cache| cache.text_encoder()).filter(|_| config.text_encoder.path.is_none());
    let description = match kept {
        Some(kept) if is_pretrained(&kept)? => Some(kept.join(TEXT_ENCODER)),
        _ => None,
    };
    make_folder(&folder)?;
    let text = match description {
        Some(description) => {
            let bytes = std::fs::read(&description).map_err(Error::io("read", &description))?;
            write_atomic(&folder.join(TEXT_ENCODER), &bytes)?;
            None
        }
        None => {
            let text = interrupt.while_reading(NO_STEP, || encoders::text_encoder(config))?;
            text.save(&folder)?;
            Some(text)
        }
    };
    write_atomic(&folder.join(READY), b"")?;
    match (text, cache) {
        (Some(text), None) => Ok(text),
        // A large encoder is dropped; it is loaded again if a caption is not in the cache.
        _ => saved(),
    }
}
