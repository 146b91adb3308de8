//! The lines of measurements that a run writes, step by step.

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

/// `metrics.jsonl`, being appended to, and what is to be said of the run's files in the next checkpoint.
#[derive(Debug)]
pub struct Journal {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) hash: Sha256,
    pub(super) dynamics: BTreeMap<String, Written>,
}

impl Journal {
    /// Appends an object as one line. It should hold a `step`, and no time of day.
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

    /// Remembers a recording that was written into `dynamics/`.
    pub(crate) fn note_recording(&mut self, name: String, written: Written) {
        self.dynamics.insert(name, written);
    }

    /// Makes what was appended last, and gives what a checkpoint that is written now has to say.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn sync(&self) -> Result<RunFiles> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        let metrics = Written { bytes: self.bytes, sha256: digest(&self.hash) };
        Ok(RunFiles { metrics, dynamics: self.dynamics.clone() })
    }
}

/// The lines of a run's `metrics.jsonl`. The last one may be on its way into the file.
///
/// # Errors
/// [`Error::Table`] that names the first line which is damaged.
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
