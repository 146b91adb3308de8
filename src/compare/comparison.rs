//! The outcome of a comparison, as a file that [`report`](super::page) reads.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::TrainedModel;
use crate::{
    config::Config,
    error::{Error, Result},
    files::sealed::{Unsealed, unseal, write_sealed},
};

/// How well a rating detects a flaw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlawLine {
    /// The rating.
    pub rating: String,
    /// The flaw.
    pub flaw: String,
    /// The probability that a record with the flaw is rated below a clean one: mean over the seeds and half its
    /// interval.
    pub auroc: (f64, Option<f64>),
    /// Mean percentile in the ranking, 0 is the best rated.
    pub percentile: f64,
}

/// Everything that the tables are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Its configuration.
    pub config: serde_json::Value,
    /// The column of the corpus that contains the planted flaw.
    pub flaw_column: String,
    /// Usable records of the training set.
    pub records: usize,
    /// Records of the validation set, which guides the raters.
    pub validation: usize,
    /// Records of the held-out set, which models are measured on.
    pub held_out: usize,
    /// All trained models.
    pub outcomes: Vec<TrainedModel>,
    /// How well each rating detects each planted flaw.
    pub flaws: Vec<FlawLine>,
    /// The fraction of each kind in all records, where it is known.
    pub kinds: Vec<(String, f64)>,
    /// The cost of each rater: mean seconds per seed of training and of scoring; `None` if unknown.
    pub costs: Vec<(String, Option<f64>, Option<f64>)>,
}

const FILE: &str = "comparison.json";

impl Comparison {
    /// Whether a folder contains a comparison.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Reads the comparison of a folder.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |line, why: &str| Error::Table {
            path: path.clone(),
            line,
            message: format!("is damaged ({why}); run `compare` again"),
        };
        let text = match unseal(&bytes) {
            Unsealed::Whole(text) => text,
            Unsealed::Broken => return Err(damaged(None, "its SHA-256 does not match")),
            // Written by an older version.
            Unsealed::Without => bytes,
        };
        serde_json::from_slice(&text).map_err(|error| damaged(Some(error.line() as u64), &error.to_string()))
    }

    /// The configuration, validated.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn config(&self) -> Result<Config> {
        Config::parse_kept(FILE, &self.config.to_string())
    }

    /// Writes the comparison into a folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_sealed(&folder.join(FILE), self)
    }
}
