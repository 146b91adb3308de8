//! The measurements of a fold, which those of other records are ranked among.

use super::HeldOut;
use crate::{
    engine::Tensor,
    error::Result,
    rater::rules::{Measurements, Rule},
};

/// The measurements of a fold's records, each sorted.
pub(super) struct Reference {
    formula: &'static dyn Rule,
    losses: Vec<f64>,
    gains: Vec<f64>,
    norms: Vec<f64>,
    /// The rule's signals `−c_i`.
    signals: Vec<f64>,
}

impl Reference {
    /// The reference of a fold with these measurements.
    ///
    /// # Errors
    /// If the rule fails.
    pub(super) fn new(found: &[HeldOut], formula: &'static dyn Rule) -> Result<Self> {
        let sorted = |of: fn(&HeldOut) -> f64| sort(found.iter().map(of).collect());
        let (losses, gains) = (sorted(|found| found.loss), sorted(HeldOut::caption_gain));
        let norms = sorted(|found| found.gradient_norm);
        let mut reference = Self { formula, losses, gains, norms, signals: Vec::new() };
        reference.signals = sort(reference.signals(found)?);
        Ok(reference)
    }

    /// The rule's signals `−c_i`, computed from the percentiles of the measurements.
    fn signals(&self, found: &[HeldOut]) -> Result<Vec<f64>> {
        let ranked = |sorted: &[f64], of: fn(&HeldOut) -> f64| {
            Tensor::new(&[found.len()], found.iter().map(|found| percentile(sorted, of(found))).collect())
        };
        let loss = ranked(&self.losses, |found| found.loss)?;
        let (gain, norm) =
            (ranked(&self.gains, HeldOut::caption_gain)?, ranked(&self.norms, |found| found.gradient_norm)?);
        let constants = self.formula.constants(&Measurements {
            loss: &loss,
            reference_loss: None,
            product: None,
            squared_norm: Some(&norm),
            caption_gain: Some(&gain),
        })?;
        Ok(constants.to_f64_vec()?.into_iter().map(|constant| -constant).collect())
    }

    /// The percentile of a record's caption gain in the fold.
    pub(super) fn gain(&self, found: &HeldOut) -> f64 {
        percentile(&self.gains, found.caption_gain())
    }

    /// The percentile of a record's gradient norm in the fold.
    pub(super) fn norm(&self, found: &HeldOut) -> f64 {
        percentile(&self.norms, found.gradient_norm)
    }

    /// The ratings of records: the percentiles of their signals among those of the fold.
    ///
    /// # Errors
    /// If the rule fails.
    pub(super) fn ratings(&self, found: &[HeldOut]) -> Result<Vec<f64>> {
        Ok(self.signals(found)?.into_iter().map(|signal| percentile(&self.signals, signal)).collect())
    }
}

fn sort(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The mid-rank percentile of a value among sorted ones, in [0, 1]: equal values share the mean of their ranks.
fn percentile(sorted: &[f64], value: f64) -> f64 {
    let below = sorted.partition_point(|other| *other < value);
    let through = sorted.partition_point(|other| *other <= value);
    (below as f64 + (through - below) as f64 / 2.0) / sorted.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_percentile() {
        let sorted = sort(vec![3.0, 1.0, 3.0, 2.0]);
        let found: Vec<f64> = [3.0, 1.0, 3.0, 2.0].map(|value| percentile(&sorted, value)).to_vec();
        assert_eq!(found, [0.75, 0.125, 0.75, 0.375]);
        assert_eq!([0.0, 1.5, 9.0].map(|value| percentile(&sorted, value)), [0.0, 0.25, 1.0]);
        assert_eq!(percentile(&[5.0, 5.0], 5.0), 0.5);
    }
}
