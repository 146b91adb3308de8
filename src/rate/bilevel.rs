//! One bilevel step on both networks with the `loss` rule (eq. 9): the proxy descends the validation loss and the
//! weighted training loss together (eq. 5), the rater descends `Σ_i ℓ_i·W_i(μ)` with the losses held fixed.

use crate::{
    encode::TextStates,
    engine::{Accumulate, Gradients, Parameters, Tape, Tensor, ops::cross_entropy::CrossEntropy},
    error::{Error, Result},
    models::{Mode, Proxy, Rater, Weighing},
    train::optimizer::AdamW,
};

/// One batch as the networks see it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The codes to be predicted, `[B, L]` u32.
    pub codes: Tensor,
    /// The pyramid input of all scales but the first, `[B, L - L₀, Cvae]` f32, where `L₀ = patch_nums[0]²`.
    pub input: Tensor,
    /// The captions.
    pub text: TextStates,
    /// Tokens of the finest scale, the last ones of each row.
    pub last_scale: usize,
}

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
    /// The run's seed.
    pub seed: u64,
}

/// Factor of the released entropy term.
const REGULARISATION: f64 = 0.01;
/// Floor inside its logarithms.
const REGULARISATION_FLOOR: f64 = 1e-8;

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
}

/// One micro-batch: what the rater weighs, and what the proxy is judged by.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Training samples.
    pub train: Batch,
    /// Validation samples.
    pub validation: Batch,
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

/// Which forward pass of a step draws a drop-path mask.
#[derive(Clone, Copy)]
enum Pass {
    Validation,
    Train,
    RaterForProxy,
    RaterForRater,
}

impl Bilevel {
    /// One step over the micro-batches of an accumulated batch. `step` counts from 0 and only picks random streams.
    ///
    /// # Errors
    /// If there is no micro-batch, a shape does not fit, or a loss is not finite (the weights are then left as they
    /// were).
    pub fn step(&mut self, micro_batches: &[MicroBatch], rates: StepRates, step: u64) -> Result<StepReport> {
        if micro_batches.is_empty() {
            return Err(Error::invalid("a step needs at least one batch"));
        }
        let (mut proxy, mut rater) = (Accumulate::default(), Accumulate::default());
        let mut report = StepReport::default();
        let share = 1.0 / micro_batches.len() as f64;
        for (at, micro) in micro_batches.iter().enumerate() {
            let stream = step * micro_batches.len() as u64 + at as u64;
            self.micro_step(micro, rates, share, stream, (&mut proxy, &mut rater), &mut report)?;
        }
        if !(report.proxy_loss.is_finite() && report.rater_loss.is_finite()) {
            return Err(Error::invalid(format!(
                "the loss is no longer a number at step {step} (proxy {}, rater {}); lower tlr or tclip and start again \
                 from the last checkpoint",
                report.proxy_loss, report.rater_loss
            )));
        }
        let StepRates { learning_rate, weight_decay, .. } = rates;
        if !self.settings.freeze_proxy || self.settings.frozen_proxy_decays {
            let gradients =
                if self.settings.freeze_proxy { zeroed(proxy.gradients) } else { proxy.gradients };
            let parameters = &mut self.proxy_parameters;
            report.proxy_gradient_norm =
                self.proxy_optimizer.step(parameters, &gradients, learning_rate, weight_decay)?;
        }
        let (parameters, optimizer) = (&mut self.rater_parameters, &mut self.rater_optimizer);
        report.rater_gradient_norm =
            optimizer.step(parameters, &rater.gradients, learning_rate, weight_decay)?;
        Ok(report)
    }

    fn mode(&self, stream: u64, pass: Pass) -> Mode {
        if self.settings.drop_path {
            Mode::Train { seed: self.settings.seed, stream: 4 * stream + pass as u64 }
        } else {
            Mode::Evaluate
        }
    }

    fn micro_step(
        &self,
        micro: &MicroBatch,
        rates: StepRates,
        share: f64,
        stream: u64,
        (proxy, rater): (&mut Accumulate, &mut Accumulate),
        report: &mut StepReport,
    ) -> Result<()> {
        let train = &micro.train;
        let batch = train.codes.dim(0) as f64;
        let mean = if self.settings.weighted_mean { 1.0 / batch } else { 1.0 };
        let upper = rates.upper_level_weight;

        // The rater's weights first: they do not depend on the proxy.
        let pass = if self.settings.two_rater_passes { Pass::RaterForRater } else { Pass::RaterForProxy };
        let mut rater_tape = Tape::new(&self.rater_parameters);
        let mode = self.mode(stream, pass);
        let rated =
            self.rater.forward(&mut rater_tape, &train.input, &train.text, self.settings.weighing, mode)?;
        let rater_weight = rated.weight.value().to_f64_vec();
        let (score, weight) = if self.settings.two_rater_passes && self.settings.drop_path {
            let mut tape = Tape::inference(&self.rater_parameters);
            let mode = self.mode(stream, Pass::RaterForProxy);
            let rated =
                self.rater.forward(&mut tape, &train.input, &train.text, self.settings.weighing, mode)?;
            (rated.score.value().to_f64_vec(), rated.weight.value().to_f64_vec())
        } else {
            (rated.score.value().to_f64_vec(), rater_weight.clone())
        };

        let validation = &micro.validation;
        let seeds = vec![upper * share / validation.codes.dim(0) as f64; validation.codes.dim(0)];
        let seen = self.proxy_pass(validation, &seeds, self.mode(stream, Pass::Validation), proxy)?;
        let seeds: Vec<f64> = weight.iter().map(|weight| (1.0 - upper) * share * mean * weight).collect();
        let losses = self.proxy_pass(train, &seeds, self.mode(stream, Pass::Train), proxy)?;
        let losses = losses.sample_loss.value().to_f64_vec();

        let pairs = losses.iter().zip(&rater_weight);
        let mut rater_loss = pairs.map(|(loss, weight)| loss * weight).sum::<f64>() * mean;
        let mut d_weight: Vec<f64> = losses.iter().map(|loss| share * mean * loss).collect();
        if self.settings.rater_regularisation {
            let (loss, gradient) = entropy_term(&rater_weight);
            rater_loss += loss;
            for (d, gradient) in d_weight.iter_mut().zip(gradient) {
                *d += share * gradient;
            }
        }
        let d_weight =
            Tensor::new(rated.weight.value().shape(), d_weight)?.cast(self.rater_parameters_dtype());
        rater_tape.backward(vec![(&rated.weight, d_weight)], &[], rater)?;

        let weighted = losses.iter().zip(&weight).map(|(loss, weight)| loss * weight).sum::<f64>() * mean;
        let measured = validation_measures(&seen, validation)?;
        report.validation_loss += share * measured[0];
        report.validation_tail_loss += share * measured[1];
        report.validation_accuracy += share * measured[2];
        report.validation_tail_accuracy += share * measured[3];
        report.weighted_train_loss += share * weighted;
        report.proxy_loss += share * (upper * measured[0] + (1.0 - upper) * weighted);
        report.rater_loss += share * rater_loss;
        report.train_loss.extend(losses);
        report.score.extend(score);
        report.weight.extend(weight);
        Ok(())
    }

    fn rater_parameters_dtype(&self) -> crate::engine::DType {
        Tape::inference(&self.rater_parameters).dtype()
    }

    /// Forward, and backward from `Σ_i seed_i ℓ_i` unless that is nothing at all.
    fn proxy_pass(
        &self,
        batch: &Batch,
        seeds: &[f64],
        mode: Mode,
        into: &mut Accumulate,
    ) -> Result<CrossEntropy> {
        let idle = seeds.iter().all(|&seed| seed == 0.0);
        let learning = !self.settings.freeze_proxy || self.settings.frozen_proxy_decays;
        let mut tape = if idle || !learning {
            Tape::inference(&self.proxy_parameters)
        } else {
            Tape::new(&self.proxy_parameters)
        };
        let smoothing = self.settings.label_smoothing;
        let result = self.proxy.loss(&mut tape, &batch.input, &batch.text, &batch.codes, smoothing, mode)?;
        if !idle && learning {
            let dtype = tape.dtype();
            let d_loss = Tensor::new(&[seeds.len()], seeds.to_vec())?.cast(dtype);
            tape.backward(vec![(&result.sample_loss, d_loss)], &[], into)?;
        }
        Ok(result)
    }
}

/// The released term: 0.01 times minus the mean Bernoulli entropy of the weights, and its gradient by each weight.
fn entropy_term(weights: &[f64]) -> (f64, Vec<f64>) {
    let share = REGULARISATION / weights.len() as f64;
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(weights.len()));
    for &w in weights {
        let (yes, no) = (w + REGULARISATION_FLOOR, 1.0 - w + REGULARISATION_FLOOR);
        loss += share * (w * yes.ln() + (1.0 - w) * no.ln());
        gradient.push(share * (yes.ln() + w / yes - no.ln() - (1.0 - w) / no));
    }
    (loss, gradient)
}

fn zeroed(gradients: Gradients) -> Gradients {
    gradients.into_iter().map(|held| held.map(|held| Tensor::zeros(held.shape(), held.dtype()))).collect()
}

/// Loss and accuracy (percent) over all tokens and over those of the last scale: `[loss, tail loss, accuracy, tail
/// accuracy]` (upstream.md, C9).
fn validation_measures(seen: &CrossEntropy, batch: &Batch) -> Result<[f64; 4]> {
    let (samples, tokens) = (batch.codes.dim(0), batch.codes.dim(1));
    let tail = batch.last_scale;
    if tail == 0 || tail > tokens {
        return Err(Error::shape("bilevel", format!("a last scale of {tail} tokens among {tokens}")));
    }
    let losses = seen.token_loss.to_f64_vec();
    let mut sums = [0.0; 4];
    for (losses, correct) in losses.chunks(tokens).zip(seen.correct.chunks(tokens)) {
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
