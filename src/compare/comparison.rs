//! What a comparison came to, as a file that [`report`](super::page) reads.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::TrainedModel;
use crate::{
    config::Config,
    error::{Error, Result},
    files::sealed::{Unsealed, unseal, write_sealed},
};

/// How well a rating tells a flaw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlawLine {
    /// The rating.
    pub rating: String,
    /// The flaw.
    pub flaw: String,
    /// The chance that a record with it is rated below an unspoiled one, mean over the seeds and half its interval.
    pub auroc: (f64, Option<f64>),
    /// Mean place in the ranking, 0 the best rated.
    pub percentile: f64,
}

/// Everything that the tables are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Its configuration.
    pub config: serde_json::Value,
    /// The column of the corpus that says what is known of a pair.
    pub flaw_column: String,
    /// Records that models could be trained on.
    pub records: usize,
    /// Of the validation set, which guides the raters.
    pub validation: usize,
    /// Of what models are measured on.
    pub held_out: usize,
    /// Every fit.
    pub outcomes: Vec<TrainedModel>,
    /// How well each rating tells each planted flaw.
    pub flaws: Vec<FlawLine>,
    /// The share of each kind in all records, where it is known.
    pub kinds: Vec<(String, f64)>,
    /// What each rater cost: training and scoring, mean seconds a seed; nothing where no start came to say it.
    pub costs: Vec<(String, Option<f64>, Option<f64>)>,
}

const FILE: &str = "comparison.json";

impl Comparison {
    /// Whether a folder holds one.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Reads that of a folder.
    ///
    /// # Errors
    /// If there is none or it is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |line, why: &str| Error::Table {
            path: path.clone(),
            line,
            message: format!("is damaged ({why}); give the command of the comparison again"),
        };
        let text = match unseal(&bytes) {
            Unsealed::Whole(text) => text,
            Unsealed::Broken => return Err(damaged(None, "its SHA-256 is not the one at its end")),
            // That of an older version.
            Unsealed::Without => bytes,
        };
        serde_json::from_slice(&text).map_err(|error| damaged(Some(error.line() as u64), &error.to_string()))
    }

    /// Its configuration, checked.
    ///
    /// # Errors
    /// If it is none.
    pub fn config(&self) -> Result<Config> {
        Config::parse_kept(FILE, &self.config.to_string())
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_sealed(&folder.join(FILE), self)
    }
}
