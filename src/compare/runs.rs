//! The runs of a comparison: their configurations, folders and times.

use std::{path::Path, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error::{Error, Result},
    files::sealed::{read_sealed, write_sealed},
    training::run_directory::{Existing, RunDirectory},
};

/// A configuration with overridden keys.
pub(super) fn with_keys(config: &Config, keys: &[String]) -> Result<Config> {
    Config::parse("compare", &config.to_json().to_string(), keys)
}

/// A path as the value of a key.
pub(super) fn path_key(key: &str, path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::argument(format!("{} is not UTF-8", path.display())))?;
    Ok(format!("{key}={}", serde_json::Value::from(text)))
}

/// Opens a run, or creates it.
pub(super) fn run_directory(path: &Path, config: &Config) -> Result<RunDirectory> {
    if !RunDirectory::is_run(path) {
        return RunDirectory::create(path, config, Existing::Refuse);
    }
    let (run, saved) = RunDirectory::open(path)?;
    match saved.first_difference(config) {
        None => Ok(run),
        Some((key, there, here)) => Err(Error::mismatch(
            path,
            format!(
                "{} was started with {key} = {there}, not {here}; remove it, or choose another --out",
                path.display()
            ),
        )),
    }
}

/// Seconds over all starts, as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seconds {
    seconds: f64,
}

/// The seconds stored in a file; `None` with a warning if it is missing or damaged.
pub(super) fn seconds(path: &Path) -> Option<f64> {
    if !path.exists() {
        return None;
    }
    let read = read_sealed(path, "the time of earlier starts is not counted");
    read.map(|Seconds { seconds }| seconds).inspect_err(|error| tracing::warn!("{error}")).ok()
}

/// Runs `work` and adds its time to that stored for earlier starts, even if it fails. Returns the result and the sum.
pub(super) fn timed<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = seconds(path).unwrap_or(0.0);
    let start = Instant::now();
    let done = work();
    let seconds = before + start.elapsed().as_secs_f64();
    write_sealed(path, &Seconds { seconds })?;
    Ok((done?, seconds))
}
