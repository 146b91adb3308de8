//! Trains a text-to-image model (upstream: `VAR`, `train.py`) on a data set or a subset of one: plain training with
//! equal sample weights, checkpoints, validation after each epoch, and bit-identical resume.

mod caption_gain;
mod model;
mod saved;
mod tokens;

use std::fmt;

use serde_json::json;

pub(crate) use caption_gain::{mean_over_scales, normalized};
pub use model::{FitStepReport, Measures, Model, ScaleMeasures};
pub use saved::{load_model, weights_of};
use tokens::{Chooser, Tokens};

use self::model::MicroStep;
use crate::{
    config::Config,
    encode::pca::FitReport,
    engine::ops::pyramid::CodeReader,
    error::{Error, Result},
    interrupt::{AS_IT_WAS, Interrupt, NO_STEP},
    jobs::progress::{Metrics, Progress},
    tokens::{batch::Batch, encoded::EncodedCorpus},
    training::{
        checkpoint::Checkpoint,
        order::{Order, dropped_captions},
        prepared::{Prepared, ValidationUse, prepare},
        released,
        run_directory::RunDirectory,
        schedule::{Plan, Rates},
    },
};

/// The summary of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSummary {
    /// Steps of the whole run, including earlier sessions.
    pub steps: u64,
    /// Training records used.
    pub train: usize,
    /// Validation records used.
    pub validation: usize,
    /// Skipped records.
    pub failed: usize,
    /// The fit of the image tokenizer, if this run fitted it.
    pub tokenizer: Option<FitReport>,
    /// Final measurements on the validation set.
    pub measures: Measures,
    /// Final measurements per scale, the coarsest first.
    pub scales: Vec<ScaleMeasures>,
    /// How much better the model predicts validation images with their own captions than with others, in nats per token,
    /// averaged per scale and then over the scales; `None` if all captions are the same.
    pub caption_gain: Option<f64>,
}

impl fmt::Display for FitSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, train, validation, failed, .. } = self;
        write!(
            formatter,
            "{steps} steps on {train} training records, {validation} for validation ({failed} skipped)"
        )?;
        if let Some(FitReport { psnr_db, codes_used, .. }) = &self.tokenizer {
            write!(
                formatter,
                "\nimage tokenizer: PSNR {psnr_db:.1} dB on held-out images, effective codebook size {codes_used:.0}"
            )?;
        }
        let Measures { loss, tail_loss, accuracy, tail_accuracy } = self.measures;
        write!(
            formatter,
            "\nvalidation: loss {loss:.4} (finest scale {tail_loss:.4}), token accuracy {accuracy:.2}% ({tail_accuracy:.2}%)"
        )?;
        match self.caption_gain {
            Some(gain) => write!(formatter, ", caption gain {gain:.4}"),
            None => Ok(()),
        }
    }
}

/// The parts of a fit.
struct Run<'a> {
    config: &'a Config,
    directory: &'a RunDirectory,
    data: Prepared,
    plan: Plan,
    chooser: Chooser,
}

/// Trains a model in `directory`, resuming from its newest checkpoint if there is one.
///
/// # Errors
/// If the data cannot be used, a checkpoint does not fit, the loss is not finite, a file cannot be written, or the
/// user interrupts (after a checkpoint has been written).
pub fn fit(
    config: &Config,
    directory: &RunDirectory,
    command_line: &[String],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<FitSummary> {
    // An unusable device ends the run before the data is read.
    let device = config.device.open()?;
    let data = prepare(config, directory, ValidationUse::Needed, device.as_ref(), interrupt, progress)?;
    let plan = Plan::new(config, data.train.len(), data.validation.len())?;
    let quantizer = data.tokenizer.quantizer();
    let saved = Checkpoint::newest(&directory.checkpoints())?;
    let mut model = interrupt.while_reading(NO_STEP, || {
        let mut model =
            Model::new(config, [quantizer.vocabulary(), quantizer.channels(), data.text.channels()])?;
        // A run that resumes does not need the file of initial weights.
        if let Some(path) = config.networks.initial_weights.as_ref().filter(|_| saved.is_none()) {
            released::load(path, released::PROXY, &mut model.parameters)?;
        }
        Ok(model)
    })?;
    if let Some(device) = &device {
        model.move_to(device, config.compute)?;
        model.reader = Some(CodeReader::new(quantizer, device, config.training.batch)?);
    }
    let chooser = Chooser::new(config, &plan, model.network.layout().clone())?;
    let run = Run { config, directory, data, plan, chooser };
    let mut step = 0;
    let mut kept = None;
    if let Some(folder) = saved {
        step = interrupt.while_reading(AS_IT_WAS, || run.restore(&folder, &mut model))?;
        kept = Some(interrupt.while_reading(AS_IT_WAS, || run.expect_whole(&folder))?);
        progress.note(&format!("continuing after step {step} of {}", run.plan.updates()));
    }
    let mut journal = directory.journal(kept.as_ref())?;
    let mut order = Order::new(config, run.data.train.len(), "training", 0)?;
    directory.record_start(config, command_line, step)?;
    let total = run.plan.updates();
    let every = (total / run.plan.epochs.max(1) / config.log_lines.max(1)).max(1);
    let mut measures = None;
    while step < total {
        let rates = run.plan.rates(step);
        let micro = run
            .plan
            .iterations(step)
            .map(|iteration| run.micro_step(&model, &mut order, iteration))
            .collect::<Result<Vec<_>>>()?;
        let report = model.step(&micro, rates, step)?;
        let samples = micro.iter().map(|micro| micro.batch.codes.dim(0)).sum();
        progress.step(step, total, samples, &trained(rates, &report));
        let ends_epoch = run.plan.ends_epoch(step);
        let measured = match ends_epoch || step + 1 == total {
            true => {
                let measured = run.validate(&model)?;
                progress.validated(step + 1, &validated(&measured));
                Some(measured)
            }
            false => None,
        };
        if step % every == 0 || measured.is_some() {
            journal.append(&line(step, run.plan.epoch(step), rates, &report, measured.as_ref()))?;
        }
        measures = measured.or(measures);
        step += 1;
        let due = config.checkpoint_every.is_some_and(|every| every > 0 && step % every == 0);
        let (stops, regular) = (interrupt.is_raised(), due || ends_epoch || step == total);
        if regular || stops {
            run.save(&model, step, !regular, &journal.sync()?)?;
        }
        if stops && step < total {
            let path = directory.path().display();
            let saved = format!("step {step} of {total} is saved; continue with `fit --out {path} --resume`");
            return Err(Error::Interrupted { saved });
        }
    }
    let measures = match measures {
        Some(measures) => measures,
        None => {
            progress.note("the run is already complete");
            run.validate(&model)?
        }
    };
    let scales = run.validate_scales(&model)?;
    let (tokenizer, text) = (run.data.tokenizer.as_ref(), run.data.text.as_ref());
    let caption_gain =
        caption_gain::caption_gain(&model, &run.data.validation, config.training.batch, tokenizer, text)?;
    directory.complete()?;
    Ok(FitSummary {
        steps: total,
        train: run.data.train.len(),
        validation: run.data.validation.len(),
        failed: run.data.failed(),
        tokenizer: run.data.fit.clone(),
        measures,
        scales,
        caption_gain,
    })
}

/// The metrics of a training step, for display.
fn trained(rates: Rates, report: &FitStepReport) -> Metrics {
    let Measures { loss, tail_loss, accuracy, tail_accuracy } = report.measures;
    Metrics {
        summary: format!("loss {loss:.3}"),
        values: vec![
            ("loss/train", loss),
            ("loss/train_tail", tail_loss),
            ("accuracy/train", accuracy),
            ("accuracy/train_tail", tail_accuracy),
            ("gradient_norm/model", report.gradient_norm),
            ("schedule/learning_rate", rates.learning_rate),
            ("schedule/weight_decay", rates.weight_decay),
        ],
    }
}

/// The metrics of a validation, for display.
fn validated(measures: &Measures) -> Metrics {
    let Measures { loss, tail_loss, accuracy, tail_accuracy } = *measures;
    Metrics {
        summary: format!("validation loss {loss:.4}, accuracy {accuracy:.2}%"),
        values: vec![
            ("loss/validation", loss),
            ("loss/validation_tail", tail_loss),
            ("accuracy/validation", accuracy),
            ("accuracy/validation_tail", tail_accuracy),
        ],
    }
}

fn line(
    step: u64,
    epoch: u64,
    rates: Rates,
    report: &FitStepReport,
    measured: Option<&Measures>,
) -> serde_json::Value {
    let Measures { loss, tail_loss, accuracy, tail_accuracy } = report.measures;
    let mut line = json!({
        "step": step,
        "epoch": epoch,
        "learning_rate": rates.learning_rate,
        "weight_decay": rates.weight_decay,
        "train_loss": loss,
        "train_tail_loss": tail_loss,
        "train_accuracy": accuracy,
        "train_tail_accuracy": tail_accuracy,
        "descended_loss": report.loss,
        "gradient_norm": report.gradient_norm,
    });
    if let Some(skipped) = report.skipped_updates {
        line["skipped_updates"] = json!(skipped);
    }
    if let Some(measured) = measured {
        line["validation_loss"] = json!(measured.loss);
        line["validation_tail_loss"] = json!(measured.tail_loss);
        line["validation_accuracy"] = json!(measured.accuracy);
        line["validation_tail_accuracy"] = json!(measured.tail_accuracy);
    }
    line
}

impl Run<'_> {
    fn micro_step(&self, model: &Model, order: &mut Order, iteration: u64) -> Result<MicroStep> {
        let indices = order.batch(iteration)?;
        let drop = dropped_captions(self.config, iteration, indices.len());
        let tokens = self.chooser.of(iteration)?;
        let batch = self.batch(model, &self.data.train, &indices, drop, &tokens)?;
        Ok(MicroStep { batch, tokens, iteration })
    }

    fn batch(
        &self,
        model: &Model,
        from: &EncodedCorpus,
        indices: &[usize],
        drop: impl Fn(usize, &str) -> bool,
        tokens: &Tokens,
    ) -> Result<Batch> {
        let (tokenizer, text) = (self.data.tokenizer.as_ref(), self.data.text.as_ref());
        let batch = from.batch(indices, drop, tokenizer, text)?;
        match &tokens.layout {
            Some(layout) => batch.with_input(tokenizer.quantizer())?.part(layout),
            // A device computes the input itself, so there is less to upload.
            None if model.reader.is_some() => Ok(batch),
            None => batch.with_input(tokenizer.quantizer()),
        }
    }

    /// Measures the model on the whole validation set, with all captions.
    fn validate(&self, model: &Model) -> Result<Measures> {
        model.measure(self.validation(model))
    }

    /// Measures the model on the whole validation set, per scale.
    fn validate_scales(&self, model: &Model) -> Result<Vec<ScaleMeasures>> {
        model.measure_scales(self.validation(model), self.data.tokenizer.quantizer().patch_nums())
    }

    /// The batches of the validation set.
    fn validation<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = Result<Batch>> + 'a {
        let count = self.data.validation.len();
        let size = self.config.training.batch;
        (0..count).step_by(size).map(move |start| {
            let indices: Vec<usize> = (start..(start + size).min(count)).collect();
            let whole = Tokens { layout: None, weights: None };
            self.batch(model, &self.data.validation, &indices, |_, _| false, &whole)
        })
    }
}
