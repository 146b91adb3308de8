//! The ratings of a cross-fitted run: those of its training records are looked up, and other records are evaluated by the
//! proxies of all folds, none of which has seen them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    COLUMNS, HeldOut, fold_proxy,
    gain::{Bank, Evaluator},
    reference::Reference,
};
use crate::{
    config::Config,
    engine::{Tensor, cuda::Device},
    error::{Error, Result},
    files::sha256_of_file,
    generator::fit::Model,
    tokens::{
        encoded::{EncodedCorpus, record_digest},
        encoders::Encoders,
    },
    training::{
        checkpoint::Checkpoint,
        run_directory::{FOLDS, GAINS},
        trained::Named,
    },
};

/// The ratings of a cross-fitted run.
pub(crate) struct MeasuredRatings {
    run: PathBuf,
    /// Of the run's training records, by their digests.
    of: HashMap<u64, f64>,
    folds: Vec<Fold>,
    /// Records that were found and not found.
    counts: [AtomicU64; 2],
    /// The warning that the proxies evaluate records.
    slower: Once,
    /// SHA-256 of the table.
    pub(crate) digest: String,
}

/// The proxy of a fold, with what its evaluations are compared with.
struct Fold {
    model: Model,
    bank: Bank,
    reference: Reference,
}

impl MeasuredRatings {
    /// Reads the table and the proxies of a run.
    ///
    /// # Errors
    /// If one is missing, damaged or cannot be read.
    pub(crate) fn of_run(
        named: &Named,
        config: &Config,
        encoders: &Encoders,
        device: Option<&Device>,
    ) -> Result<Self> {
        Checkpoint::run_files(&named.folder()?)?.expect_recordings(&named.run)?;
        let path = named.run.join(GAINS);
        let (mut of, mut measured) = (HashMap::new(), Vec::new());
        each_row(&path, |row| {
            let digest = u64::from_str_radix(row.get(COLUMNS.len())?, 16).ok()?;
            of.insert(digest, row.get(1)?.parse().ok()?);
            measured.push(held_out(row)?);
            Some(())
        })?;
        let formula = config.training.rule.rule.formula;
        let folds = (0..config.crossfit.folds).map(|fold| {
            let folder = named.run.join(FOLDS).join(fold.to_string());
            let (model, captions) = fold_proxy::load(&folder, config, encoders, device)?;
            let bank = Bank::of(captions, config.seed);
            let found: Vec<HeldOut> = measured.iter().filter(|found| found.fold == fold).copied().collect();
            Ok(Fold { model, bank, reference: Reference::new(&found, formula)? })
        });
        Ok(Self {
            run: named.run.clone(),
            of,
            folds: folds.collect::<Result<_>>()?,
            counts: Default::default(),
            slower: Once::new(),
            digest: sha256_of_file(&path)?,
        })
    }

    /// Warns if some records were not among those of the run.
    pub(crate) fn warn_of_others(&self) {
        let [known, others] = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        if others > 0 {
            tracing::warn!("{others} of {} records are not among those of the run", known + others);
        }
    }

    /// The measured rating of each record of codes `[B, L]`. A record that is not in the table gets the standard normal
    /// distribution function of the rater's logit, because the logit estimates the normal score of the percentile.
    ///
    /// # Errors
    /// If an encoder or a device fails, or the run has no captions to compare those of other records with.
    pub(crate) fn rate(
        &self,
        config: &Config,
        encoders: &Encoders,
        codes: &Tensor,
        records: &[(&str, &str)],
    ) -> Result<Vec<f64>> {
        let rows = codes.as_slice::<u32>()?.chunks(codes.dim(1).max(1));
        let mut ratings: Vec<Option<f64>> = rows
            .zip(records)
            .map(|(codes, (id, caption))| {
                // A run's codes are 16 bits wide.
                let codes = codes.iter().map(|&code| u16::try_from(code).unwrap_or(u16::MAX));
                self.of.get(&record_digest(id, caption, codes)).copied()
            })
            .collect();
        let others: Vec<usize> = (0..ratings.len()).filter(|&index| ratings[index].is_none()).collect();
        for (count, found) in self.counts.iter().zip([ratings.len() - others.len(), others.len()]) {
            count.fetch_add(found as u64, Ordering::Relaxed);
        }
        if !others.is_empty() {
            self.slower.call_once(|| {
                tracing::warn!(
                    "records that are not among those of the run (another id, caption or image) are evaluated by the proxies \
                     of all folds; --by-rater is faster, and approximates that"
                );
            });
            let corpus = EncodedCorpus::of_codes(codes, records)?;
            for (&index, rating) in others.iter().zip(self.evaluate(config, encoders, &corpus, &others)?) {
                ratings[index] = Some(rating);
            }
        }
        Ok(ratings.into_iter().map(|rating| rating.unwrap_or(f64::NAN)).collect())
    }

    /// The means over the folds of the ratings of records that are in none.
    fn evaluate(
        &self,
        config: &Config,
        encoders: &Encoders,
        corpus: &EncodedCorpus,
        indices: &[usize],
    ) -> Result<Vec<f64>> {
        let (tokenizer, text) = (encoders.tokenizer.as_ref(), encoders.text.as_ref());
        let mut sums = vec![0.0; indices.len()];
        for (fold, Fold { model, bank, reference }) in self.folds.iter().enumerate() {
            if bank.captions().is_empty() {
                return Err(Error::input(
                    &self.run,
                    format!(
                        "{} was written by an earlier version, so only its own records have a measured rating; train again, \
                         or rate all with --by-rater",
                        self.run.display()
                    ),
                ));
            }
            let evaluator = Evaluator { config, tokenizer, text, model, bank, fold };
            for (sum, found) in sums.iter_mut().zip(evaluator.evaluate(corpus, indices)?) {
                *sum += match found {
                    Some(found) => reference.ratings(&[found])?[0],
                    None => f64::NAN,
                };
            }
        }
        Ok(sums.into_iter().map(|sum| sum / self.folds.len() as f64).collect())
    }
}

/// Reads the measurements of a run's training records, by their ids.
///
/// # Errors
/// If the table is missing, damaged or cannot be read.
pub(crate) fn read_measured(path: &Path) -> Result<Vec<(String, HeldOut)>> {
    let mut found = Vec::new();
    each_row(path, |row| {
        found.push((row.get(0)?.to_owned(), held_out(row)?));
        Some(())
    })?;
    Ok(found)
}

/// The measurements of a row; `None` for a damaged one.
fn held_out(row: &csv::StringRecord) -> Option<HeldOut> {
    let number = |at: usize| row.get(at)?.parse().ok();
    Some(HeldOut {
        fold: row.get(2)?.parse().ok()?,
        loss: number(3)?,
        gain: number(4)?,
        gain_std: number(5)?,
        gain_empty: number(6)?,
        gradient_norm: number(7)?,
    })
}

/// Passes each row of the table to `take`, which returns `None` for a damaged one.
fn each_row(path: &Path, mut take: impl FnMut(&csv::StringRecord) -> Option<()>) -> Result<()> {
    let damaged = |line: u64| Error::Table {
        path: path.to_path_buf(),
        line: Some(line),
        message: "is damaged, or from an earlier version; train the run again".to_owned(),
    };
    let unreadable = |error| Error::input(path, format!("{} cannot be read: {error}", path.display()));
    let mut reader = csv::Reader::from_path(path).map_err(unreadable)?;
    let header = reader.headers().map_err(|_| damaged(1))?;
    if header.iter().skip(1).ne(COLUMNS) {
        return Err(damaged(1));
    }
    for (row, record) in reader.records().enumerate() {
        record.ok().and_then(|record| take(&record)).ok_or_else(|| damaged(row as u64 + 2))?;
    }
    Ok(())
}
