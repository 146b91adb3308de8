//! `train`: trains a rater, jointly with a proxy or on the measurements of cross-fitted proxies.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::watch::Watch,
    config::Config,
    data::corpus::CorpusFormat,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    rater::trainer,
    training::run_directory::{Existing, RunDirectory},
};

/// The arguments of `train`.
#[derive(Clone, Debug, Default, Args)]
pub struct TrainArguments {
    /// Configuration in JSON; docs/config.md lists its keys.
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// The training set, such as the output of `select`; overrides the configuration. docs/formats.md lists the supported
    /// formats.
    #[arg(long, value_name = "CORPUS")]
    pub data: Option<PathBuf>,
    /// The validation set; overrides the configuration. `train` uses one only under the rules `excess`, `alignment` and
    /// `loss`.
    #[arg(long, value_name = "CORPUS")]
    pub validation: Option<PathBuf>,
    /// Read both as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<CorpusFormat>,
    /// Override a key of the configuration, with dots for nested keys; may be repeated: --set ep=3 --set columns.id=key
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Device of the networks: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Gradient checkpointing: keep only each block's input and recompute the block in the backward pass.
    #[arg(long)]
    pub recompute: bool,
    /// Directory of the run [default: the configuration's local_out_dir_path].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in DIR (or in --out) from its newest checkpoint.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "overwrite")]
    pub resume: Option<Option<PathBuf>>,
    /// Replace an existing run.
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the run cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: TrainArguments, interrupt: &Interrupt) -> Result<()> {
    let (run, config) = prepare(&arguments)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let command_line: Vec<String> = std::env::args().collect();
    let mut watch = Watch::new(run.path().to_path_buf());
    let summary = trainer::train(&config, &run, &command_line, interrupt, &mut watch)?;
    super::say(&summary.to_string())
}

/// Creates or reopens the run directory and returns its configuration.
///
/// # Errors
/// If the configuration cannot be used, or does not match the run to resume.
pub(super) fn prepare(arguments: &TrainArguments) -> Result<(RunDirectory, Config)> {
    let mut sets = arguments.set.clone();
    let tables =
        [("data_args.train_csv_path", &arguments.data), ("data_args.val_csv_path", &arguments.validation)];
    for (key, path) in tables {
        if let Some(path) = path {
            sets.push(format!("{key}={}", quoted(path)?));
        }
    }
    sets.extend(arguments.format.map(|format| format!("data_format={format}")));
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    sets.extend(arguments.recompute.then(|| "recompute=true".to_owned()));
    let given = arguments.config.as_deref().map(|path| Config::load(path, &sets)).transpose()?;
    let Some(resume) = &arguments.resume else {
        let config = given.ok_or_else(|| Error::argument("a run needs --config FILE.json"))?;
        config.data.train_csv()?;
        let path = directory(arguments, Some(&config))?;
        // The same command resumes an interrupted run.
        if !arguments.overwrite && RunDirectory::was_stopped(&path)? {
            let (run, saved) = RunDirectory::open(&path)?;
            refuse_change(&path, &saved, &config)?;
            tracing::info!("resuming the interrupted run in {}", path.display());
            return Ok((run, config));
        }
        let existing = if arguments.overwrite { Existing::Overwrite } else { Existing::Refuse };
        return Ok((RunDirectory::create(&path, &config, existing)?, config));
    };
    let path = match resume {
        Some(path) => path.clone(),
        None => directory(arguments, given.as_ref())?,
    };
    // A run that was killed before it wrote its configuration restarts.
    if let Some(config) = &given
        && !RunDirectory::is_run(&path)
    {
        config.data.train_csv()?;
        return Ok((RunDirectory::create(&path, config, Existing::Refuse)?, config.clone()));
    }
    let (run, saved) = RunDirectory::open(&path)?;
    let config = match given {
        Some(config) => config,
        None if sets.is_empty() => return Ok((run, saved)),
        None => Config::parse(&path.display().to_string(), &saved.to_json().to_string(), &sets)?,
    };
    refuse_change(&path, &saved, &config)?;
    Ok((run, config))
}

/// A path as a value of `--set`, quoted.
pub(super) fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::argument(format!("{} is not UTF-8", path.display())))?;
    serde_json::to_string(text).map_err(|error| Error::invalid(error.to_string()))
}

fn directory(arguments: &TrainArguments, config: Option<&Config>) -> Result<PathBuf> {
    let configured = config.and_then(|config| config.out.clone());
    arguments.out.clone().or(configured).ok_or_else(|| {
        Error::argument(
            "no directory for the run; pass --out DIR, or set local_out_dir_path in the configuration",
        )
    })
}

/// A resumed run equals an uninterrupted one, so no key that affects results may change.
fn refuse_change(path: &Path, saved: &Config, requested: &Config) -> Result<()> {
    match saved.first_difference(requested) {
        None => Ok(()),
        Some((key, there, here)) => Err(Error::mismatch(
            path,
            format!(
                "{} was started with {key} = {there}, but {here} is requested; keep the key as it is, or start a new \
                 run with another --out",
                path.display()
            ),
        )),
    }
}
