//! `export`: writes a run's networks as a checkpoint for the released code.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    config::Config,
    error::Result,
    generator::fit,
    interrupt::Interrupt,
    jobs::{Claim, output::Output},
    training::{
        checkpoint::{self, Checkpoint},
        released, trained,
    },
};

/// The arguments of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArguments {
    /// A run of `train` or `fit`, for its newest checkpoint, or one of the folders in its `checkpoints`.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The file to write, such as `ar-ckpt-ep3.pth`.
    #[arg(long, value_name = "FILE.pth")]
    out: PathBuf,
    /// Replace an existing output of this command.
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If the checkpoint cannot be read or the file cannot be written; [`Error::Interrupted`](crate::Error::Interrupted) if
/// the user interrupts.
pub(super) fn run(arguments: &ExportArguments, interrupt: &Interrupt) -> Result<()> {
    let named = trained::Named::new(&arguments.checkpoint)?;
    let config = trained::configuration(&named.run, &[])?;
    let folder = named.folder()?;
    let inputs = [named.run.clone(), folder.clone()];
    let claim = Claim { command: "export", inputs: &inputs, overwrite: arguments.overwrite };
    let output = Output::fresh(&claim, &arguments.out, &[])?;
    let epoch = output.write(|output| write(&output.staged(), &config, &folder, interrupt))?;
    super::say(&format!("wrote {} from {} (epoch {epoch})", arguments.out.display(), folder.display()))
}

/// Writes the networks of a checkpoint; returns its epoch.
fn write(out: &Path, config: &Config, folder: &Path, interrupt: &Interrupt) -> Result<u64> {
    const NOTHING_WRITTEN: &str = "nothing was written";
    let epoch = if checkpoint::is_fit(folder) {
        let (model, epoch) = interrupt.while_reading(NOTHING_WRITTEN, || fit::weights_of(folder))?;
        released::export(out, config, epoch, &[(released::PROXY, &model)])?;
        epoch
    } else {
        let checkpoint = interrupt.while_reading(NOTHING_WRITTEN, || Checkpoint::load(folder))?;
        let networks = [(released::PROXY, &checkpoint.proxy), (released::RATER, &checkpoint.rater)];
        // Under a rule with cross-fitted proxies, the run's own proxy is not trained.
        let untrained = usize::from(config.training.rule.rule.needs().caption_gain);
        released::export(out, config, checkpoint.state.epoch, &networks[untrained..])?;
        checkpoint.state.epoch
    };
    Ok(epoch)
}
