//! The training loop around the bilevel step: data, batches in a fixed order, checkpoints, resume.

mod batches;
mod rater_only;
mod saved;

use std::path::PathBuf;

use serde_json::json;

use crate::{
    config::{Config, RaterObjective},
    encode::{ImageTokenizer, TextEncoder, pca::FitReport},
    engine::{DType, cuda::Device, ops::pyramid::CodeReader},
    error::{Error, Result},
    interrupt::{AS_IT_WAS, Interrupt, NO_STEP},
    jobs::progress::{Metrics, Progress},
    models::{Proxy, Rater, init},
    rater::{
        bilevel::{Bilevel, BilevelSettings, StepRates, StepReport},
        crossfit::{Agreement, CaptionSignal, CrossFit, FoldProxySummary},
        dynamics::write_figure,
        samples::{SampleRecords, recording},
    },
    training::{
        checkpoint,
        optimizer::AdamWSettings,
        prepared::{Prepared, ValidationUse, prepare},
        released,
        run_directory::{Journal, RunDirectory},
        schedule::Plan,
    },
};

use batches::{Batches, StepBatches};
use rater_only::train_rater;

/// The summary of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// Steps of the whole run, including earlier sessions.
    pub steps: u64,
    /// How many of them train the rater alone.
    pub rater_only: u64,
    /// Training records used.
    pub train: usize,
    /// Validation records used.
    pub validation: usize,
    /// Skipped records.
    pub failed: usize,
    /// The fit of the image tokenizer, if this run fitted it.
    pub tokenizer: Option<FitReport>,
    /// The last step's report.
    pub last: Option<StepReport>,
    /// The training of each fold's proxy and the number of records that it evaluated, under rules that need the caption
    /// gain; empty in a resumed run whose captions were evaluated before.
    pub folds: Vec<(FoldProxySummary, usize)>,
    /// What the caption gains show about the captions; `None` if there are no `folds`.
    pub captions: Option<CaptionSignal>,
    /// How far two proxies agree, under the same rules.
    pub agreement: Option<Agreement>,
    /// The table of caption gains, under rules that need them.
    pub gains: Option<PathBuf>,
    /// The table and plots of loss and gradient norm by rating over the epochs.
    pub figures: Vec<PathBuf>,
}

impl std::fmt::Display for TrainSummary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { steps, rater_only, train, validation, failed, .. } = self;
        let alone =
            if *rater_only == 0 { String::new() } else { format!(" ({rater_only} of the rater alone)") };
        match self.gains {
            // Cross-fitted proxies have steps of their own, and no validation set.
            Some(_) => write!(formatter, "{steps} steps of the rater on {train} records ({failed} skipped)")?,
            None => write!(
                formatter,
                "{steps} steps{alone} on {train} training and {validation} validation records ({failed} skipped)"
            )?,
        }
        if let Some(fit) = &self.tokenizer {
            let FitReport { psnr_db, codes_used, .. } = fit;
            write!(
                formatter,
                "\nimage tokenizer: PSNR {psnr_db:.1} dB on held-out images, effective codebook size {codes_used:.0}"
            )?;
        }
        for (fold, (proxy, evaluated)) in self.folds.iter().enumerate() {
            let FoldProxySummary { train, aside, losses, best } = proxy;
            let (epochs, loss) = (losses.len(), losses.get(*best).copied().unwrap_or(f64::NAN));
            write!(
                formatter,
                "\nfold {fold}: {evaluated} records evaluated by a proxy trained on {train} others for {epochs} epochs; best \
                 epoch {}, loss {loss:.4} on {aside} records set aside",
                best + 1
            )?;
        }
        if let Some(captions) = &self.captions {
            write!(formatter, "\n{captions}")?;
        }
        if let Some(agreement) = &self.agreement {
            write!(formatter, "\n{agreement}")?;
        }
        if let Some(last) = &self.last {
            let (loss, accuracy) = (last.validation_loss, last.validation_accuracy);
            write!(formatter, "\nlast step: validation loss {loss:.4}, token accuracy {accuracy:.2}%")?;
        }
        if let Some(path) = &self.gains {
            write!(formatter, "\n{}", path.display())?;
        }
        for path in &self.figures {
            write!(formatter, "\n{}", path.display())?;
        }
        Ok(())
    }
}

/// The results of cross-fitting; empty if there was none in this session.
#[derive(Default)]
struct Evaluated {
    folds: Vec<(FoldProxySummary, usize)>,
    captions: Option<CaptionSignal>,
    agreement: Option<Agreement>,
}

/// Whether the rule of the run uses validation records.
fn validation(config: &Config) -> ValidationUse {
    match config.training.rule.rule.needs().caption_gain {
        true => ValidationUse::Unused,
        false => ValidationUse::Needed,
    }
}

/// The parts of a run.
struct Run<'a> {
    config: &'a Config,
    directory: &'a RunDirectory,
    data: Prepared,
    plan: Plan,
    on_device: bool,
}

/// Trains a rater in `directory`, jointly with a proxy or on the measurements of cross-fitted proxies. Resumes from the
/// newest checkpoint if there is one.
///
/// # Errors
/// If the data cannot be used, a checkpoint does not fit, the loss is not finite, a file cannot be written, or the
/// user interrupts (after a checkpoint has been written).
pub fn train(
    config: &Config,
    directory: &RunDirectory,
    command_line: &[String],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<TrainSummary> {
    if config.training.progressive.is_some() || config.training.drop_scale_length.is_some() {
        return Err(Error::argument(
            "pg and drop_scale_length train on a part of the tokens, which only `fit` supports; set pg to 0 and \
             drop_scale_length to null",
        ));
    }
    // An unusable device ends the run before the data is read.
    let device = config.device.open()?;
    let data = prepare(config, directory, validation(config), device.as_ref(), interrupt, progress)?;
    let plan = Plan::new(config, data.train.len(), data.validation.len())?;
    let run = Run { config, directory, data, plan, on_device: device.is_some() };
    let saved = checkpoint::Checkpoint::newest(&directory.checkpoints())?;
    let mut bilevel = interrupt.while_reading(NO_STEP, || run.networks(device.as_ref(), saved.is_none()))?;
    let mut samples = SampleRecords::new(run.data.train.len(), config.training.average_from_epoch);
    let mut step = 0;
    let mut kept = None;
    if let Some(folder) = saved {
        step = interrupt.while_reading(AS_IT_WAS, || run.restore(&folder, &mut bilevel, &mut samples))?;
        kept = Some(interrupt.while_reading(AS_IT_WAS, || run.expect_whole(&folder))?);
        progress.note(&format!("continuing after step {step}"));
    }
    let mut journal = directory.journal(kept.as_ref())?;
    let mut batches = Batches::new(&run)?;
    let cross_fit = run.cross_fit(device.as_ref(), step, interrupt)?;
    directory.record_start(config, command_line, step)?;
    let total = run.proxy_updates();
    let own_plan = rater_only::plan(&run)?;
    let whole = total + own_plan.as_ref().map_or(0, Plan::updates);
    let every = (total / run.plan.epochs.max(1) / config.log_lines.max(1)).max(1);
    let mut last = None;
    let mut these = if step < total { batches.of(&run, step, &bilevel)? } else { StepBatches::default() };
    while step < total {
        let epoch = run.plan.epoch(step);
        let rates = run.rates(step);
        run.begin(step, &mut bilevel);
        if config.training.rule.objective == RaterObjective::Regression {
            for (micro, indices) in these.micro.iter_mut().zip(&these.indices) {
                micro.prior = Some(samples.prior(indices));
            }
        }
        // The host prepares the next batches while the device works.
        let (report, next) = bilevel.step_while(&these.micro, rates, step, |bilevel| {
            if step + 1 < total { batches.of(&run, step + 1, bilevel) } else { Ok(StepBatches::default()) }
        })?;
        let indices = std::mem::replace(&mut these, next).indices.concat();
        for index in samples.record(&indices, &report, epoch) {
            let id = &run.data.train.ids[index];
            progress.note(&format!(
                "the loss or constant of {id} is not finite at step {step}; the rater skips the sample, and if it is \
                 the loss, the proxy skips its batch"
            ));
        }
        progress.step(step, total, indices.len(), &metrics(rates, &report));
        if step % every == 0 || step + 1 == total {
            journal.append(&line(step, epoch, rates, &report, &samples))?;
        }
        let ends_epoch = run.plan.ends_epoch(step);
        if ends_epoch || step + 1 == total {
            let recordings = run.records(epoch).then(|| directory.dynamics());
            if let Some(written) = samples.end_epoch(&run.data.train.ids, epoch, recordings.as_deref())? {
                journal.note_recording(recording(epoch), written);
            }
        }
        step += 1;
        last = Some(report);
        let due = config.checkpoint_every.is_some_and(|every| every > 0 && step % every == 0);
        // Read once, so that the checkpoint's name and the message agree.
        let stops = interrupt.is_raised();
        let regular = due || ends_epoch || step == total;
        if regular || stops {
            run.save(&bilevel, &samples, step, !regular, &journal.sync()?)?;
        }
        if stops && step < whole {
            let path = directory.path().display();
            let saved =
                format!("step {step} of {whole} is saved; continue with `train --out {path} --resume`");
            return Err(Error::Interrupted { saved });
        }
    }
    let evaluated =
        run.evaluate_captions(cross_fit.as_ref(), &mut samples, &mut journal, interrupt, progress)?;
    if let Some(plan) = own_plan.filter(|_| step < whole) {
        train_rater(&run, &plan, (&mut bilevel, &samples), &mut journal, step, interrupt, progress)?;
    } else if last.is_none() {
        progress.note("the run is already complete");
    }
    let figures = write_figure(&directory.dynamics())?;
    directory.complete()?;
    Ok(TrainSummary {
        steps: whole,
        rater_only: whole - total,
        train: run.data.train.len(),
        validation: run.data.validation.len(),
        failed: run.data.failed(),
        tokenizer: run.data.fit.clone(),
        last,
        folds: evaluated.folds,
        captions: evaluated.captions,
        agreement: evaluated.agreement,
        gains: run.is_crossfitted().then(|| directory.gains()),
        figures,
    })
}

/// The metrics of a step, for display.
fn metrics(rates: StepRates, report: &StepReport) -> Metrics {
    let train = report.train_loss.iter().sum::<f64>() / report.train_loss.len().max(1) as f64;
    let largest = report.weight.iter().copied().fold(0.0, f64::max);
    Metrics {
        summary: format!("loss {train:.3} train, {:.3} validation", report.validation_loss),
        values: vec![
            ("loss/train", train),
            ("loss/validation", report.validation_loss),
            ("loss/validation_tail", report.validation_tail_loss),
            ("loss/proxy", report.proxy_loss),
            ("loss/rater", report.rater_loss),
            ("accuracy/validation", report.validation_accuracy),
            ("accuracy/validation_tail", report.validation_tail_accuracy),
            ("gradient_norm/proxy", report.proxy_gradient_norm),
            ("gradient_norm/rater", report.rater_gradient_norm),
            ("weight/largest", largest),
            ("schedule/learning_rate", rates.learning_rate),
            ("schedule/weight_decay", rates.weight_decay),
            ("schedule/upper_level_weight", rates.upper_level_weight),
        ],
    }
}

fn line(
    step: u64,
    epoch: u64,
    rates: StepRates,
    report: &StepReport,
    samples: &SampleRecords,
) -> serde_json::Value {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let most = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(*value));
    let mut line = json!({
        "step": step,
        "epoch": epoch,
        "learning_rate": rates.learning_rate,
        "weight_decay": rates.weight_decay,
        "upper_level_weight": rates.upper_level_weight,
        "validation_loss": report.validation_loss,
        "validation_tail_loss": report.validation_tail_loss,
        "validation_accuracy": report.validation_accuracy,
        "validation_tail_accuracy": report.validation_tail_accuracy,
        "train_loss": mean(&report.train_loss),
        "weighted_train_loss": report.weighted_train_loss,
        "proxy_loss": report.proxy_loss,
        "rater_loss": report.rater_loss,
        "proxy_gradient_norm": report.proxy_gradient_norm,
        "rater_gradient_norm": report.rater_gradient_norm,
        "largest_weight": most(&report.weight),
    });
    let optional = [
        ("reference_loss", &report.reference_loss),
        ("product", &report.product),
        ("gradient_norm", &report.gradient_norm),
        ("rating", &report.logit),
        ("target", &report.target),
    ];
    for (name, values) in optional {
        if !values.is_empty() {
            line[name] = json!(mean(values));
        }
    }
    if !report.reference_loss.is_empty() {
        line["reference_gradient_norm"] = json!(report.reference_gradient_norm);
    }
    if samples.left_out() > 0 {
        line["left_out"] = json!(samples.left_out());
    }
    if let Some(skipped) = report.skipped_updates {
        line["skipped_updates"] = json!(skipped);
    }
    line
}

/// Both networks, with randomly initialized weights and their optimizers.
///
/// # Errors
/// If the sizes are inconsistent.
pub(crate) fn build_networks(
    config: &Config,
    tokenizer: &dyn ImageTokenizer,
    text: &dyn TextEncoder,
) -> Result<Bilevel> {
    let quantizer = tokenizer.quantizer();
    let sizes = (quantizer.vocabulary(), quantizer.channels(), text.channels());
    let proxy_config = config.proxy_backbone(sizes.0, sizes.1, sizes.2);
    let rater_config = config.rater_backbone(sizes.0, sizes.1, sizes.2);
    let (proxy, mut proxy_parameters) = Proxy::new(&proxy_config, DType::F32, config.seed.wrapping_mul(2))?;
    let (rater, mut rater_parameters) =
        Rater::new(&rater_config, DType::F32, config.seed.wrapping_mul(2) + 1)?;
    if config.networks.zero_cross_attention {
        init::zero_cross_projections(&mut proxy_parameters)?;
        init::zero_cross_projections(&mut rater_parameters)?;
    }
    let optimizers = AdamWSettings { clip: config.training.clip, ..AdamWSettings::default() };
    let settings = BilevelSettings::from_config(config);
    Ok(Bilevel::new((proxy, proxy_parameters), (rater, rater_parameters), optimizers, settings))
}

impl Run<'_> {
    fn networks(&self, device: Option<&Device>, fresh: bool) -> Result<Bilevel> {
        let mut bilevel = build_networks(self.config, self.data.tokenizer.as_ref(), self.data.text.as_ref())?;
        // A run that resumes does not need the file of initial weights.
        if let Some(path) = self.config.networks.initial_weights.as_ref().filter(|_| fresh) {
            released::load(path, released::PROXY, &mut bilevel.proxy_parameters)?;
            if released::contains(path, released::RATER)? {
                released::load(path, released::RATER, &mut bilevel.rater_parameters)?;
            }
        }
        if let Some(device) = device {
            bilevel.move_to(device, self.config.compute)?;
            let most = self.config.training.batch;
            bilevel.reader = Some(CodeReader::new(self.data.tokenizer.quantizer(), device, most)?);
        }
        Ok(bilevel)
    }

    /// The rates of a step.
    fn rates(&self, step: u64) -> StepRates {
        let scheduled = self.plan.rates(step);
        StepRates {
            upper_level_weight: self.plan.upper_level_weight(step),
            learning_rate: scheduled.learning_rate,
            weight_decay: scheduled.weight_decay,
            warm_up: self.warms_up(step),
        }
    }

    /// Whether the rule evaluates captions by cross-fitted proxies, so that the run's own proxy is not trained.
    fn is_crossfitted(&self) -> bool {
        self.config.training.rule.rule.needs().caption_gain
    }

    /// The folds of a rule that evaluates captions; `None` under other rules, and if the rater's targets were restored
    /// from a checkpoint.
    fn cross_fit<'a>(
        &'a self,
        device: Option<&'a Device>,
        step: u64,
        interrupt: &Interrupt,
    ) -> Result<Option<CrossFit<'a>>> {
        if !self.is_crossfitted() || step > 0 {
            return Ok(None);
        }
        let new = || CrossFit::new(self.config, self.directory, &self.data, device);
        interrupt.while_reading(NO_STEP, new).map(Some)
    }

    /// Evaluates all training records with cross-fitted proxies, writes the table of gains and sets the rater's targets.
    fn evaluate_captions(
        &self,
        cross_fit: Option<&CrossFit<'_>>,
        samples: &mut SampleRecords,
        journal: &mut Journal,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Evaluated> {
        let Some(cross_fit) = cross_fit else { return Ok(Evaluated::default()) };
        let fitted = cross_fit.run(interrupt, progress)?;
        journal.note_gains(fitted.write(self.directory, &self.config.data.id_column, &self.data.train)?);
        samples.settle(&fitted.targets());
        let captions = fitted.caption_signal();
        Ok(Evaluated { folds: fitted.folds, captions: Some(captions), agreement: fitted.agreement })
    }

    /// The number of updates that train the proxy; the updates of the rater alone follow them.
    fn proxy_updates(&self) -> u64 {
        if self.is_crossfitted() { 0 } else { self.plan.updates() }
    }

    fn warms_up(&self, step: u64) -> bool {
        self.plan.epoch(step) < self.config.training.proxy_warmup_epochs
    }

    /// Whether the measurements of an epoch are recorded.
    fn records(&self, epoch: u64) -> bool {
        self.config.training.record_every.is_some_and(|every| epoch.is_multiple_of(every))
    }

    /// Prepares a step: the first one after the warm-up creates the reference proxy.
    fn begin(&self, step: u64, bilevel: &mut Bilevel) {
        let first = !self.warms_up(step) && (step == 0 || self.warms_up(step - 1));
        if first && self.config.training.rule.rule.needs().reference {
            bilevel.begin_reference();
        }
        bilevel.settings.record_norms =
            self.config.training.record_norms && self.records(self.plan.epoch(step));
    }
}
