//! The training loop around the bilevel step: data in, batches in a fixed order, checkpoints, resume.

mod batches;

use std::path::Path;

use serde_json::json;

use crate::{
    config::{Config, Portion},
    data::Record,
    encode::{
        ImageTokenizer, TextEncoder, load_image_tokenizer, load_text_encoder, pca::FitReport,
        pyramid::CodeReader,
    },
    engine::{DType, Parameters, Purpose, Random, cuda::Device},
    error::{Error, Result},
    files::write_whole,
    interrupt::Interrupt,
    models::{Proxy, Rater, Weighing},
    rate::{
        bilevel::{Bilevel, BilevelSettings, RecordedStep, StepRates, StepReport},
        corpus::{self, EncodedCorpus, FailedRecord, FitPictures, Progress},
    },
    train::{
        checkpoint::{self, Checkpoint, State, expect_fingerprint},
        optimizer::{AdamW, AdamWSettings},
        parameter_groups::decays,
        run_directory::RunDirectory,
        schedule::Plan,
    },
};

use batches::Batches;

/// Watches a run from outside: progress bars, event files.
pub trait Observer {
    /// A part of the preparation is `done` out of `total`.
    fn preparing(&mut self, what: &str, done: u64, total: u64);
    /// Something the user should know, in one sentence.
    fn note(&mut self, sentence: &str);
    /// One step of `total` is done.
    fn step(&mut self, step: u64, total: u64, samples: usize, rates: StepRates, report: &StepReport);
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// Steps of the whole run.
    pub steps: u64,
    /// Training records used.
    pub train: usize,
    /// Validation records used.
    pub validation: usize,
    /// Records left out.
    pub failed: usize,
    /// How well the image tokenizer fits, if it was fitted here.
    pub tokenizer: Option<FitReport>,
    /// The last step's report.
    pub last: Option<StepReport>,
}

impl std::fmt::Display for TrainSummary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { steps, train, validation, failed, .. } = self;
        write!(
            formatter,
            "{steps} steps on {train} training and {validation} validation records ({failed} left out)"
        )?;
        if let Some(fit) = &self.tokenizer {
            let FitReport { psnr_db, codes_used, .. } = fit;
            write!(
                formatter,
                "\ntokenizer: {psnr_db:.1} dB on held-out pictures, {codes_used:.0} codes effectively used"
            )?;
        }
        if let Some(last) = &self.last {
            let (loss, accuracy) = (last.validation_loss, last.validation_accuracy);
            write!(formatter, "\nlast step: validation loss {loss:.4}, accuracy {accuracy:.2}%")?;
        }
        Ok(())
    }
}

/// Everything that a run is made of.
struct Run<'a> {
    config: &'a Config,
    directory: &'a RunDirectory,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Box<dyn TextEncoder>,
    train: EncodedCorpus,
    validation: EncodedCorpus,
    plan: Plan,
    data: String,
    on_device: bool,
}

/// Trains the rater beside the proxy in `directory`, from its newest checkpoint on where there is one.
///
/// # Errors
/// If the data cannot be used, a checkpoint does not fit, the loss is no longer a number, a file cannot be written, or
/// the user interrupts (after a checkpoint has been written).
pub fn train(
    config: &Config,
    directory: &RunDirectory,
    command_line: &[String],
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<TrainSummary> {
    // A device that cannot be used ends the run before the data is read.
    let device = config.device.open()?;
    let (mut run, report) = prepare(config, directory, interrupt, observer)?;
    run.on_device = device.is_some();
    let mut bilevel = run.networks(device.as_ref())?;
    let mut step = 0;
    if let Some(folder) = checkpoint::Checkpoint::newest(&directory.checkpoints())? {
        step = run.restore(&folder, &mut bilevel)?;
        observer.note(&format!("continuing after step {step} of {}", run.plan.updates()));
    }
    directory.record_start(config, command_line, step)?;
    let mut batches = Batches::new(&run)?;
    let mut metrics = directory.metrics(step)?;
    let total = run.plan.updates();
    let every = (total / run.plan.epochs.max(1) / config.log_lines.max(1)).max(1);
    let mut last = None;
    let mut micro_batches = if step < total { batches.of(&run, step, &bilevel)? } else { Vec::new() };
    while step < total {
        let scheduled = run.plan.rates(step);
        let rates = StepRates {
            upper_level_weight: run.plan.upper_level_weight(step),
            learning_rate: scheduled.learning_rate,
            weight_decay: scheduled.weight_decay,
        };
        // A device works meanwhile.
        let (report, next) = bilevel.step_while(&micro_batches, rates, step, |bilevel| {
            if step + 1 < total { batches.of(&run, step + 1, bilevel) } else { Ok(Vec::new()) }
        })?;
        let samples = micro_batches.iter().map(|micro| micro.train.codes.dim(0)).sum();
        micro_batches = next;
        observer.step(step, total, samples, rates, &report);
        if step % every == 0 || step + 1 == total {
            metrics.append(&line(step, run.plan.epoch(step), rates, &report))?;
        }
        let ends_epoch = run.plan.ends_epoch(step);
        step += 1;
        last = Some(report);
        let due = config.checkpoint_every.is_some_and(|every| every > 0 && step % every == 0);
        if due || ends_epoch || interrupt.is_raised() || step == total {
            metrics.sync()?;
            run.save(&bilevel, step)?;
        }
        if interrupt.is_raised() && step < total {
            let path = directory.path().display();
            let saved = format!("step {step} of {total} is saved; go on with `train --out {path} --resume`");
            return Err(Error::Interrupted { saved });
        }
    }
    if last.is_none() {
        observer.note("the run was complete already");
    }
    let failed = run.train.failed.len() + run.validation.failed.len();
    Ok(TrainSummary {
        steps: total,
        train: run.train.len(),
        validation: run.validation.len(),
        failed,
        tokenizer: report,
        last,
    })
}

fn line(step: u64, epoch: u64, rates: StepRates, report: &StepReport) -> serde_json::Value {
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
    if let Some(skipped) = report.skipped_updates {
        line["skipped_updates"] = json!(skipped);
    }
    line
}

fn portion(config: &Config, mut records: Vec<Record>) -> Vec<Record> {
    let count = |share: f64| ((records.len() as f64 * share).round().max(1.0)) as usize;
    match config.data.portion {
        Portion::All => records,
        Portion::First(share) => {
            let count = count(share);
            records.truncate(count);
            records
        }
        Portion::Random(share) => {
            let count = count(share);
            let mut places: Vec<usize> = (0..records.len()).collect();
            Random::new(config.seed, Purpose::Select, 0).shuffle(&mut places);
            places.truncate(count);
            places.sort_unstable();
            let mut kept = places.into_iter().peekable();
            let mut place = 0;
            records.retain(|_| {
                let keep = kept.next_if_eq(&place).is_some();
                place += 1;
                keep
            });
            records
        }
    }
}

fn prepare<'a>(
    config: &'a Config,
    directory: &'a RunDirectory,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<(Run<'a>, Option<FitReport>)> {
    let records = portion(config, corpus::open(config, config.data.train_csv()?)?.read_all()?);
    let mut progress = |what: &str, done: u64, total: u64| observer.preparing(what, done, total);
    let progress: &mut Progress<'_> = &mut progress;
    let (tokenizer, report, mut pictures) =
        saved_or_fitted(config, directory, &records, interrupt, progress)?;
    let text = text_encoder(config, directory)?;
    let mut train =
        EncodedCorpus::encode(config, records, tokenizer.as_ref(), &mut pictures, interrupt, progress)?;
    let (validation, note) = match &config.data.validation {
        Some(path) => {
            let records = corpus::open(config, path)?.read_all()?;
            let none = &mut FitPictures::default();
            (EncodedCorpus::encode(config, records, tokenizer.as_ref(), none, interrupt, progress)?, None)
        }
        None => {
            let share = config.data.validation_portion.unwrap_or(DEFAULT_VALIDATION_PORTION);
            let count = ((train.len() as f64 * share).round() as usize).max(config.training.batch);
            if train.len() < count + config.training.batch {
                return Err(Error::invalid(format!(
                    "{} usable records are too few to hold out {count} for validation; give val_csv_path or lower bs",
                    train.len()
                )));
            }
            let note = format!("no validation set is named, so {count} training records are held out for it");
            (train.split_off(count, config.seed), Some(note))
        }
    };
    if let Some(note) = note {
        observer.note(&note);
    }
    write_failed(directory, &[&train.failed, &validation.failed])?;
    let plan = Plan::new(config, train.len(), validation.len())?;
    let data = format!("{}+{}", train.fingerprint(), validation.fingerprint());
    Ok((Run { config, directory, tokenizer, text, train, validation, plan, data, on_device: false }, report))
}

/// Share of the training set held out where the configuration says nothing of validation.
const DEFAULT_VALIDATION_PORTION: f64 = 0.05;

/// The tokenizer of the run: the one it saved, else a fresh one, which is saved before anything is trained on it.
fn saved_or_fitted(
    config: &Config,
    directory: &RunDirectory,
    records: &[Record],
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
) -> Result<(Box<dyn ImageTokenizer>, Option<FitReport>, FitPictures)> {
    let folder = directory.image_tokenizer();
    if folder.join(READY).exists() {
        return Ok((load_image_tokenizer(&folder)?, None, FitPictures::default()));
    }
    let (tokenizer, report, pictures) = corpus::image_tokenizer(config, records, interrupt, progress)?;
    if tokenizer.quantizer().patch_nums() != config.networks.patch_nums
        || tokenizer.image_side() != config.networks.image_side()
    {
        return Err(Error::invalid(format!(
            "the image tokenizer makes token maps of sides {:?} from pictures of {} pixels, but the configuration says \
             {:?} and {}",
            tokenizer.quantizer().patch_nums(),
            tokenizer.image_side(),
            config.networks.patch_nums,
            config.networks.image_side()
        )));
    }
    make_folder(&folder)?;
    tokenizer.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok((tokenizer, report, pictures))
}

/// Written into an encoder's folder when all of it is there.
const READY: &str = "ready";

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))
}

fn text_encoder(config: &Config, directory: &RunDirectory) -> Result<Box<dyn TextEncoder>> {
    let folder = directory.text_encoder();
    if folder.join(READY).exists() {
        return load_text_encoder(&folder);
    }
    let text = corpus::text_encoder(config)?;
    make_folder(&folder)?;
    text.save(&folder)?;
    write_whole(&folder.join(READY), b"")?;
    Ok(text)
}

fn write_failed(directory: &RunDirectory, failed: &[&Vec<FailedRecord>]) -> Result<()> {
    let path = directory.failed();
    let mut table = csv::Writer::from_writer(Vec::new());
    let refuse =
        |error: csv::Error| Error::Table { path: path.clone(), line: None, message: error.to_string() };
    table.write_record(["id", "line", "reason"]).map_err(refuse)?;
    for record in failed.iter().copied().flatten() {
        table.write_record([&record.id, &record.line.to_string(), &record.reason]).map_err(refuse)?;
    }
    table.flush().map_err(Error::io("write", &path))?;
    let bytes = table.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
    write_whole(&path, &bytes)
}

/// Both networks, freshly drawn, with their optimisers.
///
/// # Errors
/// If the sizes do not fit together.
pub fn build_networks(
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
        zero_cross_projections(&mut proxy_parameters)?;
        zero_cross_projections(&mut rater_parameters)?;
    }
    let (training, compat) = (&config.training, &config.compat);
    let settings = AdamWSettings { clip: training.clip, ..AdamWSettings::default() };
    let weighing = if compat.double_softmax {
        Weighing::Released
    } else {
        Weighing::Logits { temperature: training.rater_temperature }
    };
    Ok(Bilevel {
        proxy,
        proxy_optimizer: AdamW::new(&proxy_parameters, decays, settings),
        proxy_parameters,
        rater,
        rater_optimizer: AdamW::new(&rater_parameters, decays, settings),
        rater_parameters,
        settings: BilevelSettings {
            weighing,
            weighted_mean: compat.weighted_mean,
            label_smoothing: training.label_smoothing,
            rater_regularisation: training.rater_regularisation,
            freeze_proxy: training.freeze_proxy,
            frozen_proxy_decays: compat.frozen_proxy_decays,
            two_rater_passes: compat.two_rater_passes,
            drop_path: true,
            recompute: config.recompute,
            cuda_graph: config.cuda_graph,
            seed: config.seed,
        },
        reader: None,
        recorded: RecordedStep::default(),
    })
}

/// `from_scratch: false` starts the cross-attention's projections at zero.
fn zero_cross_projections(parameters: &mut Parameters) -> Result<()> {
    let ids: Vec<_> = parameters
        .iter()
        .filter(|(_, name, _)| name.contains("cross_attn.proj."))
        .map(|(id, _, _)| id)
        .collect();
    for id in ids {
        parameters.value_mut(id).0.as_mut_slice::<f32>()?.fill(0.0);
    }
    Ok(())
}

impl Run<'_> {
    fn networks(&self, device: Option<&Device>) -> Result<Bilevel> {
        let mut bilevel = build_networks(self.config, self.tokenizer.as_ref(), self.text.as_ref())?;
        if let Some(device) = device {
            bilevel.move_to(device, self.config.compute)?;
            let most = self.config.training.batch;
            bilevel.reader = Some(CodeReader::new(self.tokenizer.quantizer(), device, most)?);
        }
        Ok(bilevel)
    }

    fn save(&self, bilevel: &Bilevel, step: u64) -> Result<()> {
        let next = step.min(self.plan.updates().saturating_sub(1));
        let mut optimizer =
            checkpoint::moments("proxy", &bilevel.proxy_parameters, &bilevel.proxy_optimizer)?;
        optimizer.extend(checkpoint::moments("rater", &bilevel.rater_parameters, &bilevel.rater_optimizer)?);
        let state = State {
            step,
            epoch: self.plan.epoch(next),
            upper_level_weight: self.plan.upper_level_weight(next),
            seed: self.config.seed,
            proxy_optimizer_steps: bilevel.proxy_optimizer.steps(),
            rater_optimizer_steps: bilevel.rater_optimizer.steps(),
            proxy_loss_scale: bilevel.proxy_optimizer.loss_scale(),
            rater_loss_scale: bilevel.rater_optimizer.loss_scale(),
            config: self.config.fingerprint(),
            image_tokenizer: self.tokenizer.fingerprint(),
            text_encoder: self.text.fingerprint(),
            data: self.data.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_hash: env!("ALCHEMIST_GIT_HASH").to_owned(),
        };
        let checkpoint = Checkpoint {
            proxy: checkpoint::weights(&bilevel.proxy_parameters)?,
            rater: checkpoint::weights(&bilevel.rater_parameters)?,
            optimizer,
            state,
        };
        checkpoint.save(&self.directory.checkpoints(), self.config.keep_checkpoints)?;
        Ok(())
    }

    /// Puts a checkpoint back and gives the steps it had done.
    fn restore(&self, folder: &Path, bilevel: &mut Bilevel) -> Result<u64> {
        let saved = Checkpoint::load(folder)?;
        expect_fingerprint(folder, "configuration", &saved.state.config, &self.config.fingerprint())?;
        expect_fingerprint(
            folder,
            "image tokenizer",
            &saved.state.image_tokenizer,
            &self.tokenizer.fingerprint(),
        )?;
        expect_fingerprint(folder, "text encoder", &saved.state.text_encoder, &self.text.fingerprint())?;
        expect_fingerprint(folder, "data set", &saved.state.data, &self.data)?;
        checkpoint::restore_weights(folder, &saved.proxy, &mut bilevel.proxy_parameters)?;
        checkpoint::restore_weights(folder, &saved.rater, &mut bilevel.rater_parameters)?;
        let nets = [
            ("proxy", &bilevel.proxy_parameters, &mut bilevel.proxy_optimizer),
            ("rater", &bilevel.rater_parameters, &mut bilevel.rater_optimizer),
        ];
        for (net, parameters, optimizer) in nets {
            checkpoint::restore_moments(folder, net, &saved.optimizer, parameters, optimizer)?;
        }
        bilevel.proxy_optimizer.set_steps(saved.state.proxy_optimizer_steps);
        bilevel.rater_optimizer.set_steps(saved.state.rater_optimizer_steps);
        bilevel.proxy_optimizer.set_loss_scale(saved.state.proxy_loss_scale);
        bilevel.rater_optimizer.set_loss_scale(saved.state.rater_loss_scale);
        Ok(saved.state.step)
    }
}
