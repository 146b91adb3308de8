//! What comes before the first step: records, encoders, tokens.

use std::path::Path;

use crate::{
    config::{Config, Portion},
    data::Record,
    encode::{ImageTokenizer, TextEncoder, pca::FitReport},
    engine::{Purpose, Random, cuda::Device},
    error::{Error, Result},
    files::write_whole,
    interrupt::Interrupt,
    train::{
        corpus::{self, EncodedCorpus, FailedRecord, FitPictures, Progress},
        run_directory::RunDirectory,
        trained::Encoders,
    },
};

/// Watches what comes before training.
pub trait Preparing {
    /// A part of the preparation is `done` out of `total`.
    fn preparing(&mut self, what: &str, done: u64, total: u64);
    /// Something the user should know, in one sentence.
    fn note(&mut self, sentence: &str);
}

/// Encoders and the two sets, encoded.
pub(crate) struct Prepared {
    pub(crate) tokenizer: Box<dyn ImageTokenizer>,
    pub(crate) text: Box<dyn TextEncoder>,
    pub(crate) train: EncodedCorpus,
    pub(crate) validation: EncodedCorpus,
    /// How well the tokenizer fits, if it was fitted here.
    pub(crate) fit: Option<FitReport>,
    /// Of the samples and their order.
    pub(crate) fingerprint: String,
}

impl Prepared {
    /// Records that were left out.
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
            let mut places: Vec<usize> = (0..records.len()).collect();
            Random::new(config.seed, Purpose::Select, 0).shuffle(&mut places);
            places.truncate(count);
            places.sort_unstable();
            let mut kept = places.into_iter().peekable();
            let mut place = 0;
            records.retain(|_| {
                let keep = kept.next_if_eq(&place).is_some();
                place += 1;
                keep
            });
            records
        }
    }
}

/// Everything that a run needs of data and encoders, which compute on the device if there is one.
///
/// # Errors
/// If the data or an encoder cannot be used, a file cannot be written, or the user interrupts.
pub(crate) fn prepare(
    config: &Config,
    directory: &RunDirectory,
    device: Option<&Device>,
    interrupt: &Interrupt,
    observer: &mut dyn Preparing,
) -> Result<Prepared> {
    let records = portion(config, corpus::open(config, config.data.train_csv()?)?.read_all()?);
    let mut progress = |what: &str, done: u64, total: u64| observer.preparing(what, done, total);
    let progress: &mut Progress<'_> = &mut progress;
    let (tokenizer, fit, mut pictures) = saved_or_fitted(config, directory, &records, interrupt, progress)?;
    let text = text_encoder(config, directory)?;
    let Encoders { tokenizer, text } = Encoders { tokenizer, text }.on(device)?;
    let mut train =
        EncodedCorpus::encode(config, records, tokenizer.as_ref(), &mut pictures, interrupt, progress)?;
    let (validation, note) = match &config.data.validation {
        Some(path) => {
            let records = corpus::open(config, path)?.read_all()?;
            let none = &mut FitPictures::default();
            (EncodedCorpus::encode(config, records, tokenizer.as_ref(), none, interrupt, progress)?, None)
        }
        None => {
            let share = config.data.validation_portion.unwrap_or(DEFAULT_VALIDATION_PORTION);
            let count = ((train.len() as f64 * share).round() as usize).max(config.training.batch);
            if train.len() < count + config.training.batch {
                return Err(Error::invalid(format!(
                    "{} usable records are too few to hold out {count} for validation; give val_csv_path or lower bs",
                    train.len()
                )));
            }
            let note = format!("no validation set is named, so {count} training records are held out for it");
            (train.split_off(count, config.seed), Some(note))
        }
    };
    if let Some(note) = note {
        observer.note(&note);
    }
    write_failed(directory, &[&train.failed, &validation.failed])?;
    let fingerprint = format!("{}+{}", train.fingerprint(), validation.fingerprint());
    Ok(Prepared { tokenizer, text, train, validation, fit, fingerprint })
}

/// Share of the training set held out where the configuration says nothing of validation.
const DEFAULT_VALIDATION_PORTION: f64 = 0.05;

/// The tokenizer of the run: the one it saved, else a fresh one, which is saved before anything is trained on it.
fn saved_or_fitted(
    config: &Config,
    directory: &RunDirectory,
    records: &[Record],
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitPictures)> {
    let folder = directory.image_tokenizer();
    if folder.join(READY).exists() {
        return Ok((corpus::saved_image_tokenizer(config, &folder)?, None, FitPictures::default()));
    }
    let (tokenizer, report, pictures) = corpus::image_tokenizer(config, records, interrupt, progress)?;
    if tokenizer.quantizer().patch_nums() != config.networks.patch_nums
        || tokenizer.image_side() != config.networks.image_side()
    {
        return Err(Error::invalid(format!(
            "the image tokenizer makes token maps of sides {:?} from pictures of {} pixels, but the configuration says \
             {:?} and {}",
            tokenizer.quantizer().patch_nums(),
            tokenizer.image_side(),
            config.networks.patch_nums,
            config.networks.image_side()
        )));
    }
    make_folder(&folder)?;
    tokenizer.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok((tokenizer, report, pictures))
}

/// Written into an encoder's folder when all of it is there.
const READY: &str = "ready";

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

fn text_encoder(config: &Config, directory: &RunDirectory) -> Result<Box<dyn TextEncoder>> {
    let folder = directory.text_encoder();
    if folder.join(READY).exists() {
        return corpus::saved_text_encoder(config, &folder);
    }
    let text = corpus::text_encoder(config)?;
    make_folder(&folder)?;
    text.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok(text)
}

fn write_failed(directory: &RunDirectory, failed: &[&Vec<FailedRecord>]) -> Result<()> {
    let path = directory.failed();
    let mut table = csv::Writer::from_writer(Vec::new());
    let refuse =
        |error: csv::Error| Error::Table { path: path.clone(), line: None, message: error.to_string() };
    table.write_record(["id", "line", "reason"]).map_err(refuse)?;
    for record in failed.iter().copied().flatten() {
        table.write_record([&record.id, &record.line.to_string(), &record.reason]).map_err(refuse)?;
    }
    table.flush().map_err(Error::io("write", &path))?;
    let bytes = table.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(&path, &bytes)
}
