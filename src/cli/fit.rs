//! `fit`: a text-to-image model on a data set or a subset of it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::{
        train::{self, TrainArguments},
        watch::Watch,
    },
    error::{Error, Result},
    interrupt::Interrupt,
    train::fit,
};

/// The arguments of `fit`.
#[derive(Clone, Debug, Args)]
pub struct FitArguments {
    #[command(flatten)]
    run: TrainArguments,
    /// The training set: a CSV as the configuration names its columns, such as what `select` writes; in place of the
    /// configuration's.
    #[arg(long, value_name = "FILE.csv")]
    data: Option<PathBuf>,
    /// The validation set, in place of the configuration's.
    #[arg(long, value_name = "FILE.csv")]
    validation: Option<PathBuf>,
    /// Weights to start from, in the released layout; in place of the configuration's.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being fitted; [`Error::Interrupted`] when the user stopped it.
pub fn run(arguments: FitArguments, interrupt: &Interrupt) -> Result<()> {
    let FitArguments { mut run, data, validation, weights } = arguments;
    let given = [
        ("data_args.train_csv_path", data),
        ("data_args.val_csv_path", validation),
        ("pretrained_ckpt", weights),
    ];
    for (key, path) in given {
        if let Some(path) = path {
            run.set.push(format!("{key}={}", quoted(&path)?));
        }
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

/// A path as a value of `--set`, whatever is in it.
pub(super) fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
    serde_json::to_string(text).map_err(|error| Error::invalid(error.to_string()))
}
