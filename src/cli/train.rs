//! `train`: a rater beside a proxy, as a configuration says.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::watch::Watch,
    config::Config,
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
    /// The training set: a CSV as the configuration names its columns, such as what `select` writes; in place of the
    /// configuration's.
    #[arg(long, value_name = "FILE.csv")]
    pub data: Option<PathBuf>,
    /// The validation set, in place of the configuration's.
    #[arg(long, value_name = "FILE.csv")]
    pub validation: Option<PathBuf>,
    /// Sets a key on top of the file, nested ones with dots; as often as wanted: --set ep=3 --set columns.id=key
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where the networks are: cpu, cuda, cuda:N, emulated or auto; `devices` lists what there is.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Keep only each block's input and run the block again in the backward pass: less memory, more time.
    #[arg(long)]
    pub recompute: bool,
    /// Directory of the run; the configuration's local_out_dir_path unless given.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in DIR (or in --out) from its newest checkpoint.
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "overwrite")]
    pub resume: Option<Option<PathBuf>>,
    /// Discard the run that is in the directory.
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the run from starting or ending; [`Error::Interrupted`] when the user stopped it.
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

/// Makes or reopens the run directory and gives the configuration that holds.
///
/// # Errors
/// If the configuration cannot be used, or does not fit the run that is to be resumed.
pub(super) fn prepare(arguments: &TrainArguments) -> Result<(RunDirectory, Config)> {
    let mut sets = arguments.set.clone();
    let tables =
        [("data_args.train_csv_path", &arguments.data), ("data_args.val_csv_path", &arguments.validation)];
    for (key, path) in tables {
        if let Some(path) = path {
            sets.push(format!("{key}={}", quoted(path)?));
        }
    }
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    sets.extend(arguments.recompute.then(|| "recompute=true".to_owned()));
    let given = arguments.config.as_deref().map(|path| Config::load(path, &sets)).transpose()?;
    let Some(resume) = &arguments.resume else {
        let config = given.ok_or_else(|| Error::argument("a run needs --config FILE.json"))?;
        config.data.train_csv()?;
        let path = directory(arguments, Some(&config))?;
        // The same command given again resumes an interrupted run.
        if !arguments.overwrite && RunDirectory::was_stopped(&path)? {
            let (run, held) = RunDirectory::open(&path)?;
            refuse_change(&path, &held, &config)?;
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
    // A run that was killed before it wrote its configuration is begun again.
    if let Some(config) = &given
        && !RunDirectory::is_run(&path)
    {
        config.data.train_csv()?;
        return Ok((RunDirectory::create(&path, config, Existing::Refuse)?, config.clone()));
    }
    let (run, held) = RunDirectory::open(&path)?;
    let config = match given {
        Some(config) => config,
        None if sets.is_empty() => return Ok((run, held)),
        None => Config::parse(&path.display().to_string(), &held.to_json().to_string(), &sets)?,
    };
    refuse_change(&path, &held, &config)?;
    Ok((run, config))
}

/// A path as a value of `--set`, whatever is in it.
pub(super) fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::argument(format!("{} is not UTF-8", path.display())))?;
    serde_json::to_string(text).map_err(|error| Error::invalid(error.to_string()))
}

fn directory(arguments: &TrainArguments, config: Option<&Config>) -> Result<PathBuf> {
    let configured = config.and_then(|config| config.out.clone());
    arguments.out.clone().or(configured).ok_or_else(|| {
        Error::argument(
            "the run needs a directory: give --out DIR, or set local_out_dir_path in the configuration",
        )
    })
}

/// A resumed run gives what it would have given without the pause, so nothing that changes results may change.
fn refuse_change(path: &Path, held: &Config, wanted: &Config) -> Result<()> {
    match held.first_difference(wanted) {
        None => Ok(()),
        Some((key, there, here)) => Err(Error::mismatch(
            path,
            format!(
                "{} was started with {key} = {there}, but {here} is asked for; a run is resumed as it was started, so leave \
             the key as it is or start a new run with another --out",
                path.display()
            ),
        )),
    }
}
