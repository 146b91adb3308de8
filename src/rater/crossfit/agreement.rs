//! How far the proxies agree. The records that a fold's proxy sets aside belong to other folds, whose proxies have not seen
//! them either. So two proxies, trained on different halves of the corpus, evaluate them independently of each other, and
//! the correlation of their results is the reliability of one of them.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use super::{HeldOut, reference::Reference};
use crate::{
    error::Result,
    files::sealed::{read_sealed, write_sealed},
    report::statistics::spearman,
    training::run_directory::FOLDS,
};

/// The file in the folder of the folds.
const AGREEMENT: &str = "agreement.json";
/// Correlation of ratings below which half of their variance is chance.
const RELIABLE: f64 = 0.5;

/// Records below which the correlation itself is mostly chance.
const ENOUGH: usize = 30;

/// Rank correlations between the results of two proxies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// Records that two proxies evaluated without having been trained on them.
    pub records: usize,
    /// The correlation of the ratings.
    pub rating: f64,
    /// The correlation of the caption gains.
    pub gain: f64,
    /// The correlation of the gradient norms.
    pub gradient_norm: f64,
}

impl Agreement {
    /// Compares the results for records set aside with those of their own folds; each pair has them in this order.
    /// `None` if the results are constant.
    ///
    /// # Errors
    /// If the rule fails.
    pub(super) fn of(references: &[Reference], pairs: &[(HeldOut, HeldOut)]) -> Result<Option<Self>> {
        let correlation = |of: &dyn Fn(&HeldOut) -> Result<f64>| -> Result<Option<f64>> {
            let (aside, own): (Vec<HeldOut>, Vec<HeldOut>) = pairs.iter().copied().unzip();
            let ranked = |found: Vec<HeldOut>| found.iter().map(of).collect::<Result<Vec<f64>>>();
            Ok(spearman(&ranked(aside)?, &ranked(own)?))
        };
        let rating = correlation(&|found| Ok(references[found.fold].ratings(&[*found])?[0]))?;
        let gain = correlation(&|found| Ok(references[found.fold].gain(found)))?;
        let norm = correlation(&|found| Ok(references[found.fold].norm(found)))?;
        let found = rating.zip(gain).zip(norm);
        Ok(found.map(|((rating, gain), gradient_norm)| Self {
            records: pairs.len(),
            rating,
            gain,
            gradient_norm,
        }))
    }

    /// Warns if ratings are mostly chance.
    pub(super) fn warn(&self) {
        if self.rating < RELIABLE && self.records >= ENOUGH {
            tracing::warn!(
                "two proxies agree little about the ratings (rank correlation {:.2} over {} records), so much of them is \
                 chance; more data, or a larger proxy_width or crossfit.epochs, may help",
                self.rating,
                self.records
            );
        }
    }

    /// Writes it into a run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, folds: &Path) -> Result<()> {
        write_sealed(&folds.join(AGREEMENT), self)
    }

    /// Reads that of a run; `None` if it has none.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn of_run(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FOLDS).join(AGREEMENT);
        path.exists().then(|| read_sealed(&path, "train the run again")).transpose()
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, rating, .. } = self;
        write!(
            formatter,
            "agreement of two proxies: {rating:.2} (rank correlation of their ratings of {records} records new to both)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rater::rules::RULES;

    #[test]
    fn proxies_agree_as_far_as_their_ranks_do() {
        let formula = RULES.iter().find(|rule| rule.name == "norm-gain").unwrap().formula;
        let found = |fold: usize, gain: f64, gradient_norm: f64| HeldOut {
            fold,
            loss: 4.0,
            gain,
            gain_std: 0.1,
            gain_empty: gain,
            gradient_norm,
        };
        let of = |fold: usize, scale: f64| -> Vec<HeldOut> {
            (0..20).map(|at| found(fold, scale * f64::from(at), scale * f64::from(at * 7 % 20))).collect()
        };
        let (one, other) = (of(0, 1.0), of(1, 3.0));
        let references = [Reference::new(&one, formula).unwrap(), Reference::new(&other, formula).unwrap()];
        // The scales of two proxies do not matter.
        let alike: Vec<_> = one.iter().copied().zip(other.iter().copied()).collect();
        let agreement = Agreement::of(&references, &alike).unwrap().unwrap();
        assert_eq!(agreement, Agreement { records: 20, rating: 1.0, gain: 1.0, gradient_norm: 1.0 });
        let opposed: Vec<_> = one.iter().copied().zip(other.iter().rev().copied()).collect();
        let agreement = Agreement::of(&references, &opposed).unwrap().unwrap();
        assert!((agreement.gain + 1.0).abs() < 1e-12 && agreement.rating < 0.5, "{agreement:?}");
        assert_eq!(Agreement::of(&references, &alike[..1]).unwrap(), None);
    }
}
