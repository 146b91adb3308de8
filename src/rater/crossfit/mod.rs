//! Cross-fitting: a proxy per fold, trained on the other folds, evaluates the records of its fold, so that no record is
//! evaluated by a proxy that has memorized it.
//!
//! It [measures](HeldOut) the loss, the caption gain and the gradient norm. A rule that needs them (`rule: norm-gain`,
//! `rule: gain`) combines their percentiles within each fold, because the proxies of two folds have different scales. The
//! ratings are again mid-rank percentiles in the fold. [Scoring](crate::rater::scorer) looks them up for the records
//! of the run; the rater, whose targets are their normal scores, rates the others.

mod agreement;
mod fold_proxy;
mod folds;
mod gain;
mod groups;
mod measured;
mod normal;
mod page;
mod reference;

use std::{fmt, fs, path::PathBuf};

pub use agreement::Agreement;
pub use fold_proxy::FoldProxySummary;
pub use gain::HeldOut;
pub(crate) use measured::{MeasuredRatings, read_measured};
pub(crate) use page::{Explanation, RunMeasurements};

use folds::Folds;
use gain::Bank;
use normal::normal_quantile;
use reference::Reference;

use crate::{
    config::Config,
    engine::cuda::Device,
    error::{Error, Result},
    files::{sealed::Written, sha256_of_file, write_csv},
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::encoded::EncodedCorpus,
    training::{prepared::Prepared, run_directory::RunDirectory},
};

/// The columns of the table of measurements after the id; the last is the record's digest.
const COLUMNS: [&str; 8] =
    ["rating", "fold", "loss", "gain", "gain_std", "gain_empty", "gradient_norm", "record"];
/// Share of records with a positive gain below which captions hardly help; without any help, the share is about a half.
const HELPFUL: f64 = 0.6;
/// Records between checks for an interrupt while captions are evaluated.
const CHUNK: usize = 64;

/// The inputs of cross-fitting.
pub(super) struct CrossFit<'a> {
    config: &'a Config,
    directory: &'a RunDirectory,
    data: &'a Prepared,
    device: Option<&'a Device>,
    folds: Folds,
}

/// The result of cross-fitting.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CrossFitted {
    /// The measurements of each training record.
    found: Vec<HeldOut>,
    /// The rating of each training record: the mid-rank percentile, from 0 to 1, of its signal `−c_i` in its fold.
    ratings: Vec<f64>,
    /// The training of each fold's proxy, and the number of records that it evaluated.
    pub(super) folds: Vec<(FoldProxySummary, usize)>,
    /// How far the proxies agree.
    pub(super) agreement: Option<Agreement>,
}

impl<'a> CrossFit<'a> {
    /// Assigns the training records to folds.
    ///
    /// # Errors
    /// If a fold has no record, or too few captions, or too few records are left to train its proxy on.
    pub(super) fn new(
        config: &'a Config,
        directory: &'a RunDirectory,
        data: &'a Prepared,
        device: Option<&'a Device>,
    ) -> Result<Self> {
        let roots = groups::near_duplicates(&data.train, data.tokenizer.as_ref())?;
        let folds = Folds::new(&data.train.ids, &roots, config.crossfit.folds, config.seed);
        let cross_fit = Self { config, directory, data, device, folds };
        // Everything is checked before hours of training.
        for fold in 0..cross_fit.folds.count {
            let (count, members) = (cross_fit.folds.count, cross_fit.folds.members(fold).len());
            if members < 2 {
                let lower = if count > 2 { "lower crossfit.folds, or add data" } else { "add data" };
                return Err(Error::not_enough_data(format!(
                    "fold {fold} of {count} has {members} of the {} records (near-duplicates share a fold); {lower}",
                    data.train.len()
                )));
            }
        }
        cross_fit.folds.expect_batches(config.training.batch)?;
        for fold in 0..cross_fit.folds.count {
            cross_fit.bank(fold)?;
        }
        Ok(cross_fit)
    }

    /// Trains the proxies and evaluates all records; an interrupted call keeps finished proxies and gains.
    ///
    /// # Errors
    /// If the corpus is too small, a proxy diverges, a file cannot be written, or the user interrupts.
    pub(super) fn run(&self, interrupt: &Interrupt, progress: &mut dyn Progress) -> Result<CrossFitted> {
        let (groups, grouped) = self.folds.grouped();
        if groups > 0 {
            progress.note(&format!(
                "{grouped} records are near-duplicates, in {groups} groups; each group is kept in one fold"
            ));
        }
        let mut measured = vec![None; self.data.train.len()];
        let (mut folds, mut references) = (Vec::new(), Vec::new());
        let mut aside = Vec::new();
        for fold in 0..self.folds.count {
            let proxy = fold_proxy::train(self, fold, interrupt, progress)?;
            let members = self.folds.members(fold);
            let found = gain::gains(self, fold, &proxy, ("gains", &members), interrupt, progress)?;
            references.push(Reference::new(&found, self.config.training.rule.rule.formula)?);
            folds.push((proxy.summary.clone(), found.len()));
            for (index, found) in members.into_iter().zip(found) {
                measured[index] = Some(found);
            }
            let others = self.folds.training(fold, self.config.training.batch)?.aside;
            let found = gain::gains(self, fold, &proxy, ("aside", &others), interrupt, progress)?;
            aside.extend(others.into_iter().zip(found));
        }
        let found: Vec<HeldOut> = measured
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| Error::invalid("a record is in no fold"))?;
        let ratings = self.ratings(&found, &references)?;
        let pairs: Vec<_> = aside.into_iter().map(|(index, aside)| (aside, found[index])).collect();
        let agreement = Agreement::of(&references, &pairs)?;
        if let Some(agreement) = &agreement {
            agreement.write(&self.directory.folds())?;
            agreement.warn();
        }
        Ok(CrossFitted { found, ratings, folds, agreement })
    }

    /// The percentiles of the rule's signal within each fold.
    fn ratings(&self, found: &[HeldOut], references: &[Reference]) -> Result<Vec<f64>> {
        let mut ratings = vec![0.0; found.len()];
        for (fold, reference) in references.iter().enumerate() {
            let members = self.folds.members(fold);
            let measured: Vec<HeldOut> = members.iter().map(|&index| found[index]).collect();
            for (index, rating) in members.into_iter().zip(reference.ratings(&measured)?) {
                ratings[index] = rating;
            }
        }
        Ok(ratings)
    }

    /// The folder of a fold.
    fn folder(&self, fold: usize) -> PathBuf {
        self.directory.folds().join(fold.to_string())
    }

    /// The captions that the records of a fold are compared with.
    fn bank(&self, fold: usize) -> Result<Bank> {
        let corpus = &self.data.train;
        let members = self.folds.members(fold);
        let records = members.iter().map(|&index| (&*corpus.ids[index], &*corpus.captions[index]));
        Bank::new(records, self.config.seed, fold)
    }

    /// Records per check for an interrupt, and on a device per batch of gradient norms.
    fn chunk(&self) -> usize {
        if self.device.is_some() { largest_batch(self.config) } else { CHUNK }
    }
}

/// The largest batch of a fold's proxy.
fn largest_batch(config: &Config) -> usize {
    config.training.batch.max(config.crossfit.captions + 2)
}

/// What the caption gains of a corpus tell of its captions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaptionSignal {
    /// The mean gain, in nats per token.
    pub mean: f64,
    /// The share of records with a gain above 0.
    pub positive: f64,
}

impl CaptionSignal {
    /// What these measurements tell.
    fn of<'a>(found: impl Iterator<Item = &'a HeldOut>) -> Self {
        let gains: Vec<f64> = found.map(HeldOut::caption_gain).collect();
        let count = gains.len() as f64;
        let positive = gains.iter().filter(|&&gain| gain > 0.0).count() as f64 / count;
        Self { mean: gains.iter().sum::<f64>() / count, positive }
    }
}

impl fmt::Display for CaptionSignal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean, positive } = self;
        write!(
            formatter,
            "caption gain: {mean:.3} nats per token on average, above 0 for {:.0}% of the records",
            100.0 * positive
        )
    }
}

impl CrossFitted {
    /// Summarizes the gains; warns if captions hardly help.
    pub(super) fn caption_signal(&self) -> CaptionSignal {
        let signal = CaptionSignal::of(self.found.iter());
        if signal.positive < HELPFUL {
            tracing::warn!(
                "captions help to predict only {:.0}% of the images (chance: 50%), so the ratings hardly reflect the \
                 captions; more data, or a larger proxy_width or crossfit.epochs, may help",
                100.0 * signal.positive
            );
        }
        signal
    }

    /// The rater's targets: the normal scores of the ratings.
    pub(super) fn targets(&self) -> Vec<f64> {
        self.ratings.iter().map(|&rating| normal_quantile(rating)).collect()
    }

    /// Writes the table of measurements, which is a ratings table, too; returns its digest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(
        &self,
        directory: &RunDirectory,
        id_column: &str,
        corpus: &EncodedCorpus,
    ) -> Result<Written> {
        let mut header = vec![id_column];
        header.extend(COLUMNS);
        let rows = self.ratings.iter().zip(&self.found).enumerate().map(|(index, (rating, found))| {
            let HeldOut { fold, loss, gain, gain_std, gain_empty, gradient_norm } = found;
            let mut row = vec![corpus.ids[index].clone(), rating.to_string(), fold.to_string()];
            row.extend([loss, gain, gain_std, gain_empty, gradient_norm].map(f64::to_string));
            row.push(format!("{:016x}", corpus.digest(index)));
            row
        });
        let path = directory.gains();
        write_csv(&path, &header, rows)?;
        let bytes = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        Ok(Written { bytes, sha256: sha256_of_file(&path)? })
    }
}
