//! One bilevel step on both networks with the `loss` rule (eq. 9): the proxy descends the validation loss and the
//! weighted training loss together (eq. 5), the rater descends `Σ_i ℓ_i·W_i(μ)` with the losses held fixed.

mod inputs;
mod recorded;

pub use inputs::{Batch, MicroBatch};
pub use recorded::RecordedStep;

use inputs::{Pass, Prepared};

use crate::{
    encode::pyramid::CodeReader,
    engine::{
        Accumulate, DType, Gradients, Parameters, Tape, Tensor,
        cuda::Device,
        ops::{
            cross_entropy::CrossEntropy,
            rater_loss::{RaterLoss, RaterLossFactors, entropy_term},
        },
    },
    error::{Error, Result},
    models::{DropPath, Mode, Proxy, Rater, Weighing},
    train::optimizer::AdamW,
};

/// What a step measured, all before the update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean loss of the validation batch.
    pub validation_loss: f64,
    /// Loss of each training sample.
    pub train_loss: Vec<f64>,
    /// The rater's score of each training sample.
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
    /// Updates of both networks skipped since the run began, where losses are scaled.
    pub skipped_updates: Option<u64>,
    /// Validation loss over the tokens of the last scale.
    pub validation_tail_loss: f64,
    /// Share in percent of validation tokens predicted right.
    pub validation_accuracy: f64,
    /// The same over the tokens of the last scale.
    pub validation_tail_accuracy: f64,
}

/// What the released code does that the default does not, and the other settings of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct BilevelSettings {
    /// How weights come from the rater's heads.
    pub weighing: Weighing,
    /// Divide the weighted sums by the batch size, as released (upstream.md, A5).
    pub weighted_mean: bool,
    /// Label smoothing (`ls`).
    pub label_smoothing: f64,
    /// Add the released entropy term to the rater's loss (`rater_reg`, upstream.md, A11).
    pub rater_regularisation: bool,
    /// Do not train the proxy (`fixVar`).
    pub freeze_proxy: bool,
    /// Let a frozen proxy's weights decay all the same, as released (upstream.md, A10).
    pub frozen_proxy_decays: bool,
    /// Run the rater twice a step with different drop-path masks, as released (upstream.md, A8).
    pub two_rater_passes: bool,
    /// Use drop-path.
    pub drop_path: bool,
    /// Keep only each block's input for the backward pass and run the block forward again there.
    pub recompute: bool,
    /// On a device, record a step that comes again and replay it at the cost of one launch.
    pub cuda_graph: bool,
    /// The run's seed.
    pub seed: u64,
}

/// Both networks, their weights and their optimisers.
#[derive(Clone, Debug)]
pub struct Bilevel {
    /// The proxy, θ.
    pub proxy: Proxy,
    /// The proxy's weights.
    pub proxy_parameters: Parameters,
    /// The proxy's optimiser.
    pub proxy_optimizer: AdamW,
    /// The rater, μ.
    pub rater: Rater,
    /// The rater's weights.
    pub rater_parameters: Parameters,
    /// The rater's optimiser.
    pub rater_optimizer: AdamW,
    /// See [`BilevelSettings`].
    pub settings: BilevelSettings,
    /// On a device: makes the networks' input from codes, for batches that come without it.
    pub reader: Option<CodeReader>,
    /// See [`RecordedStep`]; begins as the default.
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
}

/// What a step leaves behind to be looked at once all work has been asked for.
#[derive(Clone, Debug)]
struct Asked {
    measured: Vec<Measured>,
    proxy: Gradients,
    rater: Gradients,
}

/// What a micro-batch leaves behind.
#[derive(Clone, Debug)]
struct Measured {
    train_loss: Tensor,
    score: Tensor,
    /// The weights that the proxy's loss was weighted with.
    weight: Tensor,
    /// The weights that the rater is trained by.
    rater_weight: Tensor,
    validation: CrossEntropy,
    last_scale: usize,
}

impl Bilevel {
    /// Moves both networks and their optimisers to a device; activations get the type `compute`, f32, bf16, or f16 with
    /// scaled losses.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        for (parameters, optimizer) in [
            (&mut self.proxy_parameters, &mut self.proxy_optimizer),
            (&mut self.rater_parameters, &mut self.rater_optimizer),
        ] {
            *parameters = parameters.to_device(device, compute)?;
            optimizer.move_to(device, compute == DType::F16)?;
        }
        Ok(())
    }

    /// One step over the micro-batches of an accumulated batch. `step` counts from 0 and only picks random streams. On a
    /// device everything is asked for before anything is waited for.
    ///
    /// # Errors
    /// If there is no micro-batch, a shape does not fit, or a loss or a gradient is not finite: a network whose gradients
    /// are not is then left as it was. With scaled losses such an update is skipped instead, until no scale is left.
    pub fn step(&mut self, micro_batches: &[MicroBatch], rates: StepRates, step: u64) -> Result<StepReport> {
        self.step_while(micro_batches, rates, step, |_| Ok(())).map(|(report, ())| report)
    }

    /// A step as [`step`](Self::step), with something that the host does once all of its work has been asked for, before
    /// anything is waited for: the place to get the next step's batches [ahead](Self::ahead).
    ///
    /// # Errors
    /// Those of a step, and of `meanwhile`, after which the step has been taken all the same.
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
        let StepRates { learning_rate, weight_decay, .. } = rates;
        let updates_proxy = !self.settings.freeze_proxy || self.settings.frozen_proxy_decays;
        if updates_proxy {
            self.proxy_optimizer.prepare(learning_rate, weight_decay)?;
        }
        self.rater_optimizer.prepare(learning_rate, weight_decay)?;
        let share = 1.0 / micro_batches.len() as f64;
        let prepare = |(at, micro)| {
            let stream = step * micro_batches.len() as u64 + at as u64;
            self.prepare(micro, rates, share, stream)
        };
        let prepared: Vec<Prepared> = micro_batches.iter().enumerate().map(prepare).collect::<Result<_>>()?;
        let Asked { measured, proxy, rater } = match self.proxy_parameters.device().cloned() {
            None => self.ask(prepared.into_iter().map(Ok))?,
            Some(device) => self.ask_device(&device, prepared)?,
        };
        // The step is taken whatever comes of it.
        let done_meanwhile = meanwhile(self);

        let mut report = StepReport::default();
        for measured in &measured {
            self.report(measured, rates, share, &mut report)?;
        }
        let mut complaints = Vec::new();
        if !(report.proxy_loss.is_finite() && report.rater_loss.is_finite()) {
            complaints.push(format!("the losses are {} and {}", report.proxy_loss, report.rater_loss));
        }
        let mut scaled = true;
        for (network, updates, parameters, optimizer, gradients, norm) in [
            (
                "proxy",
                updates_proxy,
                &self.proxy_parameters,
                &mut self.proxy_optimizer,
                &proxy,
                &mut report.proxy_gradient_norm,
            ),
            (
                "rater",
                true,
                &self.rater_parameters,
                &mut self.rater_optimizer,
                &rater,
                &mut report.rater_gradient_norm,
            ),
        ] {
            if !updates {
                continue;
            }
            let updated = optimizer.finish()?;
            *norm = updated.norm;
            scaled &= optimizer.loss_scale().is_some_and(|scale| scale.factor() >= SMALLEST_SCALE);
            if !updated.applied {
                let name = first_not_finite(parameters, gradients)?.unwrap_or("none alone");
                complaints.push(format!(
                    "the {network}'s gradient is not finite, {name} being the first tensor that has it"
                ));
            }
        }
        let scales = [self.proxy_optimizer.loss_scale(), self.rater_optimizer.loss_scale()];
        report.skipped_updates = scales.iter().flatten().map(|scale| scale.skipped()).reduce(|a, b| a + b);
        if complaints.is_empty() || scaled {
            return Ok((report, done_meanwhile?));
        }
        Err(Error::invalid(format!(
            "the loss is no longer a number at step {step} (proxy {}, rater {}): {}; lower tlr or tclip and start again from \
             the last checkpoint",
            report.proxy_loss,
            report.rater_loss,
            complaints.join("; ")
        )))
    }

    /// A micro-batch on its way to where the networks are, in the type of their activations; copied beside the work that
    /// goes on there.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn ahead(&self, micro: MicroBatch) -> Result<MicroBatch> {
        match self.proxy_parameters.device() {
            None => Ok(micro),
            Some(device) => micro.ahead_to(device, self.proxy_parameters.compute_dtype()),
        }
    }

    /// Asks for the work of a step, all of it.
    fn ask(&mut self, micro_batches: impl Iterator<Item = Result<Prepared>>) -> Result<Asked> {
        let (mut proxy, mut rater) = (Accumulate::default(), Accumulate::default());
        let micro_step = |micro: Result<Prepared>| self.micro_step(&micro?, &mut proxy, &mut rater);
        let measured = micro_batches.map(micro_step).collect::<Result<_>>()?;
        let (mut proxy, rater) = (proxy.gradients, rater.gradients);
        if self.settings.freeze_proxy {
            zero(&mut proxy)?;
        }
        if !self.settings.freeze_proxy || self.settings.frozen_proxy_decays {
            self.proxy_optimizer.update(&mut self.proxy_parameters, &proxy)?;
        }
        self.rater_optimizer.update(&mut self.rater_parameters, &rater)?;
        Ok(Asked { measured, proxy, rater })
    }

    /// Draws and schedules what a micro-batch needs, on the host.
    fn prepare(&self, micro: &MicroBatch, rates: StepRates, share: f64, stream: u64) -> Result<Prepared> {
        let dtype = self.proxy_parameters.compute_dtype();
        let on_host = self.proxy_parameters.device().is_none();
        let micro = if on_host { micro.clone() } else { micro.narrowed(dtype)? };
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
        let upper = rates.upper_level_weight;
        let (proxy_scale, rater_scale) =
            (self.proxy_optimizer.loss_factor(), self.rater_optimizer.loss_factor());
        let mean = self.mean_factor(batch);
        let seed = (1.0 - upper) * share * mean * proxy_scale;
        let factors = RaterLossFactors {
            seed,
            loss: share * mean * rater_scale,
            entropy: if settings.rater_regularisation { share * rater_scale } else { 0.0 },
        };
        let learning = !settings.freeze_proxy || settings.frozen_proxy_decays;
        let validation_seed = upper * share / validation as f64 * proxy_scale;
        let validation_seeds = if learning && validation_seed != 0.0 {
            let seeds = Tensor::new(&[validation], vec![validation_seed; validation])?;
            Some(if on_host { seeds.cast(dtype)? } else { seeds })
        } else {
            None
        };
        Ok(Prepared {
            drop_path: [
                draw(Pass::Validation)?,
                draw(Pass::Train)?,
                draw(Pass::RaterForProxy)?,
                draw(Pass::RaterForRater)?,
            ],
            rater_loss: RaterLoss::new(factors)?,
            validation_seeds,
            train_counts: learning && seed != 0.0,
            micro,
        })
    }

    /// What the weighted sum over a batch is multiplied by.
    fn mean_factor(&self, batch: usize) -> f64 {
        if self.settings.weighted_mean { 1.0 / batch as f64 } else { 1.0 }
    }

    fn micro_step(
        &self,
        prepared: &Prepared,
        proxy: &mut Accumulate,
        rater: &mut Accumulate,
    ) -> Result<Measured> {
        let Prepared { micro, drop_path, rater_loss, validation_seeds, train_counts } = prepared;
        let (train, weighing) = (&micro.train, self.settings.weighing);
        let mode = |pass: Pass| match self.settings.drop_path {
            true => Mode::Train(&drop_path[pass as usize]),
            false => Mode::Evaluate,
        };

        // The rater's weights first: they do not depend on the proxy.
        let two_passes = self.settings.two_rater_passes;
        let pass = if two_passes { Pass::RaterForRater } else { Pass::RaterForProxy };
        let mut rater_tape = Tape::new(&self.rater_parameters).with_recomputing(self.settings.recompute);
        let rated = self.rater.forward(&mut rater_tape, train.input()?, &train.text, weighing, mode(pass))?;
        let rater_weight = rated.weight.value().clone();
        let (score, weight) = if two_passes && self.settings.drop_path {
            let mut tape = Tape::inference(&self.rater_parameters);
            let mode = mode(Pass::RaterForProxy);
            let rated = self.rater.forward(&mut tape, train.input()?, &train.text, weighing, mode)?;
            (rated.score.into_value(), rated.weight.into_value())
        } else {
            (rated.score.value().clone(), rater_weight.clone())
        };

        let given = validation_seeds.as_ref().map(|seeds| |_: &Tensor| Ok(seeds.clone()));
        let validation = self.proxy_pass(&micro.validation, given, mode(Pass::Validation), proxy)?;
        let weighted = train_counts.then_some(|losses: &Tensor| rater_loss.seeds(&weight, losses.dtype()));
        let seen = self.proxy_pass(train, weighted, mode(Pass::Train), proxy)?;
        let train_loss = seen.sample_loss.into_value();

        let d_weight = rater_loss.d_weights(&train_loss, &rater_weight)?;
        rater_tape.backward(vec![(&rated.weight, d_weight)], &[], rater)?;
        let last_scale = micro.validation.last_scale;
        Ok(Measured { train_loss, score, weight, rater_weight, validation, last_scale })
    }

    /// Forward, and backward from `Σ_i seed_i ℓ_i` where there are seeds.
    fn proxy_pass(
        &self,
        batch: &Batch,
        seeds: Option<impl FnOnce(&Tensor) -> Result<Tensor>>,
        mode: Mode<'_>,
        into: &mut Accumulate,
    ) -> Result<CrossEntropy> {
        let mut tape = match seeds {
            Some(_) => Tape::new(&self.proxy_parameters).with_recomputing(self.settings.recompute),
            None => Tape::inference(&self.proxy_parameters),
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

    /// Adds what a micro-batch measured; on a device this waits for it.
    fn report(
        &self,
        measured: &Measured,
        rates: StepRates,
        share: f64,
        report: &mut StepReport,
    ) -> Result<()> {
        let losses = measured.train_loss.to_f64_vec()?;
        let [score, weight, rater_weight] =
            [&measured.score, &measured.weight, &measured.rater_weight].map(Tensor::to_f64_vec);
        let (weight, rater_weight) = (weight?, rater_weight?);
        let mean = self.mean_factor(losses.len());
        let upper = rates.upper_level_weight;
        let weighted_sum =
            |weights: &[f64]| losses.iter().zip(weights).map(|(loss, weight)| loss * weight).sum::<f64>();
        let mut rater_loss = weighted_sum(&rater_weight) * mean;
        if self.settings.rater_regularisation {
            rater_loss += entropy_term(&rater_weight).0;
        }
        let weighted = weighted_sum(&weight) * mean;
        let seen = validation_measures(&measured.validation, measured.last_scale)?;
        report.validation_loss += share * seen[0];
        report.validation_tail_loss += share * seen[1];
        report.validation_accuracy += share * seen[2];
        report.validation_tail_accuracy += share * seen[3];
        report.weighted_train_loss += share * weighted;
        report.proxy_loss += share * (upper * seen[0] + (1.0 - upper) * weighted);
        report.rater_loss += share * rater_loss;
        report.train_loss.extend(losses);
        report.score.extend(score?);
        report.weight.extend(weight);
        Ok(())
    }
}

/// Below this scale it is not fp16 that makes gradients overflow.
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

/// Loss and accuracy (percent) over all tokens and over those of the last scale: `[loss, tail loss, accuracy, tail
/// accuracy]` (upstream.md, C9).
fn validation_measures(seen: &CrossEntropy, tail: usize) -> Result<[f64; 4]> {
    let (samples, tokens) = (seen.token_loss.dim(0), seen.token_loss.dim(1));
    if tail == 0 || tail > tokens {
        return Err(Error::shape("bilevel", format!("a last scale of {tail} tokens among {tokens}")));
    }
    let (losses, correct) = (seen.token_loss.to_f64_vec()?, seen.correct.to_host()?);
    let mut sums = [0.0; 4];
    for (losses, correct) in losses.chunks(tokens).zip(correct.as_slice::<u32>()?.chunks(tokens)) {
        let count = |correct: &[u32]| 100.0 * correct.iter().map(|&one| f64::from(one)).sum::<f64>();
        let total = (samples * tokens) as f64;
        let total_tail = (samples * tail) as f64;
        sums[0] += losses.iter().sum::<f64>() / total;
        sums[1] += losses[tokens - tail..].iter().sum::<f64>() / total_tail;
        sums[2] += count(correct) / total;
        sums[3] += count(&correct[tokens - tail..]) / total_tail;
    }
    Ok(sums)
}
