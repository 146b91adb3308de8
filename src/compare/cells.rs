//! Trains and measures the models of a comparison, each distinct model once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    result::CellResult,
    runs::{path_key, run_directory, timed, with_keys},
    sampled_images::SampledImages,
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

/// Trains models and caches their results.
pub(super) struct Fits<'a> {
    /// The configuration shared by all models.
    pub(super) config: &'a Config,
    /// The folder of runs and results.
    pub(super) folder: PathBuf,
    /// The held-out table.
    pub(super) held_out: &'a Path,
    pub(super) cache: &'a Path,
    /// Keep each model's last checkpoint.
    pub(super) keep_models: bool,
    /// Images that models generate, if any.
    pub(super) sampled_images: Option<SampledImages>,
}

impl Fits<'_> {
    /// The result of a training set, a seed and a number of epochs: read from the cache, or trained.
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
                // The comparison wrote these tables, so the configured format does not apply.
                "data_format=".to_owned(),
                format!("seed={seed}"),
                format!("ep={epochs}"),
                "keep_checkpoints=1".to_owned(),
            ],
        )?;
        let digest = |path: &Path| digest_of_file(path).map_err(Error::io("read", path));
        // Without generated images, the key equals that of versions that could not generate any.
        let sampled_images = self.sampled_images.as_ref().map(SampledImages::identity).unwrap_or_default();
        let (trained, held_out) = (digest(table)?, digest(self.held_out)?);
        let inputs =
            [config.fingerprint().as_bytes(), &trained, &held_out, sampled_images.as_bytes()].concat();
        let key = sha256(&inputs)[..16].to_owned();
        let path = self.folder.join(format!("{key}.json"));
        if path.exists() {
            return read_result(&path);
        }
        let run = self.folder.join(&key);
        let directory = run_directory(&run, &config)?;
        let fitted = timed(&self.folder.join(format!("{key}.seconds")), || {
            match fit(&config, &directory, &["compare".to_owned()], interrupt, task) {
                Err(Error::Diverged(message)) => Ok(Err(message)),
                // The last update itself may be the one that diverges.
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
                    saved: "finished models are kept, and the current model resumes from its checkpoint; run the same \
                            command again"
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
                caption_gain: summary.caption_gain,
                scales: summary.scales,
                curve: curve(&run)?,
                seconds,
                diverged: None,
                images: Vec::new(),
            },
        };
        if let (Some(sampled_images), None) = (&self.sampled_images, &result.diverged) {
            result.images = sampled_images.measure(&run, &key, seed, interrupt, task).map_err(|error| match error {
                Error::Interrupted { .. } => Error::Interrupted {
                    saved: "finished models are kept, and the current images are regenerated; run the same command \
                            again"
                        .to_owned(),
                },
                other => other,
            })?;
        }
        drop(directory);
        // The result is written last: a model with a result is never revisited, so a kill in between must not leave its
        // run behind.
        if !self.keep_models {
            remove_folder(&run)?;
        }
        write_sealed(&path, &result)?;
        Ok(result)
    }
}

/// Reads a cached result.
fn read_result(path: &Path) -> Result<CellResult> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let damaged = |why: &str| Error::Table {
        path: path.to_path_buf(),
        line: None,
        message: format!("is damaged ({why}); remove it to train the model again"),
    };
    match unseal(&bytes) {
        Unsealed::Whole(text) => serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string())),
        Unsealed::Broken => Err(damaged("its SHA-256 does not match")),
        Unsealed::Without => Err(damaged("it has no SHA-256, or an older version wrote it")),
    }
}

/// Steps and validation losses, from the run's metrics.
fn curve(run: &Path) -> Result<Vec<(u64, f64)>> {
    let path = run.join(METRICS);
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let points = metrics(&path, &text)?;
    let point =
        |line: &serde_json::Value| Some((line["step"].as_u64()? + 1, line["validation_loss"].as_f64()?));
    Ok(points.iter().filter_map(point).collect())
}
