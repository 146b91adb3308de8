//! Writing and restoring a run's checkpoints.

use std::path::Path;

use super::Run;
use crate::{
    error::{Error, Result},
    rater::{
        bilevel::{Bilevel, Reference},
        samples::SampleRecords,
    },
    training::{
        checkpoint::{self, Checkpoint, CheckpointState, expect_fingerprint, folder},
        run_directory::RunFiles,
    },
};

impl Run<'_> {
    /// Writes a checkpoint before update `step`. `interrupted`: it is written only because the user stopped the run.
    pub(super) fn save(
        &self,
        bilevel: &Bilevel,
        samples: &SampleRecords,
        step: u64,
        interrupted: bool,
        run: &RunFiles,
    ) -> Result<()> {
        let next = step.min(self.plan.updates().saturating_sub(1));
        let mut optimizer =
            checkpoint::moments("proxy", &bilevel.proxy_parameters, &bilevel.proxy_optimizer)?;
        optimizer.extend(checkpoint::moments("rater", &bilevel.rater_parameters, &bilevel.rater_optimizer)?);
        let reference = bilevel.reference.as_ref();
        if let Some(Reference { parameters, optimizer: reference }) = reference {
            optimizer.extend(checkpoint::moments("reference", parameters, reference)?);
        }
        let state = CheckpointState {
            step,
            rater_only_steps: step.saturating_sub(self.proxy_updates()),
            epoch: self.plan.epoch(next),
            upper_level_weight: self.plan.upper_level_weight(next),
            seed: self.config.seed,
            proxy_optimizer_steps: bilevel.proxy_optimizer.steps(),
            rater_optimizer_steps: bilevel.rater_optimizer.steps(),
            reference_optimizer_steps: reference.map(|reference| reference.optimizer.steps()),
            proxy_loss_scale: bilevel.proxy_optimizer.loss_scale(),
            rater_loss_scale: bilevel.rater_optimizer.loss_scale(),
            reference_loss_scale: reference.and_then(|reference| reference.optimizer.loss_scale()),
            config: self.config.fingerprint(),
            image_tokenizer: self.data.tokenizer.fingerprint(),
            text_encoder: self.data.text.fingerprint(),
            data: self.data.fingerprint.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_hash: env!("ALCHEMIST_GIT_HASH").to_owned(),
        };
        let checkpoint = Checkpoint {
            proxy: checkpoint::weights(&bilevel.proxy_parameters)?,
            rater: checkpoint::weights(&bilevel.rater_parameters)?,
            optimizer,
            reference: reference.map(|reference| checkpoint::weights(&reference.parameters)).transpose()?,
            samples: samples.tensors()?,
            state,
        };
        let occasion = folder::Occasion { interrupted, keep: self.config.keep_checkpoints, run: Some(run) };
        checkpoint.save_on(&self.directory.checkpoints(), occasion)?;
        Ok(())
    }

    /// Refuses to resume if the run's other files are damaged; returns what the checkpoint records of them. Removes
    /// checkpoints that a killed process left behind.
    pub(super) fn expect_whole(&self, folder: &Path) -> Result<RunFiles> {
        let files = Checkpoint::run_files(folder)?;
        self.directory.expect_whole(&files)?;
        folder::tidy(&self.directory.checkpoints(), self.config.keep_checkpoints)?;
        Ok(files)
    }

    /// Restores a checkpoint and returns its step.
    pub(super) fn restore(
        &self,
        folder: &Path,
        bilevel: &mut Bilevel,
        samples: &mut SampleRecords,
    ) -> Result<u64> {
        let saved = Checkpoint::load(folder)?;
        expect_fingerprint(folder, "configuration", &saved.state.config, &self.config.fingerprint())?;
        expect_fingerprint(
            folder,
            "image tokenizer",
            &saved.state.image_tokenizer,
            &self.data.tokenizer.fingerprint(),
        )?;
        expect_fingerprint(folder, "text encoder", &saved.state.text_encoder, &self.data.text.fingerprint())?;
        expect_fingerprint(folder, "data set", &saved.state.data, &self.data.fingerprint)?;
        checkpoint::restore_weights(folder, &saved.proxy, &mut bilevel.proxy_parameters)?;
        checkpoint::restore_weights(folder, &saved.rater, &mut bilevel.rater_parameters)?;
        let nets = [
            ("proxy", &bilevel.proxy_parameters, &mut bilevel.proxy_optimizer),
            ("rater", &bilevel.rater_parameters, &mut bilevel.rater_optimizer),
        ];
        for (net, parameters, optimizer) in nets {
            checkpoint::restore_moments(folder, net, &saved.optimizer, parameters, optimizer)?;
        }
        samples.restore(&saved.samples).map_err(|error| Error::Checkpoint {
            path: folder.to_path_buf(),
            message: format!("{error}; remove the folder to use an older one"),
        })?;
        self.restore_reference(folder, &saved, bilevel)?;
        bilevel.proxy_optimizer.set_steps(saved.state.proxy_optimizer_steps);
        bilevel.rater_optimizer.set_steps(saved.state.rater_optimizer_steps);
        bilevel.proxy_optimizer.set_loss_scale(saved.state.proxy_loss_scale);
        bilevel.rater_optimizer.set_loss_scale(saved.state.rater_loss_scale);
        Ok(saved.state.step)
    }

    /// Restores the reference proxy, if the rule needs one and the warm-up is over.
    fn restore_reference(&self, folder: &Path, saved: &Checkpoint, bilevel: &mut Bilevel) -> Result<()> {
        let state = &saved.state;
        let begun = state.step > 0 && !self.warms_up(state.step - 1);
        if !begun || !self.config.training.rule.rule.needs().reference {
            return Ok(());
        }
        let (Some(weights), Some(steps)) = (&saved.reference, state.reference_optimizer_steps) else {
            return Err(Error::Checkpoint {
                path: folder.to_path_buf(),
                message: format!(
                    "has no reference proxy, which the rule `{}` needs; remove the folder to use an older \
                     checkpoint, or start a new run",
                    self.config.training.rule.rule
                ),
            });
        };
        bilevel.begin_reference();
        if let Some(Reference { parameters, optimizer }) = &mut bilevel.reference {
            checkpoint::restore_weights(folder, weights, parameters)?;
            checkpoint::restore_moments(folder, "reference", &saved.optimizer, parameters, optimizer)?;
            optimizer.set_steps(steps);
            optimizer.set_loss_scale(state.reference_loss_scale);
        }
        Ok(())
    }
}
