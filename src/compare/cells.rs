//! One model of the comparison: fitted once for its content, whatever the name under which it is asked for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    drawn::Drawn,
    result::CellResult,
    runs::{path_key, run_directory, timed, with_keys},
    task::Task,
};
use crate::{
    config::Config,
    error::{Error, Result},
    files::{
        digest_of_file, remove_folder,
        sealed::{Unsealed, unseal, write_sealed},
        sha256,
    },
    generator::fit::fit,
    interrupt::Interrupt,
    training::run_directory::{METRICS, metrics},
};

/// Fits models and remembers what they came to.
pub(super) struct Fits<'a> {
    /// What all of them share.
    pub(super) config: &'a Config,
    /// Where runs and results lie.
    pub(super) folder: PathBuf,
    /// What they are measured on.
    pub(super) held_out: &'a Path,
    pub(super) cache: &'a Path,
    /// Keep each model's last checkpoint.
    pub(super) keep_models: bool,
    /// What they draw, if anything.
    pub(super) drawn: Option<Drawn>,
}

impl Fits<'_> {
    /// The model of a training set, a seed and a number of epochs.
    pub(super) fn result(
        &self,
        table: &Path,
        seed: u64,
        epochs: u64,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<CellResult> {
        let config = with_keys(
            self.config,
            &[
                path_key("data_args.train_csv_path", table)?,
                path_key("data_args.val_csv_path", self.held_out)?,
                path_key("token_cache", self.cache)?,
                format!("seed={seed}"),
                format!("ep={epochs}"),
                "keep_checkpoints=1".to_owned(),
            ],
        )?;
        let digest = |path: &Path| digest_of_file(path).map_err(Error::io("read", path));
        // A model that draws nothing is known by what it was known by before models drew.
        let drawn = self.drawn.as_ref().map(Drawn::identity).unwrap_or_default();
        let (trained, held_out) = (digest(table)?, digest(self.held_out)?);
        let told = [config.fingerprint().as_bytes(), &trained, &held_out, drawn.as_bytes()].concat();
        let key = sha256(&told)[..16].to_owned();
        let path = self.folder.join(format!("{key}.json"));
        if path.exists() {
            return read_result(&path);
        }
        let run = self.folder.join(&key);
        let directory = run_directory(&run, &config)?;
        let fitted = timed(&self.folder.join(format!("{key}.seconds")), || {
            match fit(&config, &directory, &["compare".to_owned()], interrupt, task) {
                Err(Error::Diverged(message)) => Ok(Err(message)),
                // The last update can be the one too many.
                Ok(summary) if !summary.measures.loss.is_finite() => {
                    Ok(Err(format!("the held-out loss is {} after the last update", summary.measures.loss)))
                }
                Ok(summary) => Ok(Ok(summary)),
                Err(error) => Err(error),
            }
        });
        let (summary, seconds) = match fitted {
            Err(Error::Interrupted { .. }) => {
                return Err(Error::Interrupted {
                    saved: "what is finished is kept, and the model at work goes on from its checkpoint; give the same command \
                            again"
                        .to_owned(),
                });
            }
            other => other?,
        };
        let mut result = match summary {
            Err(message) => {
                CellResult { key: key.clone(), epochs, seconds, ..CellResult::diverged(0, message) }
            }
            Ok(summary) => CellResult {
                key: key.clone(),
                records: summary.train as u64,
                epochs,
                steps: summary.steps,
                loss: Some(summary.measures.loss),
                tail_loss: Some(summary.measures.tail_loss),
                accuracy: Some(summary.measures.accuracy),
                tail_accuracy: Some(summary.measures.tail_accuracy),
                scales: summary.scales,
                curve: curve(&run)?,
                seconds,
                diverged: None,
                images: Vec::new(),
            },
        };
        if let (Some(drawn), None) = (&self.drawn, &result.diverged) {
            result.images = drawn.measure(&run, &key, seed, interrupt, task).map_err(|error| match error {
                Error::Interrupted { .. } => Error::Interrupted {
                    saved: "what is finished is kept, and the images at work are drawn anew; give the same command again"
                        .to_owned(),
                },
                other => other,
            })?;
        }
        drop(directory);
        // The result comes last: a model whose result is there is never looked at again, so a kill between the two would leave it.
        if !self.keep_models {
            remove_folder(&run)?;
        }
        write_sealed(&path, &result)?;
        Ok(result)
    }
}

/// What a fit came to, as it was kept.
fn read_result(path: &Path) -> Result<CellResult> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let damaged = |why: &str| Error::Table {
        path: path.to_path_buf(),
        line: None,
        message: format!("is damaged ({why}); remove it, and the model is fitted again"),
    };
    match unseal(&bytes) {
        Unsealed::Whole(text) => serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string())),
        Unsealed::Broken => Err(damaged("its SHA-256 is not the one at its end")),
        Unsealed::Without => Err(damaged("it does not end with its SHA-256, or an older version wrote it")),
    }
}

/// Updates and validation loss, as the run's metrics have them.
fn curve(run: &Path) -> Result<Vec<(u64, f64)>> {
    let path = run.join(METRICS);
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let points = metrics(&path, &text)?;
    let point =
        |line: &serde_json::Value| Some((line["step"].as_u64()? + 1, line["validation_loss"].as_f64()?));
    Ok(points.iter().filter_map(point).collect())
}
