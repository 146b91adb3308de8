//! The proxy of a fold: a text-to-image model that is trained with equal weights on records outside the fold and
//! evaluates those inside. Its training stops early, judged by records that are set aside, and the weights of its best
//! epoch are used.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{CrossFit, folds::Training, largest_batch};
use crate::{
    config::Config,
    engine::{cuda::Device, ops::pyramid::CodeReader},
    error::{Error, Result},
    files::{remove_leftovers, sha256},
    generator::fit::Model,
    interrupt::{AS_IT_WAS, Interrupt},
    jobs::progress::Progress,
    tokens::{batch::Batch, encoded::EncodedCorpus, encoders::Encoders},
    training::{
        checkpoint::{
            self, MODEL, Tensors,
            folder::{self, Occasion},
        },
        loss_scale::LossScale,
        order::{Order, dropped_captions},
        released,
        schedule::Plan,
    },
};

/// The file of AdamW's moments.
const OPTIMIZER: &str = "optimizer.safetensors";
/// The file of the best epoch's weights.
const BEST: &str = "best.safetensors";

/// A fold's proxy after its training.
pub(super) struct FoldProxy {
    /// The model with the best epoch's weights.
    pub(super) model: Model,
    /// Identifies these weights.
    pub(super) fingerprint: String,
    /// How its training went.
    pub(super) summary: FoldProxySummary,
}

/// The training of a fold's proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldProxySummary {
    /// Records trained on.
    pub train: usize,
    /// Records set aside.
    pub aside: usize,
    /// The loss on the records set aside, after each epoch.
    pub losses: Vec<f64>,
    /// The epoch with the lowest loss, counted from 0.
    pub best: usize,
}

/// The state of a checkpoint other than its tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    optimizer_steps: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    summary: FoldProxySummary,
    config: String,
    data: String,
    /// The captions of the fold's bank; empty in a run of an earlier version.
    #[serde(default)]
    bank: Vec<String>,
}

/// The training of one fold's proxy in progress.
struct Run<'a> {
    cross_fit: &'a CrossFit<'a>,
    fold: usize,
    folder: PathBuf,
    plan: Plan,
    train: EncodedCorpus,
    aside: EncodedCorpus,
    model: Model,
    best: Tensors,
    summary: FoldProxySummary,
    data: String,
    step: u64,
}

/// Trains the proxy of `fold`, or resumes its training.
///
/// # Errors
/// If a checkpoint does not fit, the loss is not finite, a file cannot be written, or the user interrupts (after a
/// checkpoint has been written).
pub(super) fn train(
    cross_fit: &CrossFit<'_>,
    fold: usize,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<FoldProxy> {
    let training = cross_fit.folds.training(fold, cross_fit.config.training.batch)?;
    let mut run = Run::new(cross_fit, fold, &training)?;
    let total = run.plan.updates();
    if let Some(saved) = folder::newest(&run.folder)? {
        interrupt.while_reading(AS_IT_WAS, || run.restore(&saved))?;
    }
    let mut order = Order::new(cross_fit.config, run.train.len(), "fold's training", 0)?;
    while run.step < total && !run.stops_early() {
        let rates = run.plan.rates(run.step);
        let batches = run
            .plan
            .iterations(run.step)
            .map(|iteration| {
                let indices = order.batch(iteration)?;
                let drop = dropped_captions(cross_fit.config, iteration, indices.len());
                Ok((run.batch(&run.train, &indices, drop)?, iteration))
            })
            .collect::<Result<Vec<_>>>()?;
        run.model.plain_step(batches, rates, run.step)?;
        progress.counted(&format!("training the proxy of fold {fold}"), run.step + 1, total);
        let ends_epoch = run.plan.ends_epoch(run.step);
        run.step += 1;
        let stops = interrupt.is_raised();
        if ends_epoch {
            run.validate()?;
        }
        if ends_epoch || stops {
            run.save(!ends_epoch)?;
        }
        if stops && (run.step < total && !run.stops_early()) {
            return Err(Error::Interrupted {
                saved: format!(
                    "step {} of {total} of the proxy of fold {fold} is saved; continue with `train --out {} --resume`",
                    run.step,
                    cross_fit.directory.path().display()
                ),
            });
        }
    }
    run.finish()
}

/// The training of a fold's proxy.
///
/// # Errors
/// If there is none, or it is damaged.
pub(super) fn summary(folder: &Path) -> Result<FoldProxySummary> {
    Ok(folder::open::<State>(&newest(folder)?)?.state.summary)
}

/// The newest checkpoint of a fold.
fn newest(folder: &Path) -> Result<PathBuf> {
    let newest = if folder.is_dir() { folder::newest(folder)? } else { None };
    newest.ok_or_else(|| Error::input(folder, format!("{}: the fold's proxy is missing", folder.display())))
}

/// Loads a fold's proxy with the best epoch's weights, and the captions of its bank.
///
/// # Errors
/// If there is none, it is damaged, or it does not match the configuration.
pub(super) fn load(
    folder: &Path,
    config: &Config,
    encoders: &Encoders,
    device: Option<&Device>,
) -> Result<(Model, Vec<String>)> {
    let path = newest(folder)?;
    let opened = folder::open::<State>(&path)?;
    let (vocabulary, code_channels, text_channels) = encoders.sizes();
    let mut model = Model::uninitialized(config, [vocabulary, code_channels, text_channels])?;
    checkpoint::restore_weights(&path, &opened.tensors(BEST)?, &mut model.parameters)?;
    if let Some(device) = device {
        model.move_to(device, config.compute)?;
        let quantizer = encoders.tokenizer.quantizer();
        model.reader = Some(CodeReader::new(quantizer, device, largest_batch(config))?);
    }
    Ok((model, opened.state.bank))
}

impl<'a> Run<'a> {
    fn new(cross_fit: &'a CrossFit<'a>, fold: usize, Training { train, aside }: &Training) -> Result<Self> {
        let (tokenizer, text) = (cross_fit.data.tokenizer.as_ref(), cross_fit.data.text.as_ref());
        let quantizer = tokenizer.quantizer();
        let sizes = [quantizer.vocabulary(), quantizer.channels(), text.channels()];
        let mut model = Model::new(cross_fit.config, sizes)?;
        let folder = cross_fit.folder(fold);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        // Left behind by a killed process.
        remove_leftovers(&folder)?;
        folder::tidy(&folder, Some(1))?;
        // A run that resumes does not need the file of initial weights.
        let initial = cross_fit.config.networks.initial_weights.as_ref();
        if let Some(path) = initial.filter(|_| folder::newest(&folder).is_ok_and(|newest| newest.is_none())) {
            released::load(path, released::PROXY, &mut model.parameters)?;
        }
        if let Some(device) = cross_fit.device {
            model.move_to(device, cross_fit.config.compute)?;
            model.reader = Some(CodeReader::new(quantizer, device, largest_batch(cross_fit.config))?);
        }
        let corpus = &cross_fit.data.train;
        let (train, aside) = (corpus.part(train, Vec::new()), corpus.part(aside, Vec::new()));
        let mut settings = cross_fit.config.clone();
        settings.training.epochs = settings.crossfit.epochs;
        let plan = Plan::new(&settings, train.len(), train.len())?;
        let summary =
            FoldProxySummary { train: train.len(), aside: aside.len(), losses: Vec::new(), best: 0 };
        let data = sha256(format!("{}+{}", train.fingerprint(), aside.fingerprint()).as_bytes());
        let best = Tensors::new();
        Ok(Self { cross_fit, fold, folder, plan, train, aside, model, best, summary, data, step: 0 })
    }

    fn batch(
        &self,
        from: &EncodedCorpus,
        indices: &[usize],
        drop: impl Fn(usize, &str) -> bool,
    ) -> Result<Batch> {
        let (tokenizer, text) = (self.cross_fit.data.tokenizer.as_ref(), self.cross_fit.data.text.as_ref());
        let batch = from.batch(indices, drop, tokenizer, text)?;
        // A device computes the input itself, so there is less to upload.
        if self.model.reader.is_some() { Ok(batch) } else { batch.with_input(tokenizer.quantizer()) }
    }

    /// Whether the loss has not decreased for as many epochs as configured.
    fn stops_early(&self) -> bool {
        let FoldProxySummary { losses, best, .. } = &self.summary;
        !losses.is_empty() && (losses.len() - 1 - best) as u64 >= self.cross_fit.config.crossfit.patience
    }

    /// Measures the loss on the records set aside and keeps the weights if it is the lowest.
    fn validate(&mut self) -> Result<()> {
        let (count, size) = (self.aside.len(), self.cross_fit.config.training.batch);
        let batches = (0..count).step_by(size).map(|start| {
            let indices: Vec<usize> = (start..(start + size).min(count)).collect();
            self.batch(&self.aside, &indices, |_, _| false)
        });
        let loss = self.model.measure(batches)?.loss;
        let FoldProxySummary { losses, best, .. } = &mut self.summary;
        if !loss.is_finite() {
            return Err(Error::Diverged(format!(
                "the loss of the proxy of fold {} on the records set aside is {loss} after epoch {}; lower tlr or tclip",
                self.fold,
                losses.len() + 1
            )));
        }
        losses.push(loss);
        if losses.len() == 1 || loss < losses[*best] {
            *best = losses.len() - 1;
            self.best = checkpoint::weights(&self.model.parameters)?;
        }
        Ok(())
    }

    fn save(&self, interrupted: bool) -> Result<()> {
        let state = State {
            step: self.step,
            optimizer_steps: self.model.optimizer.steps(),
            loss_scale: self.model.optimizer.loss_scale(),
            summary: self.summary.clone(),
            config: self.cross_fit.config.fingerprint(),
            data: self.data.clone(),
            bank: self.cross_fit.bank(self.fold)?.captions().to_vec(),
        };
        let weights = checkpoint::weights(&self.model.parameters)?;
        let moments = checkpoint::moments("model", &self.model.parameters, &self.model.optimizer)?;
        let mut files = vec![(MODEL, &weights), (OPTIMIZER, &moments)];
        if !self.best.is_empty() {
            files.push((BEST, &self.best));
        }
        let occasion = Occasion { interrupted, keep: Some(1), run: None };
        folder::write(&self.folder, self.step, occasion, files, &state).map(drop)
    }

    fn restore(&mut self, path: &Path) -> Result<()> {
        let opened = folder::open::<State>(path)?;
        let state = &opened.state;
        let fingerprint = self.cross_fit.config.fingerprint();
        checkpoint::expect_fingerprint(path, "configuration", &state.config, &fingerprint)?;
        checkpoint::expect_fingerprint(path, "data set", &state.data, &self.data)?;
        checkpoint::restore_weights(path, &opened.tensors(MODEL)?, &mut self.model.parameters)?;
        let moments = opened.tensors(OPTIMIZER)?;
        checkpoint::restore_moments(
            path,
            "model",
            &moments,
            &self.model.parameters,
            &mut self.model.optimizer,
        )?;
        self.model.optimizer.set_steps(state.optimizer_steps);
        self.model.optimizer.set_loss_scale(state.loss_scale);
        if opened.has(BEST) {
            self.best = opened.tensors(BEST)?;
        }
        (self.step, self.summary) = (state.step, state.summary.clone());
        Ok(())
    }

    fn finish(mut self) -> Result<FoldProxy> {
        checkpoint::restore_weights(&self.folder, &self.best, &mut self.model.parameters)?;
        let mut bytes = Vec::new();
        for (name, tensor) in &self.best {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(bytemuck::cast_slice::<f32, u8>(tensor.as_slice::<f32>()?));
        }
        Ok(FoldProxy { fingerprint: sha256(&bytes), model: self.model, summary: self.summary })
    }
}
