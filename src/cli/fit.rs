//! `fit`: trains a text-to-image model on a data set or a subset of it.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{
        train::{self, TrainArguments, quoted},
        watch::Watch,
    },
    error::Result,
    generator::fit,
    interrupt::Interrupt,
};

/// The arguments of `fit`.
#[derive(Clone, Debug, Args)]
pub struct FitArguments {
    #[command(flatten)]
    run: TrainArguments,
    /// Initial weights, in the released layout; overrides the configuration.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the run cannot be written; [`Interrupted`](crate::Error::Interrupted) if the user
/// interrupts.
pub(super) fn run(arguments: FitArguments, interrupt: &Interrupt) -> Result<()> {
    let FitArguments { mut run, weights } = arguments;
    if let Some(path) = weights {
        run.set.push(format!("pretrained_ckpt={}", quoted(&path)?));
    }
    let (directory, config) = train::prepare(&run)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let command_line: Vec<String> = std::env::args().collect();
    let mut watch = Watch::new(directory.path().to_path_buf());
    let summary = fit::fit(&config, &directory, &command_line, interrupt, &mut watch)?;
    super::say(&summary.to_string())
}
