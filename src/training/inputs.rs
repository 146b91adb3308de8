//! The tables and records of a run at its start, stored with it, so that a run resumed with other data can name the
//! change. Whether anything changed is decided by the fingerprint in the checkpoint.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    data::Record,
    error::{Error, Result},
    files::sealed::{read_sealed, write_sealed},
    tokens::encoded::EncodedCorpus,
};

/// The data of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inputs {
    tables: Vec<Input>,
}

/// A table and its records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: PathBuf,
    sha256: String,
    /// See [`EncodedCorpus::rows`].
    rows: Vec<u64>,
}

impl Inputs {
    /// The inputs of tables that have been read.
    pub(super) fn of(config: &Config, tables: &[(&Path, &EncodedCorpus)]) -> Result<Self> {
        let input = |(path, corpus): &(&Path, &EncodedCorpus)| {
            let sha256 = config.open_corpus(path)?.identity()?;
            Ok(Input { path: path.to_path_buf(), sha256, rows: corpus.rows.clone() })
        };
        Ok(Self { tables: tables.iter().map(input).collect::<Result<_>>()? })
    }

    /// Writes the inputs of a new run.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write_sealed(path, self)
    }

    /// Refuses records that differ from those at the start of the run. `records` reads those of a table again, to
    /// name one.
    ///
    /// # Errors
    /// If the records differ.
    pub(super) fn expect_same_records(
        &self,
        path: &Path,
        records: impl Fn(&Path) -> Result<Vec<Record>>,
    ) -> Result<()> {
        if !path.exists() {
            // An older version wrote the run.
            return Ok(());
        }
        let stored: Self = match read_sealed(path, "the fingerprint in the checkpoint is checked instead") {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!("{error}");
                return Ok(());
            }
        };
        for (stored, now) in stored.tables.iter().zip(&self.tables) {
            if stored.rows == now.rows {
                continue;
            }
            let hint = "a run resumes only with the data it started with; restore it, or start a new run with \
                        another --out";
            let table = now.path.clone();
            if stored.sha256 != now.sha256 {
                let message = format!("was changed since the run started; {hint}");
                return Err(Error::Table { path: table, line: None, message });
            }
            let at = stored.rows.iter().zip(&now.rows).position(|(stored, now)| stored != now).unwrap_or(0);
            let Some(record) = records(&table)?.into_iter().nth(at) else { continue };
            let of = |rows: &[u64]| rows.get(at).copied().unwrap_or(0);
            let was = match (of(&stored.rows), of(&now.rows)) {
                (0, _) => "could not be used when the run started, and can be now",
                (_, 0) => "can no longer be used",
                _ => "has other tokens than when the run started",
            };
            return Err(record.origin.refuse(format!("the image {} {was}; {hint}", record.image)));
        }
        Ok(())
    }
}
