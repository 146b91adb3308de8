//! Cross-fitting: a proxy per fold, trained on the other folds, evaluates the records of its fold, so that no record is
//! evaluated by a proxy that has memorized it.
//!
//! The evaluation is the [caption gain](CaptionGain). A rule that needs it (`rule: gain`) turns it into constants; the ratings
//! are mid-rank percentiles within each fold, because the proxies of two folds have different scales, and the rater's
//! targets are the percentiles' normal scores.

mod fold_proxy;
mod folds;
mod gain;
mod groups;

use std::{fs, path::PathBuf};

pub use fold_proxy::FoldProxySummary;
pub use gain::CaptionGain;

use folds::Folds;
use gain::Bank;

use crate::{
    config::Config,
    engine::{Tensor, cuda::Device},
    error::{Error, Result},
    files::{sealed::Written, sha256_of_file, write_csv},
    interrupt::Interrupt,
    jobs::progress::Progress,
    rater::rules::Measurements,
    training::{prepared::Prepared, run_directory::RunDirectory},
};

/// Records per check for an interrupt while captions are evaluated.
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
    /// The gain of each training record.
    gains: Vec<CaptionGain>,
    /// The rating of each training record: the mid-rank percentile, from 0 to 1, of its signal `−c_i` in its fold.
    ratings: Vec<f64>,
    /// The training of each fold's proxy, and the number of records that it evaluated.
    pub(super) folds: Vec<(FoldProxySummary, usize)>,
}

impl<'a> CrossFit<'a> {
    /// Assigns the training records to folds.
    ///
    /// # Errors
    /// If a fold, the records to train its proxy on, or its captions are too few.
    pub(super) fn new(
        config: &'a Config,
        directory: &'a RunDirectory,
        data: &'a Prepared,
        device: Option<&'a Device>,
    ) -> Result<Self> {
        let roots = groups::near_duplicates(&data.train, data.tokenizer.as_ref())?;
        let folds = Folds::new(&data.train.ids, &roots, config.crossfit.folds, config.seed);
        let cross_fit = Self { config, directory, data, device, folds };
        // Before hours of training.
        for fold in 0..cross_fit.folds.count {
            if cross_fit.folds.members(fold).is_empty() {
                return Err(Error::not_enough_data(format!(
                    "fold {fold} of {} has no record, because near-duplicates share a fold; lower crossfit.folds, or add \
                     data",
                    cross_fit.folds.count
                )));
            }
        }
        for fold in 0..cross_fit.folds.count {
            cross_fit.folds.training(fold, config.training.batch)?;
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
                "{grouped} records are near-duplicates of another one, in {groups} groups; all of a group are in the same fold"
            ));
        }
        let mut gains = vec![None; self.data.train.len()];
        let mut folds = Vec::with_capacity(self.folds.count);
        for fold in 0..self.folds.count {
            let proxy = fold_proxy::train(self, fold, interrupt, progress)?;
            let found = gain::gains(self, fold, &proxy, interrupt, progress)?;
            folds.push((proxy.summary.clone(), found.len()));
            for (index, gain) in self.folds.members(fold).into_iter().zip(found) {
                gains[index] = Some(gain);
            }
        }
        let gains: Vec<CaptionGain> = gains
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| Error::invalid("a record is in no fold"))?;
        let ratings = self.ratings(&gains)?;
        Ok(CrossFitted { gains, ratings, folds })
    }

    /// Percentiles of the rule's signal within each fold.
    fn ratings(&self, gains: &[CaptionGain]) -> Result<Vec<f64>> {
        let tensor = |of: fn(&CaptionGain) -> f64| {
            Tensor::new(&[gains.len()], gains.iter().map(of).collect::<Vec<f64>>())
        };
        let (loss, gain) = (tensor(|gain| gain.loss)?, tensor(CaptionGain::mean)?);
        let measured = Measurements {
            loss: &loss,
            reference_loss: None,
            product: None,
            squared_norm: None,
            caption_gain: Some(&gain),
        };
        let constants = self.config.training.rule.rule.formula.constants(&measured)?.to_f64_vec()?;
        let mut ratings = vec![0.0; gains.len()];
        for fold in 0..self.folds.count {
            let members = self.folds.members(fold);
            let signals: Vec<f64> = members.iter().map(|&index| -constants[index]).collect();
            for (index, percentile) in members.into_iter().zip(percentiles(&signals)) {
                ratings[index] = percentile;
            }
        }
        Ok(ratings)
    }

    /// The folder of a fold.
    fn folder(&self, fold: usize) -> PathBuf {
        self.directory.folds().join(fold.to_string())
    }

    /// The captions that the records of a fold are compared with.
    fn bank(&self, fold: usize) -> Result<Bank<'_>> {
        let corpus = &self.data.train;
        let members = self.folds.members(fold);
        let records = members.iter().map(|&index| (&*corpus.ids[index], &*corpus.captions[index]));
        Bank::new(records, self.config.seed, fold)
    }

    /// The largest batch.
    fn largest_batch(&self) -> usize {
        self.config.training.batch.max(self.config.crossfit.captions + 2)
    }

    /// Records per check for an interrupt.
    fn chunk(&self) -> usize {
        if self.device.is_some() { 1 } else { CHUNK }
    }
}

impl CrossFitted {
    /// The rater's targets: the normal scores of the ratings.
    pub(super) fn targets(&self) -> Vec<f64> {
        self.ratings.iter().map(|&rating| normal_quantile(rating)).collect()
    }

    /// Writes the table of gains, which is a ratings table, too; returns its digest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, directory: &RunDirectory, id_column: &str, ids: &[String]) -> Result<Written> {
        let header = [id_column, "rating", "fold", "loss", "gain", "gain_std", "gain_empty"];
        let rows = ids.iter().zip(&self.ratings).zip(&self.gains).map(|((id, rating), gain)| {
            let CaptionGain { fold, loss, gain, gain_std, gain_empty } = gain;
            let numbers = [rating, loss, gain, gain_std, gain_empty].map(f64::to_string);
            let [rating, loss, gain, gain_std, gain_empty] = numbers;
            [id.clone(), rating, fold.to_string(), loss, gain, gain_std, gain_empty]
        });
        let path = directory.gains();
        write_csv(&path, &header, rows)?;
        let bytes = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        Ok(Written { bytes, sha256: sha256_of_file(&path)? })
    }
}

/// Mid-rank percentiles, in (0, 1): equal values share the mean of their ranks.
fn percentiles(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &other| values[one].total_cmp(&values[other]));
    let mut found = vec![0.0; values.len()];
    for equal in order.chunk_by(|&one, &other| values[one] == values[other]) {
        let before = order.partition_point(|&other| values[other] < values[equal[0]]);
        let percentile = (before as f64 + equal.len() as f64 / 2.0) / values.len() as f64;
        equal.iter().for_each(|&index| found[index] = percentile);
    }
    found
}

/// The quantile function of the standard normal distribution (Acklam's rational approximation, relative error below
/// 1.2e-9).
fn normal_quantile(share: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    const TAIL: f64 = 0.024_25;
    let polynomial = |factors: &[f64], x: f64| factors.iter().fold(0.0, |sum, factor| sum * x + factor);
    let tail = |share: f64| {
        let root = (-2.0 * share.ln()).sqrt();
        polynomial(&C, root) / polynomial(&D, root)
    };
    if share < TAIL {
        tail(share)
    } else if share > 1.0 - TAIL {
        -tail(1.0 - share)
    } else {
        let centered = share - 0.5;
        centered * polynomial(&A, centered * centered) / polynomial(&B, centered * centered)
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn equal_values_share_a_percentile() {
        assert_eq!(percentiles(&[3.0, 1.0, 3.0, 2.0]), [0.75, 0.125, 0.75, 0.375]);
        assert_eq!(percentiles(&[5.0, 5.0]), [0.5, 0.5]);
        assert!(percentiles(&[]).is_empty());
    }

    #[test]
    fn normal_quantiles_match_known_values() {
        // scipy.stats.norm.ppf
        for (share, expected) in [
            (0.5, 0.0),
            (0.975, 1.959_963_984_540_054),
            (0.01, -2.326_347_874_040_840_8),
            (0.001, -3.090_232_306_167_813_5),
            (0.3, -0.524_400_512_708_040_7),
        ] {
            assert_relative_eq!(normal_quantile(share), expected, epsilon = 1e-8, max_relative = 1e-8);
        }
    }
}
