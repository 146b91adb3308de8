//! `export`: a run's networks as a checkpoint that the released code loads.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    config::Config,
    error::Result,
    jobs::{Claim, output::Output},
    train::{fit, released, trained},
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
    /// Replace a file that this command wrote.
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If the checkpoint cannot be read or the file not written.
pub fn run(arguments: &ExportArguments) -> Result<()> {
    let named = trained::Named::new(&arguments.checkpoint);
    let config = trained::configuration(&named.run, &[])?;
    let folder = named.folder()?;
    let inputs = [named.run.clone(), folder.clone()];
    let claim = Claim { command: "export", inputs: &inputs, overwrite: arguments.overwrite };
    let output = Output::anew(&claim, &arguments.out, &[])?;
    let epoch = output.write(|output| write(&output.staged(), &config, &folder))?;
    super::say(&format!("{} holds {} (epoch {epoch})", arguments.out.display(), folder.display()))
}

/// Writes the networks of a checkpoint; gives its epoch.
fn write(out: &Path, config: &Config, folder: &Path) -> Result<u64> {
    let epoch = if fit::is_fit(folder) {
        let (model, epoch) = fit::weights_of(folder)?;
        released::export(out, config, epoch, &[(released::PROXY, &model)])?;
        epoch
    } else {
        let checkpoint = crate::train::checkpoint::Checkpoint::load(folder)?;
        let networks = [(released::PROXY, &checkpoint.proxy), (released::RATER, &checkpoint.rater)];
        released::export(out, config, checkpoint.state.epoch, &networks)?;
        checkpoint.state.epoch
    };
    Ok(epoch)
}
