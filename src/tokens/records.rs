//! Records that cannot be used.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    data::{Origin, Record},
    error::{Error, Reasons, Result},
    files::write_csv,
};

/// A record that could not be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRecord {
    /// The record's id.
    pub id: String,
    /// Its location in the table.
    #[serde(alias = "line")]
    pub origin: Origin,
    /// The reason.
    pub reason: String,
}

impl FailedRecord {
    /// A failed record and the reason.
    pub(crate) fn of(record: &Record, reason: impl Into<String>) -> Self {
        Self { id: record.id.clone(), origin: record.origin.clone(), reason: reason.into() }
    }
}

/// Writes a table of failed records.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_failed<'a>(path: &Path, failed: impl Iterator<Item = &'a FailedRecord>) -> Result<()> {
    let row = |record: &FailedRecord| [record.id.clone(), record.origin.to_string(), record.reason.clone()];
    write_csv(path, &["id", "origin", "reason"], failed.map(row))
}

/// The error of a job that can use no row of `table`: the reasons with their counts. `failed_out`, if given, lists
/// every row.
///
/// # Errors
/// If the list cannot be written.
pub(crate) fn none_usable(table: &Path, failed: &[FailedRecord], failed_out: Option<&Path>) -> Result<Error> {
    if let Some(path) = failed_out {
        write_failed(path, failed.iter())?;
    }
    let reasons: Reasons = failed.iter().map(|record| record.reason.as_str()).collect();
    Ok(reasons.none_usable(table, failed_out))
}
