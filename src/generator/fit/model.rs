//! The model that `fit` trains: weights, optimizer, and one plain step.

use serde::{Deserialize, Serialize};

use super::tokens::Tokens;
use crate::{
    config::Config,
    engine::{
        Accumulate, DType, Ghost, Parameters, Tape, Tensor,
        cuda::Device,
        ops::{
            cross_entropy::CrossEntropy,
            pyramid::{CodeReader, Reach},
        },
    },
    error::{Error, Result},
    models::{BackboneConfig, Mode, Proxy},
    tokens::batch::{Batch, token_measures},
    training::{
        optimizer::{AdamW, AdamWSettings},
        parameter_groups::decays,
        schedule::Rates,
    },
};

/// Loss and accuracy of a pass: means over samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// Loss on all tokens.
    pub loss: f64,
    /// Loss on the tokens of the last scale.
    pub tail_loss: f64,
    /// Percentage of tokens predicted correctly.
    pub accuracy: f64,
    /// The same on the tokens of the last scale.
    pub tail_accuracy: f64,
}

impl Measures {
    fn add(&mut self, share: f64, [loss, tail_loss, accuracy, tail_accuracy]: [f64; 4]) {
        self.loss += share * loss;
        self.tail_loss += share * tail_loss;
        self.accuracy += share * accuracy;
        self.tail_accuracy += share * tail_accuracy;
    }
}

/// One scale of the pyramid: means over samples and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleMeasures {
    /// The side of its token map.
    pub side: usize,
    /// Loss per token.
    pub loss: f64,
    /// Percentage of tokens predicted correctly.
    pub accuracy: f64,
}

/// The measurements of a step, before the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitStepReport {
    /// Means over the tokens that the step trained on, equally weighted. The losses include label smoothing, unlike
    /// the released `Lm` and `Lt`.
    pub measures: Measures,
    /// The loss that the step descends.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Updates skipped since the run began, with loss scaling.
    pub skipped_updates: Option<u64>,
}

/// A text-to-image model and its optimizer.
#[derive(Clone, Debug)]
pub struct Model {
    /// The network, the same as the proxy's.
    pub network: Proxy,
    /// Its weights.
    pub parameters: Parameters,
    /// Its optimizer.
    pub optimizer: AdamW,
    /// On a device: computes the network's input from codes.
    pub(crate) reader: Option<CodeReader>,
    smoothing: f64,
    recompute: bool,
    seed: u64,
}

/// One batch of a step.
pub(super) struct MicroStep {
    pub(super) batch: Batch,
    pub(super) tokens: Tokens,
    /// Selects the random streams.
    pub(super) iteration: u64,
}

fn backbone(config: &Config, [vocabulary, code_channels, text_channels]: [usize; 3]) -> BackboneConfig {
    config.proxy_backbone(vocabulary, code_channels, text_channels)
}

impl Model {
    /// A model with randomly initialized weights, for a tokenizer of `vocabulary` codes with `code_channels` channels
    /// and an encoder with `text_channels` channels.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub(crate) fn new(config: &Config, sizes: [usize; 3]) -> Result<Self> {
        let network = Proxy::new(&backbone(config, sizes), DType::F32, config.seed.wrapping_mul(2))?;
        let mut model = Self::of(config, network);
        if config.networks.zero_cross_attention {
            crate::models::init::zero_cross_projections(&mut model.parameters)?;
        }
        Ok(model)
    }

    /// A model with uninitialized weights, to be replaced by those of a checkpoint.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub(crate) fn uninitialized(config: &Config, sizes: [usize; 3]) -> Result<Self> {
        Ok(Self::of(config, Proxy::uninitialized(&backbone(config, sizes), DType::F32)?))
    }

    fn of(config: &Config, (network, parameters): (Proxy, Parameters)) -> Self {
        let settings = AdamWSettings { clip: config.training.clip, ..AdamWSettings::default() };
        Self {
            network,
            optimizer: AdamW::new(&parameters, decays, settings),
            parameters,
            reader: None,
            smoothing: config.training.label_smoothing,
            recompute: config.recompute,
            seed: config.seed,
        }
    }

    /// Moves weights and optimizer to a device; activations get the dtype `compute`.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub(crate) fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        self.parameters = self.parameters.to_device(device, compute)?;
        self.optimizer.move_to(device, compute == DType::F16)
    }

    /// The batch on the network's device, with its input computed.
    fn placed(&self, batch: &Batch) -> Result<Batch> {
        let Some(device) = self.parameters.device() else { return Ok(batch.clone()) };
        let dtype = self.parameters.compute_dtype();
        let mut batch = batch.to_device(device, dtype)?;
        batch.read_codes(self.reader.as_ref(), dtype, Reach::Before)?;
        Ok(batch)
    }

    /// One step over the micro-batches of an accumulated batch; it descends the mean of their losses.
    ///
    /// # Errors
    /// If there is no batch, a shape does not fit, or the loss or the gradient is not finite, in which case the
    /// weights are unchanged.
    pub(super) fn step(&mut self, micro: &[MicroStep], rates: Rates, step: u64) -> Result<FitStepReport> {
        if micro.is_empty() {
            return Err(Error::invalid("a step needs at least one batch"));
        }
        self.optimizer.prepare(rates.learning_rate, rates.weight_decay)?;
        #[expect(clippy::cast_precision_loss, reason = "a few batches")]
        let share = 1.0 / micro.len() as f64;
        let mut sum = Accumulate::default();
        let mut results = Vec::with_capacity(micro.len());
        for MicroStep { batch, tokens, iteration } in micro {
            let batch = self.placed(batch)?;
            let part = tokens.layout.as_ref().map(|layout| self.network.with_layout(layout.clone()));
            let network = part.as_ref().unwrap_or(&self.network);
            let samples = batch.codes.dim(0);
            let mut drop_path = network.draw(self.seed, *iteration, samples)?;
            if let Some(device) = self.parameters.device() {
                for factors in drop_path.tensors_mut() {
                    *factors = factors.cast(DType::F32)?.to_device(device)?;
                }
            }
            let mut tape = Tape::new(&self.parameters).with_recomputing(self.recompute);
            let result = network.weighted_loss(
                &mut tape,
                batch.input()?,
                &batch.text,
                &batch.codes,
                self.smoothing,
                tokens.weights.as_deref(),
                Mode::Train(&drop_path),
            )?;
            let losses = result.sample_loss.value();
            #[expect(clippy::cast_precision_loss, reason = "samples of a batch")]
            let seed = share * self.optimizer.loss_factor() / samples as f64;
            let seeds = Tensor::new(&[samples], vec![seed; samples])?.cast(losses.dtype())?;
            let seeds = match losses.device() {
                Some(device) => seeds.to_device(&device.clone())?,
                None => seeds,
            };
            tape.backward(vec![(&result.sample_loss, seeds)], &[], &mut sum)?;
            results.push((result, batch.last_scale));
        }
        self.optimizer.update(&mut self.parameters, &sum.gradients)?;
        let mut report = FitStepReport {
            measures: Measures::default(),
            loss: 0.0,
            gradient_norm: 0.0,
            skipped_updates: None,
        };
        for (result, last_scale) in &results {
            report.measures.add(share, token_measures(result, *last_scale)?);
            let losses = result.sample_loss.value().to_f64_vec()?;
            #[expect(clippy::cast_precision_loss, reason = "samples of a batch")]
            let count = losses.len() as f64;
            report.loss += share * losses.iter().sum::<f64>() / count;
        }
        let updated = self.optimizer.finish()?;
        report.gradient_norm = updated.norm;
        let scale = self.optimizer.loss_scale();
        report.skipped_updates = scale.map(|scale| scale.skipped());
        let scaled = scale.is_some_and(|scale| scale.factor() >= 1.0);
        if (report.loss.is_finite() && updated.applied) || scaled {
            return Ok(report);
        }
        Err(Error::Diverged(format!(
            "the loss or the gradient is not finite at step {step} (loss {}, gradient norm {}); lower tlr or tclip and \
                 resume from the last checkpoint",
            report.loss, report.gradient_norm
        )))
    }

    /// One step on all tokens; each batch comes with the index that selects its random streams.
    ///
    /// # Errors
    /// Those of `step`.
    pub(crate) fn plain_step(
        &mut self,
        batches: Vec<(Batch, u64)>,
        rates: Rates,
        step: u64,
    ) -> Result<FitStepReport> {
        let whole = |(batch, iteration)| MicroStep {
            batch,
            tokens: Tokens { layout: None, weights: None },
            iteration,
        };
        self.step(&batches.into_iter().map(whole).collect::<Vec<_>>(), rates, step)
    }

    /// The mean loss per token of each sample of a batch on each scale of the pyramid, whose token maps have the sides
    /// `sides`, `[B, S]`; without drop-path and label smoothing.
    ///
    /// # Errors
    /// If a shape does not fit, or the number of tokens differs.
    pub(crate) fn scale_losses(&self, batch: &Batch, sides: &[usize]) -> Result<Vec<Vec<f64>>> {
        let mut losses = Vec::new();
        self.each_pass(std::iter::once(Ok(batch.clone())), |result, _| {
            let tokens = result.token_loss.dim(1);
            expect_tokens(tokens, sides)?;
            for sample in result.token_loss.to_f64_vec()?.chunks(tokens) {
                losses.push(scale_means(sample, sides));
            }
            Ok(())
        })?;
        Ok(losses)
    }

    /// The norm of the gradient of each sample's mean loss per token, `[B]`; without drop-path and label smoothing.
    ///
    /// # Errors
    /// If a shape does not fit, or a device fails.
    pub(crate) fn gradient_norms(&self, batch: &Batch) -> Result<Vec<f64>> {
        let batch = self.placed(batch)?;
        let samples = batch.codes.dim(0);
        let mut ghost = Ghost::new(samples).with_norms().with_repeated(self.network.repeated());
        let mut tape =
            Tape::new(&self.parameters).with_recomputing(self.recompute).with_per_sample_parts(true);
        let result =
            self.network.loss(&mut tape, batch.input()?, &batch.text, &batch.codes, 0.0, Mode::Evaluate)?;
        let (losses, factor) = (result.sample_loss.value(), self.optimizer.loss_factor());
        let mut seeds = Tensor::new(&[samples], vec![factor; samples])?.cast(losses.dtype())?;
        if let Some(device) = self.parameters.device() {
            seeds = seeds.to_device(device)?;
        }
        tape.backward(vec![(&result.sample_loss, seeds)], &[], &mut ghost)?;
        let squared = ghost.finish(&self.parameters)?.squared_norm()?;
        let squared = squared.ok_or_else(|| Error::invalid("the squared norms were not measured"))?;
        Ok(squared.to_f64_vec()?.into_iter().map(|squared| squared.sqrt() / factor).collect())
    }

    /// Loss and accuracy on batches, without drop-path, on all tokens.
    ///
    /// # Errors
    /// If there is no sample or a shape does not fit.
    pub fn measure(&self, batches: impl Iterator<Item = Result<Batch>>) -> Result<Measures> {
        let mut sums = Measures::default();
        let samples = self.each_pass(batches, |result, batch| {
            #[expect(clippy::cast_precision_loss, reason = "samples of a batch")]
            let count = batch.codes.dim(0) as f64;
            sums.add(count, token_measures(result, batch.last_scale)?);
            Ok(())
        })?;
        let Measures { loss, tail_loss, accuracy, tail_accuracy } = sums;
        let mut means = Measures::default();
        means.add(1.0 / samples, [loss, tail_loss, accuracy, tail_accuracy]);
        Ok(means)
    }

    /// Like [`measure`](Self::measure), per scale of the pyramid, whose token maps have the sides `sides`.
    ///
    /// # Errors
    /// Those of [`measure`](Self::measure), or if the number of tokens differs.
    pub fn measure_scales(
        &self,
        batches: impl Iterator<Item = Result<Batch>>,
        sides: &[usize],
    ) -> Result<Vec<ScaleMeasures>> {
        let mut sums = vec![(0.0, 0.0); sides.len()];
        let samples = self.each_pass(batches, |result, _| {
            let tokens = result.token_loss.dim(1);
            expect_tokens(tokens, sides)?;
            let (losses, correct) = (result.token_loss.to_f64_vec()?, result.correct.to_host()?);
            let correct: Vec<f64> = correct.as_slice::<u32>()?.iter().map(|&one| f64::from(one)).collect();
            for (losses, correct) in losses.chunks(tokens).zip(correct.chunks(tokens)) {
                let means = scale_means(losses, sides).into_iter().zip(scale_means(correct, sides));
                for ((mean_loss, mean_right), (loss, right)) in means.zip(&mut sums) {
                    *loss += mean_loss;
                    *right += mean_right;
                }
            }
            Ok(())
        })?;
        let mean = |(&side, (loss, right)): (&usize, (f64, f64))| ScaleMeasures {
            side,
            loss: loss / samples,
            accuracy: 100.0 * right / samples,
        };
        Ok(sides.iter().zip(sums).map(mean).collect())
    }

    /// Runs a pass without drop-path over each batch; returns the number of samples.
    fn each_pass(
        &self,
        batches: impl Iterator<Item = Result<Batch>>,
        mut see: impl FnMut(&CrossEntropy, &Batch) -> Result<()>,
    ) -> Result<f64> {
        let mut samples = 0.0;
        for batch in batches {
            let batch = self.placed(&batch?)?;
            let mut tape = Tape::inference(&self.parameters);
            let result = self.network.loss(
                &mut tape,
                batch.input()?,
                &batch.text,
                &batch.codes,
                0.0,
                Mode::Evaluate,
            )?;
            see(&result, &batch)?;
            #[expect(clippy::cast_precision_loss, reason = "samples of a batch")]
            let count = batch.codes.dim(0) as f64;
            samples += count;
        }
        if samples == 0.0 {
            return Err(Error::not_enough_data("there are no validation samples"));
        }
        Ok(samples)
    }
}

fn expect_tokens(tokens: usize, sides: &[usize]) -> Result<()> {
    if tokens == sides.iter().map(|side| side * side).sum::<usize>() {
        return Ok(());
    }
    Err(Error::shape("scales", format!("{tokens} tokens in maps of sides {sides:?}")))
}

/// The mean over the tokens of each scale.
fn scale_means(tokens: &[f64], sides: &[usize]) -> Vec<f64> {
    let mut start = 0;
    let mean = |side: &usize| {
        let map = &tokens[start..start + side * side];
        start += side * side;
        #[expect(clippy::cast_precision_loss, reason = "some hundred tokens")]
        let count = map.len() as f64;
        map.iter().sum::<f64>() / count
    };
    sides.iter().map(mean).collect()
}
