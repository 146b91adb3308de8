//! The measurements that a run logs per step.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::files::{RunFiles, digest};
use crate::{
    error::{Error, Result},
    files::sealed::Written,
};

/// `metrics.jsonl`, open for appending, and the record of the run's files for the next checkpoint.
#[derive(Debug)]
pub struct Journal {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) hash: Sha256,
    pub(super) dynamics: BTreeMap<String, Written>,
    pub(super) gains: Option<Written>,
}

impl Journal {
    /// Appends an object as one line. It should have a `step`, and no time of day.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn append(&mut self, record: &Value) -> Result<()> {
        let mut line = record.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.hash.update(&line);
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Records that a file was written into `dynamics/`.
    pub(crate) fn note_recording(&mut self, name: String, written: Written) {
        self.dynamics.insert(name, written);
    }

    /// Records that the table of gains was written.
    pub(crate) fn note_gains(&mut self, written: Written) {
        self.gains = Some(written);
    }

    /// Syncs the file, and returns what a checkpoint written now must record.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn sync(&self) -> Result<RunFiles> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        let metrics = Written { bytes: self.bytes, sha256: digest(&self.hash) };
        Ok(RunFiles { metrics, dynamics: self.dynamics.clone(), gains: self.gains.clone() })
    }
}

/// The lines of a run's `metrics.jsonl`. The last one may be incomplete.
///
/// # Errors
/// [`Error::Table`] for the first damaged line.
pub(crate) fn metrics(path: &Path, text: &str) -> Result<Vec<Value>> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let parsed = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| Error::Table {
            path: path.to_path_buf(),
            line: Some(number as u64 + 1),
            message: format!("is damaged ({error}); remove it, or train the run again"),
        })
    };
    text[..whole].lines().enumerate().map(parsed).collect()
}
