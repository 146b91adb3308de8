//! The record of the run's append-only files in a checkpoint.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DYNAMICS, GAINS, METRICS, damaged};
use crate::{
    error::{Error, Result},
    files::{hexadecimal, sealed::Written},
};

/// The files of a run other than its checkpoints, as of one checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFiles {
    /// `metrics.jsonl` up to the checkpoint.
    pub(super) metrics: Written,
    /// The recordings in `dynamics/`, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) dynamics: BTreeMap<String, Written>,
    /// The table of gains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gains: Option<Written>,
}

impl RunFiles {
    /// Refuses a run whose `metrics.jsonl` is damaged. A missing file is left to the caller.
    ///
    /// # Errors
    /// If it is damaged or cannot be read.
    pub(crate) fn expect_metrics(&self, run: &Path) -> Result<()> {
        let path = run.join(METRICS);
        if !path.exists() {
            return Ok(());
        }
        let read = || beginning(&mut File::open(&path)?, self.metrics.bytes);
        let (bytes, hash) = read().map_err(Error::io("read", &path))?;
        let same = bytes == 0 || digest(&hash) == self.metrics.sha256;
        if bytes == self.metrics.bytes && same { Ok(()) } else { Err(damaged(&path)) }
    }

    /// Refuses a run with a damaged or missing recording or table of gains.
    ///
    /// # Errors
    /// If one is damaged, missing or cannot be read.
    pub(crate) fn expect_recordings(&self, run: &Path) -> Result<()> {
        let folder = run.join(DYNAMICS);
        for (name, written) in &self.dynamics {
            let path = folder.join(name);
            if !written.is_whole(&path) {
                return Err(damaged(&path));
            }
        }
        let path = run.join(GAINS);
        if self.gains.as_ref().is_some_and(|gains| !gains.is_whole(&path)) {
            return Err(damaged(&path));
        }
        Ok(())
    }
}

/// How many of the requested first bytes the file has, and their hash.
pub(super) fn beginning(file: &mut File, bytes: u64) -> io::Result<(u64, Sha256)> {
    let (mut hash, mut read, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    let mut file = file.take(bytes);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((read, hash)),
            count => hash.update(&buffer[..count]),
        }
        read = bytes - file.limit();
    }
}

pub(super) fn digest(hash: &Sha256) -> String {
    hexadecimal(&hash.clone().finalize())
}
