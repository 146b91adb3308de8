//! The report of a step.

use super::{Bilevel, StepRates, passes::Measured};
use crate::{
    engine::{Tensor, ops::rater_loss::entropy_term},
    error::Result,
    tokens::batch::token_measures,
};

/// The measurements of a step, all taken before the update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean loss of the validation batch.
    pub validation_loss: f64,
    /// Loss of each training sample.
    pub train_loss: Vec<f64>,
    /// Loss of each training sample under the reference proxy, for rules that need one.
    pub reference_loss: Vec<f64>,
    /// `⟨∇ℓ_i, V⟩` of each training sample, where the rule needs it.
    pub product: Vec<f64>,
    /// `‖∇ℓ_i‖` of each training sample, where it is measured.
    pub gradient_norm: Vec<f64>,
    /// The rule's constant of each training sample, scaled as configured; empty in the warm-up.
    pub constant: Vec<f64>,
    /// Indices in the batch of the training samples whose loss or constant is not finite. The rater ignores them; if
    /// it is the loss, neither proxy is updated with this batch.
    pub left_out: Vec<usize>,
    /// The rater's logit of each training sample; empty in the warm-up.
    pub logit: Vec<f64>,
    /// The regression targets of the logits, for the objective `regression`.
    pub target: Vec<f64>,
    /// The rater's score of each training sample; empty in the warm-up.
    pub score: Vec<f64>,
    /// The weight of each training sample.
    pub weight: Vec<f64>,
    /// Weighted training loss.
    pub weighted_train_loss: f64,
    /// The loss that the proxy descends.
    pub proxy_loss: f64,
    /// The loss that the rater descends.
    pub rater_loss: f64,
    /// Norm of the proxy's gradient before clipping.
    pub proxy_gradient_norm: f64,
    /// Norm of the rater's gradient before clipping.
    pub rater_gradient_norm: f64,
    /// Norm of the reference proxy's gradient before clipping, for rules that need one.
    pub reference_gradient_norm: f64,
    /// Updates of all networks skipped since the run began, with loss scaling.
    pub skipped_updates: Option<u64>,
    /// Validation loss on the tokens of the last scale.
    pub validation_tail_loss: f64,
    /// Percentage of validation tokens predicted correctly.
    pub validation_accuracy: f64,
    /// The same on the tokens of the last scale.
    pub validation_tail_accuracy: f64,
}

impl StepReport {
    /// Whether some, but not all, training samples have a loss or a constant that is not finite.
    pub(super) fn some_samples_are_lost(&self) -> bool {
        [&self.train_loss, &self.constant].into_iter().any(|numbers| {
            let lost = numbers.iter().filter(|number| !number.is_finite()).count();
            lost > 0 && lost < numbers.len()
        })
    }
}

/// `Σ left·right` over the pairs in which both are finite.
fn finite_sum(left: &[f64], right: &[f64]) -> f64 {
    let all = left.iter().all(|value| !value.is_finite());
    let pairs = left.iter().zip(right).filter(|(left, _)| all || left.is_finite());
    pairs.map(|(left, right)| left * right).sum::<f64>()
}

impl Bilevel {
    /// Adds the results of a micro-batch; on a device this waits for them.
    pub(super) fn report(
        &self,
        measured: &Measured,
        rates: StepRates,
        share: f64,
        report: &mut StepReport,
    ) -> Result<()> {
        let losses = measured.train_loss.to_f64_vec()?;
        let optional = |tensor: &Option<Tensor>| -> Result<Vec<f64>> {
            tensor.as_ref().map_or(Ok(Vec::new()), Tensor::to_f64_vec)
        };
        let weight = measured.weight.to_f64_vec()?;
        let mean = if measured.rater_weight.is_some() { self.mean_factor(losses.len()) } else { 1.0 };
        let (constant, logit, target) =
            (optional(&measured.constants)?, optional(&measured.logit)?, optional(&measured.targets)?);
        let rater_loss = match &measured.rater_weight {
            Some(rater_weight) => {
                let rater_weight = rater_weight.to_f64_vec()?;
                let mut loss = finite_sum(&constant, &rater_weight) * mean;
                if self.settings.rater_regularization {
                    loss += entropy_term(&rater_weight).0;
                }
                loss
            }
            None => {
                let squares = logit.iter().zip(&target).map(|(logit, target)| (logit - target).powi(2));
                squares.filter(|square| square.is_finite()).sum::<f64>() / losses.len() as f64
            }
        };
        let weighted = finite_sum(&losses, &weight) * mean;
        let upper = if rates.warm_up { 0.0 } else { rates.upper_level_weight };
        let measures = token_measures(&measured.validation, measured.last_scale)?;
        report.validation_loss += share * measures[0];
        report.validation_tail_loss += share * measures[1];
        report.validation_accuracy += share * measures[2];
        report.validation_tail_accuracy += share * measures[3];
        report.weighted_train_loss += share * weighted;
        report.proxy_loss += share * (upper * measures[0] + (1.0 - upper) * weighted);
        report.rater_loss += share * rater_loss;
        let before = report.train_loss.len();
        let is_lost = |at: &usize| {
            [&losses, &constant].iter().any(|of| of.get(*at).is_some_and(|value| !value.is_finite()))
        };
        report.left_out.extend((0..losses.len()).filter(is_lost).map(|at| before + at));
        report.train_loss.extend(losses);
        report.reference_loss.extend(optional(&measured.reference_loss)?);
        report.product.extend(optional(&measured.product)?);
        report.gradient_norm.extend(optional(&measured.squared_norm)?.into_iter().map(f64::sqrt));
        report.constant.extend(constant);
        report.logit.extend(logit);
        report.target.extend(target);
        report.score.extend(optional(&measured.score)?);
        report.weight.extend(weight);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_samples_are_lost_but_not_all() {
        let lost = |train_loss: &[f64], constant: &[f64]| {
            let (train_loss, constant) = (train_loss.to_vec(), constant.to_vec());
            StepReport { train_loss, constant, ..StepReport::default() }.some_samples_are_lost()
        };
        assert!(!lost(&[1.0, 2.0], &[0.5, 0.5]) && !lost(&[1.0, 2.0], &[]));
        assert!(lost(&[1.0, f64::NAN], &[0.5, f64::NAN]) && lost(&[1.0, f64::NAN], &[]));
        assert!(lost(&[1.0, 2.0], &[0.5, f64::INFINITY]), "an infinite gradient");
        assert!(!lost(&[f64::NAN, f64::NAN], &[f64::NAN, f64::NAN]), "the network itself has diverged");
    }
}
