//! Steps that train the rater alone, on the samples' running averages once these no longer change.

use super::{Bilevel, Prior};
use crate::{
    engine::{Accumulate, DType, Tape, Tensor, ops::rater_loss::RegressionTargets},
    error::{Error, Result},
    models::Mode,
    tokens::batch::Batch,
};

/// The measurements of a step of the rater alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RaterReport {
    /// The mean squared difference between logits and standardized averages.
    pub loss: f64,
    /// The norm of the gradient.
    pub gradient_norm: f64,
    /// The logits of the samples, in the order of the batches.
    pub logit: Vec<f64>,
    /// Updates skipped so far because of fp16 overflow, with loss scaling.
    pub skipped_updates: Option<u64>,
}

impl Bilevel {
    /// One step of the rater alone on the current averages; the share of new values in `prior` is not used. Samples
    /// without a finite average are left out. `step` selects the random streams.
    ///
    /// # Errors
    /// If there is no batch, a shape does not fit, the device fails, or the loss is not finite for a reason other
    /// than fp16 overflow.
    pub fn rater_step(
        &mut self,
        batches: &[(Batch, Prior)],
        [learning_rate, weight_decay]: [f64; 2],
        step: u64,
    ) -> Result<RaterReport> {
        if batches.is_empty() {
            return Err(Error::invalid("a step needs at least one batch"));
        }
        self.rater_optimizer.prepare(learning_rate, weight_decay)?;
        let (mut sum, mut queued) = (Accumulate::default(), Vec::new());
        let share = self.rater_optimizer.loss_factor() / batches.len() as f64;
        for (at, (batch, prior)) in batches.iter().enumerate() {
            let stream = step * batches.len() as u64 + at as u64;
            queued.push(self.rater_pass(batch, prior, share, stream, &mut sum)?);
        }
        self.rater_optimizer.update(&mut self.rater_parameters, &sum.gradients)?;
        let mut report = RaterReport::default();
        for [logits, targets] in &queued {
            let (logits, targets) = (logits.to_f64_vec()?, targets.to_f64_vec()?);
            let known = std::iter::zip(&logits, &targets).filter(|(_, target)| target.is_finite());
            let squares: f64 = known.map(|(logit, target)| (logit - target).powi(2)).sum();
            report.loss += squares / (logits.len() * queued.len()) as f64;
            report.logit.extend(logits);
        }
        let updated = self.rater_optimizer.finish()?;
        report.gradient_norm = updated.norm;
        report.skipped_updates = self.rater_optimizer.loss_scale().map(|scale| scale.skipped());
        let scaled =
            self.rater_optimizer.loss_scale().is_some_and(|scale| scale.factor() >= super::SMALLEST_SCALE);
        if report.loss.is_finite() && updated.applied || scaled {
            return Ok(report);
        }
        Err(Error::Diverged(format!(
            "the rater's loss or gradient is not finite at step {step} of the rater alone ({}, gradient norm {}); \
             lower tlr or tclip and resume from the last checkpoint",
            report.loss, report.gradient_norm
        )))
    }

    /// Forward and backward pass over a batch; returns the logits and their targets.
    fn rater_pass(
        &self,
        batch: &Batch,
        prior: &Prior,
        share: f64,
        stream: u64,
        sum: &mut Accumulate,
    ) -> Result<[Tensor; 2]> {
        let (settings, parameters) = (&self.settings, &self.rater_parameters);
        let (device, dtype) = (parameters.device(), parameters.compute_dtype());
        let samples = batch.codes.dim(0);
        if prior.averages.len() != samples {
            return Err(Error::invalid(format!(
                "{} running averages for {samples} samples",
                prior.averages.len()
            )));
        }
        let there = |tensor: Tensor| match device {
            Some(device) => tensor.cast(DType::F32)?.to_device(device),
            None => Ok(tensor),
        };
        let mut batch = match device {
            Some(device) => batch.to_device(device, dtype)?,
            None => batch.clone(),
        };
        batch.read_codes(self.reader.as_ref(), dtype, settings.rater_reach)?;
        let mut drop_path = Default::default();
        if settings.drop_path {
            drop_path = self.rater.draw(settings.seed, 4 * stream, samples)?;
            for factors in drop_path.tensors_mut() {
                *factors = there(factors.clone())?;
            }
        }
        let mode = if settings.drop_path { Mode::Train(&drop_path) } else { Mode::Evaluate };
        let mut tape = Tape::new(parameters).with_recomputing(settings.recompute);
        let input = batch.reaching(settings.rater_reach)?;
        let (_, output) = self.rater.instance(&mut tape, input, &batch.text, mode)?;
        // There is no new value, so the target is the average. A sample without one is marked by a non-finite
        // constant.
        let known = |[average, _]: &[f64; 2]| if average.is_finite() { 0.0 } else { f64::NAN };
        let constants: Vec<f64> = prior.averages.iter().map(known).collect();
        let averages = prior
            .averages
            .iter()
            .flat_map(|&[average, _]| [if average.is_finite() { average } else { 0.0 }, 0.0]);
        let factor = share / samples as f64;
        let targets = RegressionTargets {
            averages: there(Tensor::new(&[samples, 2], averages.collect::<Vec<f64>>())?)?,
            corpus: there(Tensor::new(&[3], vec![prior.mean, prior.inverse_deviation, factor])?)?,
        };
        let constants = there(Tensor::new(&[samples], constants)?)?;
        let [d_logits, targets] = targets.d_logits(output.value(), &constants)?;
        let logits = output.value().clone();
        tape.backward(vec![(&output, d_logits)], &[], sum)?;
        Ok([logits, targets])
    }
}
