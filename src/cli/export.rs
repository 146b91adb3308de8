//! `export`: a run's networks as a checkpoint that the released code loads.

use std::path::PathBuf;

use clap::Args;

use crate::{
    error::Result,
    interrupt::Interrupt,
    train::{checkpoint::Checkpoint, fit, released, trained},
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
}

/// Runs the command.
///
/// # Errors
/// If the checkpoint cannot be read, the file not written, or the user interrupts.
pub fn run(arguments: &ExportArguments, interrupt: &Interrupt) -> Result<()> {
    const NOTHING_WRITTEN: &str = "nothing was written";
    let named = trained::Named::new(&arguments.checkpoint)?;
    let config = trained::configuration(&named.run, &[])?;
    let folder = named.folder()?;
    let epoch = if fit::is_fit(&folder) {
        let (model, epoch) = interrupt.while_reading(NOTHING_WRITTEN, || fit::weights_of(&folder))?;
        released::export(&arguments.out, &config, epoch, &[(released::PROXY, &model)])?;
        epoch
    } else {
        let checkpoint = interrupt.while_reading(NOTHING_WRITTEN, || Checkpoint::load(&folder))?;
        let networks = [(released::PROXY, &checkpoint.proxy), (released::RATER, &checkpoint.rater)];
        released::export(&arguments.out, &config, checkpoint.state.epoch, &networks)?;
        checkpoint.state.epoch
    };
    super::say(&format!("{} holds {} (epoch {epoch})", arguments.out.display(), folder.display()))
}
