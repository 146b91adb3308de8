//! The forward and backward passes of a micro-batch.

use super::{
    Bilevel, Reference,
    inputs::{Pass, PerSample, StepInputs},
};
use crate::{
    config::{RaterObjective, Scaling},
    engine::{
        Accumulate, DType, Ghost, Gradients, Parameters, Preconditioner, Tape, Tensor, Var,
        autograd::contributions::scale_samples,
        ops::{cross_entropy::CrossEntropy, rater_loss::standardize},
    },
    error::Result,
    models::Mode,
    rater::rules::Measurements,
    tokens::batch::Batch,
};

/// The results of a micro-batch.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) train_loss: Tensor,
    pub(super) reference_loss: Option<Tensor>,
    pub(super) product: Option<Tensor>,
    pub(super) squared_norm: Option<Tensor>,
    /// The rule's constants, scaled.
    pub(super) constants: Option<Tensor>,
    pub(super) logit: Option<Tensor>,
    pub(super) targets: Option<Tensor>,
    pub(super) score: Option<Tensor>,
    /// The weights in the proxy's loss.
    pub(super) weight: Tensor,
    /// The weights in the rater's loss, if the rater is trained.
    pub(super) rater_weight: Option<Tensor>,
    pub(super) validation: CrossEntropy,
    pub(super) last_scale: usize,
}

/// The rater's forward pass, ready for its backward pass.
struct Rated<'a> {
    tape: Tape<'a>,
    /// The weights, or the logits for the objective `regression`.
    output: Var,
    logit: Tensor,
    score: Tensor,
    /// The weights for the proxy; none from the rater for the objective `regression`.
    weight: Option<Tensor>,
}

/// The training pass.
struct Trained {
    loss: Tensor,
    product: Option<Tensor>,
    squared_norm: Option<Tensor>,
}

impl Bilevel {
    pub(super) fn micro_step(
        &self,
        prepared: &StepInputs,
        [proxy, rater, reference]: [&mut Accumulate; 3],
    ) -> Result<Measured> {
        let (settings, micro) = (&self.settings, &prepared.micro);
        // The rater's weights come first: they do not depend on the proxy.
        let rated = if prepared.warm_up { None } else { Some(self.rate(prepared)?) };
        let given =
            rated.as_ref().and_then(|rated| rated.weight.as_ref()).or(prepared.equal_weights.as_ref());
        let weight = given
            .cloned()
            .ok_or_else(|| crate::Error::invalid("a step has neither the rater's weights nor equal ones"))?;

        let given = prepared.validation_seeds.as_ref().map(|seeds| |_: &Tensor| Ok(seeds.clone()));
        let mode = self.mode(prepared, Pass::Validation);
        let products = prepared.per_sample.as_ref().is_some_and(|per_sample| per_sample.products);
        let mut alone = Accumulate::default();
        let into = if products { &mut alone } else { &mut *proxy };
        let validation = self.proxy_pass(&self.proxy_parameters, &micro.validation, given, mode, into)?;
        let Trained { loss, product, squared_norm } = match &prepared.per_sample {
            None => {
                let seeds = |losses: &Tensor| prepared.rater_loss.seeds(&weight, losses.dtype());
                let weighted = prepared.train_counts.then_some(seeds);
                let mode = self.mode(prepared, Pass::Train);
                let result = self.proxy_pass(&self.proxy_parameters, &micro.train, weighted, mode, proxy)?;
                Trained { loss: result.sample_loss.into_value(), product: None, squared_norm: None }
            }
            Some(per_sample) => {
                self.per_sample_pass(prepared, per_sample, &weight, alone.gradients, &mut proxy.gradients)?
            }
        };
        let reference_loss = match (&prepared.reference, &self.reference) {
            (Some(factor), Some(Reference { parameters, .. })) => {
                let seeds = Some(|losses: &Tensor| factor.seeds(&weight, losses.dtype()));
                let mode = self.mode(prepared, Pass::Train);
                let result = self.proxy_pass(parameters, &micro.train, seeds, mode, reference)?;
                Some(result.sample_loss.into_value())
            }
            _ => None,
        };

        let mut measured = Measured {
            train_loss: loss,
            reference_loss,
            product,
            squared_norm,
            constants: None,
            logit: None,
            targets: None,
            score: None,
            weight,
            rater_weight: None,
            validation,
            last_scale: micro.validation.last_scale,
        };
        let Some(Rated { tape, output, logit, score, .. }) = rated else { return Ok(measured) };
        let constants = settings.rule.rule.formula.constants(&Measurements {
            loss: &measured.train_loss,
            reference_loss: measured.reference_loss.as_ref(),
            product: measured.product.as_ref(),
            squared_norm: measured.squared_norm.as_ref(),
            caption_gain: None,
        })?;
        let constants = match settings.rule.scaling {
            Scaling::None => constants,
            Scaling::Center => standardize(&constants, false)?,
            Scaling::Standardize => standardize(&constants, true)?,
        };
        let seed = match &prepared.targets {
            None => {
                measured.rater_weight = Some(output.value().clone());
                prepared.rater_loss.d_weights(&constants, output.value())?
            }
            Some(targets) => {
                let [d_logits, targets] = targets.d_logits(output.value(), &constants)?;
                measured.targets = Some(targets);
                d_logits
            }
        };
        tape.backward(vec![(&output, seed)], &[], rater)?;
        measured.constants = Some(constants);
        (measured.logit, measured.score) = (Some(logit), Some(score));
        Ok(measured)
    }

    fn mode<'a>(&self, prepared: &'a StepInputs, pass: Pass) -> Mode<'a> {
        match self.settings.drop_path {
            true => Mode::Train(&prepared.drop_path[pass as usize]),
            false => Mode::Evaluate,
        }
    }

    fn rate(&self, prepared: &StepInputs) -> Result<Rated<'_>> {
        let (settings, train) = (&self.settings, &prepared.micro.train);
        let weighing = settings.weighing;
        let mut tape = Tape::new(&self.rater_parameters).with_recomputing(settings.recompute);
        if settings.rule.objective == RaterObjective::Regression {
            let mode = self.mode(prepared, Pass::RaterForProxy);
            let (_, output) =
                self.rater.instance(&mut tape, train.reaching(settings.rater_reach)?, &train.text, mode)?;
            let logit = output.value().clone();
            return Ok(Rated { tape, output, score: logit.clone(), logit, weight: None });
        }
        let (input, two_passes) = (train.reaching(settings.rater_reach)?, settings.two_rater_passes);
        let pass = if two_passes { Pass::RaterForRater } else { Pass::RaterForProxy };
        let mode = self.mode(prepared, pass);
        let rated = self.rater.forward(&mut tape, input, &train.text, weighing, mode)?;
        let logit = rated.logit.into_value();
        let (score, weight) = if two_passes && settings.drop_path {
            let mut tape = Tape::inference(&self.rater_parameters);
            let mode = self.mode(prepared, Pass::RaterForProxy);
            let rated = self.rater.forward(&mut tape, input, &train.text, weighing, mode)?;
            (rated.score.into_value(), rated.weight.into_value())
        } else {
            (rated.score.value().clone(), rated.weight.value().clone())
        };
        Ok(Rated { tape, output: rated.weight, logit, score, weight: Some(weight) })
    }

    /// The forward pass, and the backward pass of `Σ_i seed_i ℓ_i` if there are seeds.
    fn proxy_pass(
        &self,
        parameters: &Parameters,
        batch: &Batch,
        seeds: Option<impl FnOnce(&Tensor) -> Result<Tensor>>,
        mode: Mode<'_>,
        into: &mut Accumulate,
    ) -> Result<CrossEntropy> {
        let mut tape = match seeds {
            Some(_) => Tape::new(parameters).with_recomputing(self.settings.recompute),
            None => Tape::inference(parameters),
        };
        let smoothing = self.settings.label_smoothing;
        let result =
            self.proxy.loss(&mut tape, batch.input()?, &batch.text, &batch.codes, smoothing, mode)?;
        if let Some(seeds) = seeds {
            let seeds = seeds(result.sample_loss.value())?;
            tape.backward(vec![(&result.sample_loss, seeds)], &[], into)?;
        }
        Ok(result)
    }

    /// The training pass with per-sample gradients: one backward pass of `Σ_i ℓ_i` gives the products with
    /// `direction`, the norms, and the weighted sum, which is added to `sum` together with the direction's share.
    fn per_sample_pass(
        &self,
        prepared: &StepInputs,
        per_sample: &PerSample,
        weight: &Tensor,
        direction: Gradients,
        sum: &mut Gradients,
    ) -> Result<Trained> {
        let (train, parameters) = (&prepared.micro.train, &self.proxy_parameters);
        let batch = train.codes.dim(0);
        let mut ghost = Ghost::new(batch).with_repeated(self.proxy.repeated());
        if per_sample.products {
            let preconditioner = per_sample.geometry.as_ref().map(|factors| Preconditioner {
                second_moments: self.proxy_optimizer.second_moments(),
                factors,
            });
            ghost = ghost.with_last_dot(direction, preconditioner, per_sample.validation_share.clone());
        }
        if per_sample.norms {
            ghost = ghost.with_norms();
        }
        ghost = ghost.onto(std::mem::take(sum));
        if prepared.train_counts {
            let wide = if weight.device().is_none() { DType::F64 } else { DType::F32 };
            ghost = ghost.with_weights(prepared.rater_loss.seeds(weight, wide)?);
        }
        let mut tape =
            Tape::new(parameters).with_recomputing(self.settings.recompute).with_per_sample_parts(true);
        let (smoothing, mode) = (self.settings.label_smoothing, self.mode(prepared, Pass::Train));
        let result =
            self.proxy.loss(&mut tape, train.input()?, &train.text, &train.codes, smoothing, mode)?;
        tape.backward(vec![(&result.sample_loss, per_sample.seeds.clone())], &[], &mut ghost)?;
        let numbers = ghost.finish(parameters)?;
        let scaled = |total: Option<Tensor>, factor: &Tensor| -> Result<Option<Tensor>> {
            total
                .map(|total| scale_samples(&total.reshape(&[1, batch])?, factor)?.reshape(&[batch]))
                .transpose()
        };
        let product = scaled(numbers.product()?, &per_sample.unscale_product)?;
        let squared_norm = scaled(numbers.squared_norm()?, &per_sample.unscale_norm)?;
        *sum = numbers.gradients;
        Ok(Trained { loss: result.sample_loss.into_value(), product, squared_norm })
    }
}
