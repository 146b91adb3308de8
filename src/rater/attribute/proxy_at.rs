//! The proxy at one checkpoint: the validation gradient, and the comparison of records with it.

use serde::{Deserialize, Serialize};

use super::{NamedCheckpoint, Setting, Validation};
use crate::{
    config::Geometry,
    data::Record,
    engine::{
        Accumulate, DType, Direction, Ghost, GradientVisitor, Gradients, Parameters, Tape, Tensor,
        ops::{
            meta_gradient::precondition,
            pyramid::{CodeReader, Reach},
        },
    },
    error::{Error, LeftOutRows, Reasons, Result},
    interrupt::Interrupt,
    jobs::progress::Progress,
    models::{Mode, Proxy},
    rater::parts::{Outcome, PartRow, Source},
    tokens::{
        encoded::{batch, in_parallel},
        stamp::ImageState,
    },
    training::{
        checkpoint::{Checkpoint, restore_moments, restore_weights},
        optimizer::{AdamW, AdamWSettings, global_norm},
        parameter_groups::decays,
    },
};

/// The results of a record at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RecordGradient {
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    /// Inner product with the direction.
    pub(super) product: f64,
    /// `None` if the gradient is zero.
    pub(super) cosine: Option<f64>,
}

/// The results of one pass, one value per sample.
struct Pass {
    losses: Vec<f64>,
    products: Vec<f64>,
    squared_norms: Vec<f64>,
}

/// The proxy at a checkpoint, and the direction that records are compared with.
pub(super) struct ProxyAt<'a> {
    setting: &'a Setting<'a>,
    step: u64,
    proxy: Proxy,
    parameters: Parameters,
    /// On a device: computes the proxy's input from codes.
    reader: Option<CodeReader>,
    /// The direction times the number of validation samples.
    direction: Gradients,
    validation: Validation,
}

impl<'a> ProxyAt<'a> {
    /// Loads a checkpoint and computes the validation gradient. Also returns the stamps of the validation images.
    pub(super) fn new(
        setting: &'a Setting<'a>,
        checkpoint: &NamedCheckpoint,
        validation: &Source<'_>,
        validation_rows: u64,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<(Self, Vec<ImageState>)> {
        let (vocabulary, code_channels, text_channels) = setting.encoders.sizes();
        let backbone = setting.config.proxy_backbone(vocabulary, code_channels, text_channels);
        let saved = Checkpoint::load(&checkpoint.folder)?;
        let (proxy, mut parameters) = Proxy::uninitialized(&backbone, DType::F32)?;
        restore_weights(&checkpoint.folder, &saved.proxy, &mut parameters)?;
        let optimizer = match setting.request.geometry {
            Geometry::Sgd => None,
            Geometry::AdamW => {
                let mut optimizer = AdamW::new(&parameters, decays, AdamWSettings::default());
                restore_moments(&checkpoint.folder, "proxy", &saved.optimizer, &parameters, &mut optimizer)?;
                Some(optimizer)
            }
        };
        let updates = saved.state.proxy_optimizer_steps;
        drop(saved);
        let mut reader = None;
        if let Some(device) = &setting.device {
            // fp16 would need loss scaling, and the squared norms exceed its range.
            let compute =
                if setting.config.compute == DType::F16 { DType::F32 } else { setting.config.compute };
            parameters = parameters.to_device(device, compute)?;
            let most = setting.request.batch.max(1);
            reader = Some(CodeReader::new(setting.encoders.tokenizer.quantizer(), device, most)?);
        }
        let nothing = Validation { records: 0, failed: 0, loss: 0.0, norm: 0.0 };
        let step = checkpoint.step;
        let mut found = Self {
            setting,
            step,
            proxy,
            parameters,
            reader,
            direction: Gradients::new(),
            validation: nothing,
        };
        let images = found.validate(validation, validation_rows, interrupt, progress)?;
        if let Some(optimizer) = &optimizer {
            found.precondition(optimizer, updates)?;
        }
        found.measure_direction(checkpoint)?;
        Ok((found, images))
    }

    /// The measurements of the validation set.
    pub(super) fn validation(&self) -> &Validation {
        &self.validation
    }

    /// Sums the gradients of all validation samples; each counts once, whatever its batch.
    fn validate(
        &mut self,
        source: &Source<'_>,
        rows: u64,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ImageState>> {
        let mut sum = Accumulate::default();
        let mut corpus = source.open()?;
        let (mut images, mut from) = (Vec::new(), None);
        let (mut losses, mut failed, mut samples) = (0.0, 0, 0);
        let (mut reasons, mut left_out) = (Reasons::default(), LeftOutRows::default());
        loop {
            progress.counted("validation gradient", samples + failed, rows);
            let saved = "attributed rows are kept; run the same command again to continue";
            interrupt.check(saved)?;
            let part = source.part(&mut corpus, from, &mut left_out, &mut |codes, records| {
                let captions: Vec<&str> = records.iter().map(|record| record.caption.as_str()).collect();
                let losses = self.backward(codes.clone(), &captions, &mut sum)?;
                Ok(losses.into_iter().map(Outcome::Found).collect())
            })?;
            for PartRow { image, outcome, .. } in part.rows {
                images.push(image);
                match outcome {
                    Outcome::Found(loss) => {
                        losses += loss;
                        samples += 1;
                    }
                    Outcome::Failed(reason) => {
                        failed += 1;
                        reasons.add(&reason);
                    }
                }
            }
            from = part.next;
            if from.is_none() {
                break;
            }
        }
        progress.counted("validation gradient", samples + failed, rows);
        if samples == 0 {
            return Err(Error::input(
                source.path,
                format!(
                    "{} has no usable record ({failed} of {rows} failed): {reasons}; pass another --validation",
                    source.path.display()
                ),
            ));
        }
        self.direction = sum.gradients;
        self.validation = Validation { records: samples, failed, loss: losses / samples as f64, norm: 0.0 };
        Ok(images)
    }

    /// Turns the summed gradient into the direction in which the optimizer moves along it.
    fn precondition(&mut self, optimizer: &AdamW, updates: u64) -> Result<()> {
        let AdamWSettings { beta2, epsilon, .. } = AdamWSettings::default();
        let correction = 1.0 - beta2.powi(i32::try_from(updates).unwrap_or(i32::MAX));
        let factors = Tensor::new(&[2], vec![1.0 / correction, epsilon])?;
        let device = self.setting.device.as_ref();
        let near = |tensor: &Tensor| match device {
            None => Ok(tensor.clone()),
            Some(device) => tensor.cast(DType::F32)?.to_device(device),
        };
        let factors = near(&factors)?;
        for ((id, _, _), gradient) in self.parameters.iter().zip(&mut self.direction) {
            if let Some(gradient) = gradient {
                *gradient = precondition(gradient, &near(optimizer.moments(id).1)?, &factors)?;
            }
        }
        Ok(())
    }

    /// The norm of the mean direction.
    fn measure_direction(&mut self, checkpoint: &NamedCheckpoint) -> Result<()> {
        let on_host = |gradient: &Option<Tensor>| gradient.as_ref().map(Tensor::to_host).transpose();
        let gradients: Gradients = self.direction.iter().map(on_host).collect::<Result<_>>()?;
        let norm = global_norm(&gradients)? / self.validation.records as f64;
        if !norm.is_finite() || norm == 0.0 {
            let what = if norm == 0.0 { "zero" } else { "not finite; the checkpoint has diverged" };
            return Err(Error::not_finite(format!(
                "the validation gradient of {} is {what}",
                checkpoint.folder.display()
            )));
        }
        self.validation.norm = norm;
        Ok(())
    }

    /// The losses of a batch of codes `[B, L]`, after one backward pass of their sum.
    fn backward(
        &self,
        codes: Tensor,
        captions: &[&str],
        visitor: &mut dyn GradientVisitor,
    ) -> Result<Vec<f64>> {
        let (samples, config) = (codes.dim(0), &self.setting.config);
        let tokenizer = self.setting.encoders.tokenizer.as_ref();
        let mut batch = batch(codes, captions, tokenizer, self.setting.encoders.text.as_ref())?;
        match self.parameters.device() {
            None => batch = batch.with_input(tokenizer.quantizer())?,
            Some(device) => {
                let dtype = self.parameters.compute_dtype();
                batch = batch.to_device(device, dtype)?;
                batch.read_codes(self.reader.as_ref(), dtype, Reach::Before)?;
            }
        }
        let mut tape =
            Tape::new(&self.parameters).with_recomputing(config.recompute).with_per_sample_parts(true);
        let smoothing = config.training.label_smoothing;
        let result = self.proxy.loss(
            &mut tape,
            batch.input()?,
            &batch.text,
            &batch.codes,
            smoothing,
            Mode::Evaluate,
        )?;
        let losses = result.sample_loss.value();
        let mut seeds = Tensor::new(&[samples], vec![1.0; samples])?.cast(losses.dtype())?;
        if let Some(device) = self.parameters.device() {
            seeds = seeds.to_device(device)?;
        }
        tape.backward(vec![(&result.sample_loss, seeds)], &[], visitor)?;
        losses.to_f64_vec()
    }

    /// Compares a batch of codes `[B, L]` with the direction.
    fn pass(&self, codes: Tensor, captions: &[&str]) -> Result<Pass> {
        let direction = Direction { gradients: &self.direction, preconditioner: None };
        let mut ghost =
            Ghost::new(captions.len()).with_dot(direction).with_norms().with_repeated(self.proxy.repeated());
        let losses = self.backward(codes, captions, &mut ghost)?;
        let found = ghost.finish(&self.parameters)?;
        let numbers = |found: Option<Tensor>| found.map_or(Ok(Vec::new()), |found| found.to_f64_vec());
        Ok(Pass {
            losses,
            products: numbers(found.product()?)?,
            squared_norms: numbers(found.squared_norm()?)?,
        })
    }

    /// Compares a batch of records with the direction.
    pub(super) fn measure(
        &self,
        codes: &Tensor,
        records: &[&Record],
    ) -> Result<Vec<Outcome<RecordGradient>>> {
        let captions: Vec<&str> = records.iter().map(|record| record.caption.as_str()).collect();
        let passes = match self.parameters.device() {
            None => self.one_by_one(codes, &captions)?,
            Some(_) => vec![self.all_at_once(codes, captions)?],
        };
        let rows = passes.iter().flat_map(|Pass { losses, products, squared_norms }| {
            losses.iter().zip(products).zip(squared_norms)
        });
        Ok(rows
            .take(records.len())
            .map(|((&loss, &product), &squared_norm)| self.outcome(loss, product, squared_norm))
            .collect())
    }

    /// Processes one sample at a time, so that the bits of its results do not depend on the other samples.
    fn one_by_one(&self, codes: &Tensor, captions: &[&str]) -> Result<Vec<Pass>> {
        let tokens = codes.dim(1);
        let rows: Vec<(&[u32], &str)> =
            codes.as_slice::<u32>()?.chunks(tokens).zip(captions.iter().copied()).collect();
        in_parallel(&rows, |(codes, caption)| {
            self.pass(Tensor::new(&[1, tokens], codes.to_vec())?, &[caption])
        })
    }

    /// Processes a batch at once, on a device. A partial batch is padded with its last sample, so that every batch
    /// does the same work.
    fn all_at_once(&self, codes: &Tensor, mut captions: Vec<&str>) -> Result<Pass> {
        let (count, tokens) = (captions.len(), codes.dim(1));
        let mut codes = codes.as_slice::<u32>()?.to_vec();
        while captions.len() < self.setting.request.batch {
            codes.extend_from_within(codes.len() - tokens..);
            captions.push(captions[count - 1]);
        }
        self.pass(Tensor::new(&[captions.len(), tokens], codes)?, &captions)
    }

    fn outcome(&self, loss: f64, product: f64, squared_norm: f64) -> Outcome<RecordGradient> {
        let step = self.step;
        match numbers(loss, product, squared_norm, &self.validation) {
            Ok(numbers) => Outcome::Found(numbers),
            Err(what) => Outcome::Failed(format!("the {what} at step {step}; the checkpoint has diverged")),
        }
    }
}

/// Converts a record's values from a pass to its results; the error names the value that is not finite.
fn numbers(
    loss: f64,
    product: f64,
    squared_norm: f64,
    validation: &Validation,
) -> Result<RecordGradient, String> {
    // A squared norm formed from Gram matrices can be slightly negative by rounding.
    let gradient_norm = if squared_norm < 0.0 { 0.0 } else { squared_norm.sqrt() };
    let product = product / validation.records as f64;
    for (name, number) in [("loss", loss), ("gradient's norm", gradient_norm), ("product", product)] {
        if !number.is_finite() {
            return Err(format!("{name} is {number}"));
        }
    }
    let lengths = gradient_norm * validation.norm;
    let cosine = (lengths > 0.0).then(|| product / lengths);
    Ok(RecordGradient { loss, gradient_norm, product, cosine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_gradient_has_no_cosine_and_non_finite_results_are_named() {
        let validation = Validation { records: 4, failed: 0, loss: 1.0, norm: 0.5 };
        let found = |loss, product, squared_norm| numbers(loss, product, squared_norm, &validation);
        let zero = RecordGradient { loss: 0.5, gradient_norm: 0.0, product: 0.0, cosine: None };
        assert_eq!(found(0.5, 0.0, 0.0), Ok(zero));
        assert_eq!(found(0.5, 0.0, -1e-20), Ok(zero));
        let usual = RecordGradient { loss: 0.5, gradient_norm: 3.0, product: -0.75, cosine: Some(-0.5) };
        assert_eq!(found(0.5, -3.0, 9.0), Ok(usual));
        assert_eq!(found(f64::NAN, 1.0, 1.0), Err("loss is NaN".to_owned()));
        assert_eq!(found(1.0, f64::INFINITY, 1.0), Err("product is inf".to_owned()));
        assert_eq!(found(1.0, 1.0, f64::NAN), Err("gradient's norm is NaN".to_owned()));
    }
}
