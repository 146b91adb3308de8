//! The checkpoints of `fit`: `model.safetensors` with the weights under their released names, `optimizer.safetensors`
//! with AdamW's moments, `state.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Model, Run};
use crate::{
    config::Config,
    error::{Error, Result},
    training::{
        checkpoint::{
            Checkpoint, MODEL, Tensors, expect_fingerprint, folder, moments, restore_moments,
            restore_weights, weights,
        },
        loss_scale::LossScale,
        run_directory::RunFiles,
    },
};

/// The file of AdamW's moments.
const OPTIMIZER: &str = "optimizer.safetensors";

/// The state of a fit's checkpoint other than its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FitState {
    /// Updates done, which is also the index of the next one.
    step: u64,
    epoch: u64,
    seed: u64,
    optimizer_steps: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    config: String,
    image_tokenizer: String,
    text_encoder: String,
    data: String,
    version: String,
    git_hash: String,
}

impl Run<'_> {
    /// Writes a checkpoint before update `step`. `interrupted`: it is written only because the user stopped the run.
    pub(super) fn save(
        &self,
        model: &Model,
        step: u64,
        interrupted: bool,
        run: &RunFiles,
    ) -> Result<PathBuf> {
        let state = FitState {
            step,
            epoch: self.plan.epoch(step.min(self.plan.updates().saturating_sub(1))),
            seed: self.config.seed,
            optimizer_steps: model.optimizer.steps(),
            loss_scale: model.optimizer.loss_scale(),
            config: self.config.fingerprint(),
            image_tokenizer: self.data.tokenizer.fingerprint(),
            text_encoder: self.data.text.fingerprint(),
            data: self.data.fingerprint.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_hash: env!("ALCHEMIST_GIT_HASH").to_owned(),
        };
        let (own, moments) =
            (weights(&model.parameters)?, moments("model", &model.parameters, &model.optimizer)?);
        let files = [(MODEL, &own), (OPTIMIZER, &moments)];
        let occasion = folder::Occasion { interrupted, keep: self.config.keep_checkpoints, run: Some(run) };
        folder::write(&self.directory.checkpoints(), step, occasion, files, &state)
    }

    /// Refuses to resume if the run's other files are damaged; returns what the checkpoint records of them. Removes
    /// checkpoints that a killed process left behind.
    pub(super) fn expect_whole(&self, path: &Path) -> Result<RunFiles> {
        let files = open(path)?.run_files()?.clone();
        self.directory.expect_whole(&files)?;
        folder::tidy(&self.directory.checkpoints(), self.config.keep_checkpoints)?;
        Ok(files)
    }

    /// Restores a checkpoint and returns its step.
    pub(super) fn restore(&self, path: &Path, model: &mut Model) -> Result<u64> {
        let opened = open(path)?;
        let state = &opened.state;
        expect_fingerprint(path, "configuration", &state.config, &self.config.fingerprint())?;
        let (tokenizer, text) = (self.data.tokenizer.fingerprint(), self.data.text.fingerprint());
        expect_fingerprint(path, "image tokenizer", &state.image_tokenizer, &tokenizer)?;
        expect_fingerprint(path, "text encoder", &state.text_encoder, &text)?;
        expect_fingerprint(path, "data set", &state.data, &self.data.fingerprint)?;
        restore_weights(path, &opened.tensors(MODEL)?, &mut model.parameters)?;
        restore_moments(path, "model", &opened.tensors(OPTIMIZER)?, &model.parameters, &mut model.optimizer)?;
        model.optimizer.set_steps(state.optimizer_steps);
        model.optimizer.set_loss_scale(state.loss_scale);
        Ok(state.step)
    }
}

/// The weights of a fit's checkpoint, and the epoch of its next update.
///
/// # Errors
/// If it is damaged.
pub fn weights_of(path: &Path) -> Result<(Tensors, u64)> {
    let opened = open(path)?;
    Ok((opened.tensors(MODEL)?, opened.state.epoch))
}

fn open(path: &Path) -> Result<folder::Opened<'_, FitState>> {
    if path.join("rater.safetensors").exists() {
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            message: "contains a rater and its proxy, not a model trained by `fit`; pass a run of `fit`"
                .to_owned(),
        });
    }
    folder::open(path)
}

/// Loads the model of the checkpoint `named`, or of the newest one in `checkpoints`, and returns it with the
/// checkpoint's path. `sizes` are the number of codes in the vocabulary, the channels of a code and those of the text.
///
/// # Errors
/// If there is no checkpoint, it is damaged, or its weights do not fit the configuration.
pub fn load_model(
    config: &Config,
    checkpoints: &Path,
    named: Option<&Path>,
    sizes: [usize; 3],
) -> Result<(Model, PathBuf)> {
    let path = match named {
        Some(path) => path.to_path_buf(),
        None => Checkpoint::newest(checkpoints)?.ok_or_else(|| {
            Error::input(
                checkpoints,
                format!("{}: contains no checkpoint yet; train longer", checkpoints.display()),
            )
        })?,
    };
    let mut model = Model::uninitialized(config, sizes)?;
    restore_weights(&path, &open(&path)?.tensors(MODEL)?, &mut model.parameters)?;
    Ok((model, path))
}
