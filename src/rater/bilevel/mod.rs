//! One bilevel step on both networks. The proxy descends the validation loss and the weighted training loss together
//! (eq. 5); the rater is trained on one constant per sample, computed by a [rule](crate::rater::rules) from the
//! proxy's measurements.

mod inputs;
mod passes;
mod rater_only;
mod recorded;
mod report;
mod settings;

pub use inputs::{MicroBatch, Prior};
pub use rater_only::RaterReport;
pub use recorded::RecordedStep;
pub use report::StepReport;
pub use settings::BilevelSettings;

use inputs::{Pass, PerSample, StepInputs};
use passes::Measured;

use crate::{
    config::{Geometry, RaterObjective},
    engine::{
        Accumulate, DType, Gradients, Parameters, Tensor,
        cuda::Device,
        ops::{
            pyramid::CodeReader,
            rater_loss::{RaterLoss, RaterLossFactors, RegressionTargets},
        },
    },
    error::{Error, Result},
    models::{DropPath, Proxy, Rater},
    training::{
        optimizer::{AdamW, AdamWSettings},
        parameter_groups::decays,
    },
};

/// A reference proxy, trained on the weighted training loss alone (the sentence after eq. 5).
#[derive(Clone, Debug)]
pub struct Reference {
    /// Its weights, θ̂.
    pub parameters: Parameters,
    /// Its optimizer.
    pub optimizer: AdamW,
}

/// Both networks, their weights and their optimizers.
#[derive(Clone, Debug)]
pub struct Bilevel {
    /// The proxy, θ.
    pub proxy: Proxy,
    /// The proxy's weights.
    pub proxy_parameters: Parameters,
    /// The proxy's optimizer.
    pub proxy_optimizer: AdamW,
    /// The rater, μ.
    pub rater: Rater,
    /// The rater's weights.
    pub rater_parameters: Parameters,
    /// The rater's optimizer.
    pub rater_optimizer: AdamW,
    /// See [`BilevelSettings`].
    pub settings: BilevelSettings,
    /// On a device: computes the networks' input from codes, for batches without one.
    pub reader: Option<CodeReader>,
    /// The reference proxy, for rules that compare with one; see [`begin_reference`](Self::begin_reference).
    pub reference: Option<Reference>,
    /// See [`RecordedStep`]; initially the default.
    pub recorded: RecordedStep,
}

/// The rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRates {
    /// Share of the validation loss in the proxy's loss; the weighted training loss has the rest (upstream.md, A6).
    pub upper_level_weight: f64,
    /// Learning rate of both networks.
    pub learning_rate: f64,
    /// Weight decay of both networks.
    pub weight_decay: f64,
    /// Whether the step belongs to the warm-up (eq. 4): the proxy is trained on the training samples alone, with
    /// equal weights, and the rater is not trained.
    pub warm_up: bool,
}

/// The results of a step whose work is queued but not yet awaited.
#[derive(Clone, Debug)]
struct QueuedStep {
    measured: Vec<Measured>,
    sums: Sums,
}

/// The gradients of a step, per network.
#[derive(Clone, Debug, Default)]
struct Sums {
    proxy: Gradients,
    rater: Gradients,
    reference: Gradients,
}

/// Which networks a step updates.
#[derive(Clone, Copy, Debug)]
struct Updates {
    proxy: bool,
    rater: bool,
    reference: bool,
}

impl Bilevel {
    /// Both networks with their weights, and new optimizers with the same settings.
    pub fn new(
        (proxy, proxy_parameters): (Proxy, Parameters),
        (rater, rater_parameters): (Rater, Parameters),
        optimizers: AdamWSettings,
        settings: BilevelSettings,
    ) -> Self {
        Self {
            proxy,
            proxy_optimizer: AdamW::new(&proxy_parameters, decays, optimizers),
            proxy_parameters,
            rater,
            rater_optimizer: AdamW::new(&rater_parameters, decays, optimizers),
            rater_parameters,
            settings,
            reader: None,
            reference: None,
            recorded: RecordedStep::default(),
        }
    }

    /// Moves both networks and their optimizers to a device; activations get the dtype `compute`: f32, bf16, or f16
    /// with loss scaling.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        let reference =
            self.reference.as_mut().map(|reference| (&mut reference.parameters, &mut reference.optimizer));
        let networks = [
            (&mut self.proxy_parameters, &mut self.proxy_optimizer),
            (&mut self.rater_parameters, &mut self.rater_optimizer),
        ];
        for (parameters, optimizer) in networks.into_iter().chain(reference) {
            *parameters = parameters.to_device(device, compute)?;
            optimizer.move_to(device, compute == DType::F16)?;
        }
        Ok(())
    }

    /// Creates the reference proxy θ̂ as a copy of the proxy, at the end of the warm-up.
    pub fn begin_reference(&mut self) {
        self.reference = Some(Reference {
            parameters: self.proxy_parameters.clone(),
            optimizer: self.proxy_optimizer.clone(),
        });
    }

    /// One step over the micro-batches of an accumulated batch. `step` counts from 0 and only selects random streams.
    /// On a device all work is queued before anything is awaited.
    ///
    /// # Errors
    /// If there is no micro-batch, a shape does not fit, the rule lacks a measurement, or a loss or gradient is not
    /// finite; a network with a non-finite gradient keeps its weights. Two cases skip the update instead of failing:
    /// an overflow with loss scaling, until the scale reaches its minimum; and a non-finite loss or constant of some
    /// but not all training samples, which the report then lists.
    pub fn step(&mut self, micro_batches: &[MicroBatch], rates: StepRates, step: u64) -> Result<StepReport> {
        self.step_while(micro_batches, rates, step, |_| Ok(())).map(|(report, ())| report)
    }

    /// Like [`step`](Self::step), but calls `meanwhile` on the host after all work is queued and before anything is
    /// awaited, for example to get the next step's batches [ahead](Self::ahead).
    ///
    /// # Errors
    /// Those of a step, and of `meanwhile`; the step is completed in that case too.
    pub fn step_while<R>(
        &mut self,
        micro_batches: &[MicroBatch],
        rates: StepRates,
        step: u64,
        meanwhile: impl FnOnce(&Self) -> Result<R>,
    ) -> Result<(StepReport, R)> {
        if micro_batches.is_empty() {
            return Err(Error::invalid("a step needs at least one batch"));
        }
        let updates = self.updates(rates)?;
        let StepRates { learning_rate, weight_decay, .. } = rates;
        if updates.proxy {
            self.proxy_optimizer.prepare(learning_rate, weight_decay)?;
        }
        if updates.rater {
            self.rater_optimizer.prepare(learning_rate, weight_decay)?;
        }
        if let Some(reference) = &mut self.reference
            && updates.reference
        {
            reference.optimizer.prepare(learning_rate, weight_decay)?;
        }
        let share = 1.0 / micro_batches.len() as f64;
        let prepare = |(at, micro)| {
            let stream = step * micro_batches.len() as u64 + at as u64;
            self.prepare(micro, rates, share, stream)
        };
        let prepared: Vec<StepInputs> =
            micro_batches.iter().enumerate().map(prepare).collect::<Result<_>>()?;
        let QueuedStep { measured, sums } = match self.proxy_parameters.device().cloned() {
            None => self.queue(prepared.into_iter().map(Ok), updates)?,
            Some(device) => self.queue_on_device(&device, prepared, updates)?,
        };
        // The step completes even if `meanwhile` failed.
        let done_meanwhile = meanwhile(self);

        let mut report = StepReport::default();
        for measured in &measured {
            self.report(measured, rates, share, &mut report)?;
        }
        let mut complaints = Vec::new();
        let some_lost = report.validation_loss.is_finite() && report.some_samples_are_lost();
        let finite = report.proxy_loss.is_finite() && report.rater_loss.is_finite();
        if !(finite || some_lost) {
            complaints.push(format!("the losses are {} and {}", report.proxy_loss, report.rater_loss));
        }
        let mut scaled = true;
        let networks = [
            updates.proxy.then_some((
                "proxy",
                &self.proxy_parameters,
                &mut self.proxy_optimizer,
                &sums.proxy,
                &mut report.proxy_gradient_norm,
            )),
            updates.rater.then_some((
                "rater",
                &self.rater_parameters,
                &mut self.rater_optimizer,
                &sums.rater,
                &mut report.rater_gradient_norm,
            )),
            match &mut self.reference {
                Some(Reference { parameters, optimizer }) if updates.reference => Some((
                    "reference proxy",
                    &*parameters,
                    optimizer,
                    &sums.reference,
                    &mut report.reference_gradient_norm,
                )),
                _ => None,
            },
        ];
        let mut skipped = None;
        for (network, parameters, optimizer, gradients, norm) in networks.into_iter().flatten() {
            let updated = optimizer.finish()?;
            *norm = updated.norm;
            scaled &= optimizer.loss_scale().is_some_and(|scale| scale.factor() >= SMALLEST_SCALE);
            if let Some(scale) = optimizer.loss_scale() {
                *skipped.get_or_insert(0) += scale.skipped();
            }
            if !(updated.applied || some_lost && network != "rater") {
                complaints.push(match first_not_finite(parameters, gradients)? {
                    Some(name) => {
                        format!("the {network}'s gradient is not finite, first in the tensor {name}")
                    }
                    None => format!("the norm of the {network}'s gradient is not finite"),
                });
            }
        }
        report.skipped_updates = skipped;
        if complaints.is_empty() || scaled {
            return Ok((report, done_meanwhile?));
        }
        Err(Error::Diverged(format!(
            "the loss or a gradient is not finite at step {step} (proxy {}, rater {}): {}; lower tlr or tclip and \
             resume from the last checkpoint",
            report.proxy_loss,
            report.rater_loss,
            complaints.join("; ")
        )))
    }

    /// Copies a micro-batch to the networks' device, in the dtype of their activations, concurrently with the work
    /// running there.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn ahead(&self, micro: MicroBatch) -> Result<MicroBatch> {
        match self.proxy_parameters.device() {
            None => Ok(micro),
            Some(device) => micro.ahead_to(device, self.proxy_parameters.compute_dtype()),
        }
    }

    fn updates(&self, rates: StepRates) -> Result<Updates> {
        let needs_reference = self.settings.rule.rule.needs().reference && !rates.warm_up;
        if needs_reference && self.reference.is_none() {
            return Err(Error::invalid(format!(
                "the rule `{}` needs a reference proxy, and there is none",
                self.settings.rule.rule
            )));
        }
        Ok(Updates {
            proxy: !self.settings.freeze_proxy || self.settings.frozen_proxy_decays,
            rater: !rates.warm_up,
            reference: needs_reference,
        })
    }

    /// Queues all work of a step.
    fn queue(
        &mut self,
        micro_batches: impl Iterator<Item = Result<StepInputs>>,
        updates: Updates,
    ) -> Result<QueuedStep> {
        let [mut proxy, mut rater, mut reference] = [(); 3].map(|()| Accumulate::default());
        let measured = micro_batches
            .map(|micro| self.micro_step(&micro?, [&mut proxy, &mut rater, &mut reference]))
            .collect::<Result<_>>()?;
        let mut sums =
            Sums { proxy: proxy.gradients, rater: rater.gradients, reference: reference.gradients };
        if self.settings.freeze_proxy {
            zero(&mut sums.proxy)?;
        }
        if updates.proxy {
            self.proxy_optimizer.update(&mut self.proxy_parameters, &sums.proxy)?;
        }
        if updates.rater {
            self.rater_optimizer.update(&mut self.rater_parameters, &sums.rater)?;
        }
        if let Some(Reference { parameters, optimizer }) = &mut self.reference
            && updates.reference
        {
            optimizer.update(parameters, &sums.reference)?;
        }
        Ok(QueuedStep { measured, sums })
    }

    /// Computes the random and scheduled inputs of a micro-batch, on the host.
    fn prepare(&self, micro: &MicroBatch, rates: StepRates, share: f64, stream: u64) -> Result<StepInputs> {
        let dtype = self.proxy_parameters.compute_dtype();
        let on_host = self.proxy_parameters.device().is_none();
        micro.check()?;
        let settings = &self.settings;
        let (batch, validation) = (micro.train.codes.dim(0), micro.validation.codes.dim(0));
        let draw = |pass: Pass| {
            let (seed, stream) = (settings.seed, 4 * stream + pass as u64);
            match pass {
                _ if !settings.drop_path => Ok(DropPath::default()),
                Pass::Validation => self.proxy.draw(seed, stream, validation),
                Pass::Train => self.proxy.draw(seed, stream, batch),
                Pass::RaterForProxy | Pass::RaterForRater => self.rater.draw(seed, stream, batch),
            }
        };
        let floats = |values: Vec<f64>| {
            let tensor = Tensor::new(&[values.len()], values)?;
            if on_host { tensor.cast(dtype) } else { Ok(tensor) }
        };
        let (needs, warm_up) = (settings.rule.rule.needs(), rates.warm_up);
        let upper = if warm_up { 0.0 } else { rates.upper_level_weight };
        let (proxy_scale, rater_scale) =
            (self.proxy_optimizer.loss_factor(), self.rater_optimizer.loss_factor());
        let weighs = !warm_up && settings.rule.objective == RaterObjective::Reweight;
        let mean = if weighs { self.mean_factor(batch) } else { 1.0 };
        let products = needs.products && !warm_up;
        let norms = needs.norms || settings.record_norms;
        // The seed of each sample's loss where per-sample gradients are needed: equal for all, and small enough for
        // fp16. Batches differ by powers of two only, so the bits of a sample's rows do not depend on its batch.
        let unit = match self.proxy_optimizer.loss_scale() {
            Some(_) => proxy_scale / batch.next_power_of_two() as f64,
            None => 1.0,
        };
        let per_sample = (products || norms).then_some(unit);
        let factors = RaterLossFactors {
            seed: (1.0 - upper) * share * mean * proxy_scale / per_sample.unwrap_or(1.0),
            constant: share * mean * rater_scale,
            entropy: if settings.rater_regularization { share * rater_scale } else { 0.0 },
        };
        let learning = !settings.freeze_proxy || settings.frozen_proxy_decays;
        let validation_counts = learning && upper != 0.0;
        let validation_seed = if products { 1.0 } else { upper * share } / validation as f64 * proxy_scale;
        let validation_seeds = (products || validation_counts && validation_seed != 0.0)
            .then(|| floats(vec![validation_seed; validation]))
            .transpose()?;
        let one = |value: f64| Tensor::new(&[1], vec![value]);
        let per_sample = match per_sample {
            None => None,
            Some(unit) => Some(PerSample {
                seeds: floats(vec![unit; batch])?,
                products,
                norms,
                unscale_product: one(1.0 / (unit * proxy_scale))?,
                unscale_norm: one(1.0 / (unit * unit))?,
                validation_share: (products && validation_counts).then(|| one(upper * share)).transpose()?,
                geometry: (products && settings.rule.geometry == Geometry::AdamW)
                    .then(|| Tensor::new(&[2], self.proxy_optimizer.second_moment_factors().to_vec()))
                    .transpose()?,
            }),
        };
        let reference = match &self.reference {
            Some(reference) if needs.reference && !warm_up => Some(RaterLoss::new(RaterLossFactors {
                seed: share * mean * reference.optimizer.loss_factor(),
                constant: 0.0,
                entropy: 0.0,
            })?),
            _ => None,
        };
        let targets = match &micro.prior {
            _ if warm_up || settings.rule.objective == RaterObjective::Reweight => None,
            None => {
                return Err(Error::invalid(
                    "the objective `regression` needs running averages, but a batch has none",
                ));
            }
            Some(prior) => {
                let factor = share / batch as f64 * rater_scale;
                Some(RegressionTargets {
                    averages: Tensor::new(&[batch, 2], prior.averages.concat())?,
                    corpus: Tensor::new(&[3], vec![prior.mean, prior.inverse_deviation, factor])?,
                })
            }
        };
        Ok(StepInputs {
            drop_path: [
                draw(Pass::Validation)?,
                draw(Pass::Train)?,
                draw(Pass::RaterForProxy)?,
                draw(Pass::RaterForRater)?,
            ],
            train_counts: learning && factors.seed != 0.0,
            rater_loss: RaterLoss::new(factors)?,
            validation_seeds,
            equal_weights: (!weighs).then(|| floats(vec![1.0 / batch as f64; batch])).transpose()?,
            per_sample,
            reference,
            targets,
            warm_up,
            micro: if on_host { micro.clone() } else { micro.narrowed(dtype)? },
        })
    }

    /// The factor of the weighted sum over a batch.
    fn mean_factor(&self, batch: usize) -> f64 {
        if self.settings.weighted_mean { 1.0 / batch as f64 } else { 1.0 }
    }
}

/// Below this scale, an overflow of gradients is not due to fp16.
const SMALLEST_SCALE: f64 = 1.0;

fn zero(gradients: &mut Gradients) -> Result<()> {
    for gradient in gradients.iter_mut().flatten() {
        *gradient = gradient.zeros_like(gradient.shape())?;
    }
    Ok(())
}

/// The name of the first parameter whose gradient is not finite.
fn first_not_finite<'a>(parameters: &'a Parameters, gradients: &Gradients) -> Result<Option<&'a str>> {
    for ((_, name, _), gradient) in parameters.iter().zip(gradients) {
        if let Some(gradient) = gradient
            && gradient.to_f64_vec()?.iter().any(|value| !value.is_finite())
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
