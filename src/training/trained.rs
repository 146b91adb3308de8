//! A trained run, as later commands open it: configuration, encoders and checkpoints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    error::{Error, Result},
    training::{
        checkpoint::{Checkpoint, folder},
        run_directory::{CHECKPOINTS, RunDirectory},
    },
};

/// A user's path to a run or a checkpoint, resolved.
pub(crate) struct Named {
    /// The run that the checkpoint belongs to.
    pub(crate) run: PathBuf,
    /// The checkpoint, if the path is one.
    pub(crate) checkpoint: Option<PathBuf>,
}

impl Named {
    /// Resolves a run directory, or one checkpoint in it.
    ///
    /// # Errors
    /// If the path is neither.
    pub(crate) fn new(given: &Path) -> Result<Self> {
        if RunDirectory::is_run(given) {
            if RunDirectory::was_stopped(given)? {
                tracing::warn!("{} is not complete: using its newest checkpoint", given.display());
            }
            return Ok(Self { run: given.to_path_buf(), checkpoint: None });
        }
        let refuse =
            |message: &str| Error::Checkpoint { path: given.to_path_buf(), message: message.to_owned() };
        let about = fs::metadata(given).map_err(Error::io("read", given))?;
        if !about.is_dir() {
            return Err(refuse(
                "is a file; pass a run directory, or one of the folders in its `checkpoints`",
            ));
        }
        // A path such as `.` has no parents until it is resolved.
        let resolved = fs::canonicalize(given).map_err(Error::io("read", given))?;
        let run = [given, &resolved].into_iter().find_map(|path| {
            let run = path.parent().and_then(Path::parent)?;
            // Two levels up from `checkpoint` is the empty path, which is the current directory.
            let run = if run.as_os_str().is_empty() { Path::new(".") } else { run };
            RunDirectory::is_run(run).then(|| run.to_path_buf())
        });
        match run {
            Some(run) => Ok(Self { run, checkpoint: Some(given.to_path_buf()) }),
            None => {
                Err(refuse("not a run of `train` or `fit`, nor one of the folders in a run's `checkpoints`"))
            }
        }
    }

    /// The checkpoint of the path, or the newest of the run.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        match &self.checkpoint {
            Some(folder) => Ok(folder.clone()),
            None => Checkpoint::newest(&checkpoints(&self.run))?.ok_or_else(|| no_checkpoint(&self.run)),
        }
    }
}

/// All checkpoints of a run, oldest first. One written on an interrupt is used only if there is no other, so that a
/// run that was interrupted and resumed has the same ones as one that was not.
pub(crate) fn every_checkpoint(run: &Path) -> Result<Vec<PathBuf>> {
    let path = checkpoints(run);
    let mut found = Vec::new();
    if path.exists() {
        found = folder::list(&path)?;
        if found.is_empty() {
            found = folder::interrupted(&path)?;
        }
    }
    if found.is_empty() {
        Err(no_checkpoint(run))
    } else {
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }
}

fn checkpoints(run: &Path) -> PathBuf {
    run.join(CHECKPOINTS)
}

fn no_checkpoint(run: &Path) -> Error {
    Error::input(run, format!("{}: contains no checkpoint yet; train longer", run.display()))
}

/// The configuration of a run with `key=value` overrides.
///
/// # Errors
/// If there is no run or an override is not accepted.
pub(crate) fn configuration(run: &Path, sets: &[String]) -> Result<Config> {
    let stored = RunDirectory::config_of(run)?;
    Config::parse(&run.display().to_string(), &stored.to_json().to_string(), sets)
}
