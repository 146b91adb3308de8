//! The folder of one training run.
//!
//! | entry | contents |
//! | --- | --- |
//! | `config.json` | the effective configuration; the folder is a run because this and `checkpoints` are in it |
//! | `provenance.json` | version, commit, seed and command line of every start, each with the SHA-256 of the file up to that entry; written before the first step |
//! | `metrics.jsonl` | one line per logged update, without times, so that equal runs have equal files |
//! | `failed.csv` | records that could not be used, with the reason |
//! | `inputs.json` | the tables and records at the start, to name a change |
//! | `folds/`, `gains.csv` | the proxies of the folds, and the evaluated captions, under rules that need the caption gain |
//! | `dynamics/` | the measurements of each training sample, one file per epoch |
//! | `image_tokenizer/`, `text_encoder/` | the encoders |
//! | `checkpoints/` | see [`checkpoint`](super::checkpoint) |
//!
//! Its lock and its marker are described in `src/jobs/mod.rs`.

mod files;
mod journal;

use std::{
    fs::{self, DirEntry, OpenOptions},
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Map, Value, json};

pub use files::RunFiles;
use files::{beginning, digest};
pub use journal::Journal;
pub(crate) use journal::metrics;

use crate::{
    config::Config,
    error::{Error, Result},
    files::{is_leftover, remove_leftovers, sha256, sha256_of_file, text::read_text, write_atomic},
    jobs::{
        Claim,
        folder::{FolderPatterns, OutputFolder, Present},
        marker::{MARKER, Marker, NEW, OutputState},
    },
    tokens::{IMAGE_TOKENIZER_FOLDER, TEXT_ENCODER_FOLDER},
};

/// The file that makes a folder a run.
const CONFIG: &str = "config.json";
/// The provenance of the run.
const PROVENANCE: &str = "provenance.json";
/// The logged measurements.
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
const DYNAMICS: &str = "dynamics";
/// The tables and records at the start.
const INPUTS: &str = "inputs.json";
const FAILED: &str = "failed.csv";
pub(crate) const FOLDS: &str = "folds";
/// The gain of each training record's caption.
pub(crate) const GAINS: &str = "gains.csv";

/// What to do if the folder already contains a run that has taken a step; a run without a step is always restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Remove it and start a new run.
    Overwrite,
}

/// The commands that write runs, in markers and messages.
const WRITER: &str = "train/fit";

/// The files of a run's folder; see [`FolderPatterns`].
pub(crate) const LAYOUT: FolderPatterns = &[
    CONFIG,
    PROVENANCE,
    METRICS,
    FAILED,
    INPUTS,
    "dynamics/*",
    "image_tokenizer/*",
    "text_encoder/*",
    "checkpoints/*/*",
    "folds/*",
    "folds/*/*",
    "folds/*/*/*",
    GAINS,
    "events.out.tfevents.*",
];

/// The message for a file that differs from what the checkpoint records.
fn damaged(path: &Path) -> Error {
    let what = if path.exists() { "is damaged or was changed" } else { "is missing" };
    Error::Checkpoint {
        path: path.to_path_buf(),
        message: format!(
            "{what}: it differs from the record in the newest checkpoint; restore it, remove that checkpoint to resume \
             from an older one, or start a new run with another --out"
        ),
    }
}

/// A run directory, locked against other processes.
///
/// A run that replaces another is written next to it until its first step, when every check has passed; the old run is
/// kept, hidden, until the new one is complete.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    folder: OutputFolder,
    /// Whether the run is still staged next to the one that it replaces.
    pending: AtomicBool,
    /// Whether this process started the run, and whether it created the folder.
    is_new: bool,
    made: bool,
}

impl RunDirectory {
    /// Creates the directory of a new run and writes its configuration.
    ///
    /// # Errors
    /// If the folder is not empty (except for an unmodified run that may be overwritten), contains an input, is used by
    /// another process, or cannot be written.
    pub fn create(path: &Path, config: &Config, existing: Existing) -> Result<Self> {
        let (inputs, made) = (config.inputs(), !path.exists());
        let overwrite = existing == Existing::Overwrite;
        let folder =
            OutputFolder::claim(&Claim { command: WRITER, inputs: &inputs, overwrite }, path, LAYOUT)?;
        let present = folder.present()?;
        let entries: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().collect();
        let unstarted = present == Present::Unfinished && entries.iter().all(may_be_in_a_refused_run);
        if present != Present::Nothing {
            if !unstarted && !overwrite {
                return Err(Error::mismatch(
                    path,
                    format!(
                        "{}: already contains a run; pass --resume to continue it, --overwrite to replace it, or \
                         choose another --out",
                        path.display()
                    ),
                ));
            }
            folder.expect_own()?;
            let others = folder.others()?;
            if !others.is_empty() {
                tracing::warn!(
                    "{} is replaced, except for files written by other commands: {}",
                    path.display(),
                    others.join(", ")
                );
            }
        }
        let pending = present != Present::Nothing && !unstarted;
        if pending {
            folder.begin_sibling(false)?;
        } else {
            folder.begin_in_place()?;
            folder.clear_in_place()?;
        }
        let run =
            Self { path: path.to_path_buf(), folder, pending: AtomicBool::new(pending), is_new: true, made };
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        // Until this file exists, the folder counts as empty.
        write_json(&run.here().join(CONFIG), &config.to_json())?;
        Ok(run)
    }

    /// Whether a folder contains a run that was started and not completed.
    ///
    /// # Errors
    /// If its marker is damaged.
    pub(crate) fn was_stopped(path: &Path) -> Result<bool> {
        let marker = Marker::read(&path.join(MARKER))?.filter(|marker| marker.command == WRITER);
        let unfinished = marker.is_some_and(|marker| marker.state != OutputState::Complete);
        Ok(unfinished && Self::is_run(path) && path.join(PROVENANCE).exists())
    }

    /// Opens the directory of a run to resume, and returns the configuration it was started with.
    ///
    /// # Errors
    /// If there is no run, another process uses it, or its configuration cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Config)> {
        expect_configuration(path)?;
        expect_current_names(path)?;
        let config = Self::config_of(path)?;
        let folder =
            OutputFolder::claim(&Claim { command: WRITER, inputs: &[], overwrite: false }, path, LAYOUT)?;
        let run = Self {
            path: path.to_path_buf(),
            folder,
            pending: AtomicBool::new(false),
            is_new: false,
            made: false,
        };
        remove_leftovers(path)?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        for folder in [checkpoints, run.dynamics(), run.image_tokenizer(), run.text_encoder()] {
            if folder.exists() {
                remove_leftovers(&folder)?;
            }
        }
        Ok((run, config))
    }

    /// The current folder of the run's files.
    fn here(&self) -> PathBuf {
        if self.pending.load(Ordering::Relaxed) { self.folder.staging() } else { self.path.clone() }
    }

    /// Marks the run as complete: its marker lists every file, and the run that it replaces is removed.
    ///
    /// # Errors
    /// If a file cannot be read, or the marker cannot be written.
    pub fn complete(&self) -> Result<()> {
        self.folder.complete()
    }

    /// Whether a folder contains a run. A `config.json` alone, which many programs write, is not enough.
    pub fn is_run(path: &Path) -> bool {
        path.join(CONFIG).is_file() && path.join(CHECKPOINTS).is_dir()
    }

    /// The configuration of the run in a folder, without locking it.
    ///
    /// # Errors
    /// If there is no run or its configuration cannot be read.
    pub fn config_of(path: &Path) -> Result<Config> {
        if !Self::is_run(path) {
            let message = format!(
                "{}: contains no run ({CONFIG} or {CHECKPOINTS} is missing); start one with `train --config FILE.json \
                 --out {0}`",
                path.display()
            );
            return Err(Error::input(path, message));
        }
        let path = path.join(CONFIG);
        Config::parse_kept(&path.display().to_string(), &read_text(&path)?)
    }

    /// The folder of the run from its first step on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.here().join(CHECKPOINTS)
    }

    /// The folder of the image tokenizer.
    pub(crate) fn image_tokenizer(&self) -> PathBuf {
        self.here().join(IMAGE_TOKENIZER_FOLDER)
    }

    /// The folder of the text encoder.
    pub(crate) fn text_encoder(&self) -> PathBuf {
        self.here().join(TEXT_ENCODER_FOLDER)
    }

    /// The folder of the per-sample measurements, one file per epoch.
    pub(crate) fn dynamics(&self) -> PathBuf {
        self.here().join(DYNAMICS)
    }

    /// The folder of the folds' proxies.
    pub(crate) fn folds(&self) -> PathBuf {
        self.here().join(FOLDS)
    }

    /// Whether there is a checkpoint, of the run or of the proxy of a fold.
    pub(crate) fn has_progress(&self) -> bool {
        let entries =
            |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
        let folds = entries(&self.folds()).into_iter().map(|fold| fold.path());
        let is_checkpoint = |entry: &DirEntry| entry.path().is_dir() && !is_leftover(&entry.file_name());
        folds.chain([self.checkpoints()]).any(|folder| entries(&folder).iter().any(is_checkpoint))
    }

    /// The table of gains.
    pub(crate) fn gains(&self) -> PathBuf {
        self.here().join(GAINS)
    }

    /// The tables and records at the start of the run.
    pub(super) fn inputs(&self) -> PathBuf {
        self.here().join(INPUTS)
    }

    /// The table of records that could not be used.
    pub fn failed(&self) -> PathBuf {
        self.here().join(FAILED)
    }

    /// Adds this start to `provenance.json`: version, commit, seed, command line, and the step it continues from.
    /// Every check has passed by now, so `config` becomes the run's configuration; it differs from the old one only
    /// in keys that do not affect results.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn record_start(&self, config: &Config, command_line: &[String], step: u64) -> Result<()> {
        let path = self.here().join(PROVENANCE);
        let mut starts = starts(&path)?;
        let configuration = json_text(&config.to_json())?;
        let mut start = Map::new();
        for (key, value) in [
            ("experiment", json!(config.experiment)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("git_hash", json!(env!("ALCHEMIST_GIT_HASH"))),
            ("dependencies", json!(sha256(include_bytes!("../../../Cargo.lock")))),
            ("seed", json!(config.seed)),
            ("command_line", json!(command_line)),
            ("step", json!(step)),
            ("config", json!(sha256(&configuration))),
        ] {
            start.insert(key.to_owned(), value);
        }
        let link = link(starts.last(), &start);
        start.insert(LINK.to_owned(), json!(link));
        starts.push(start);
        // Whenever the process is killed, the configuration is that of one of the starts.
        write_atomic(&path, &json_text(&json!(starts))?)?;
        write_atomic(&self.here().join(CONFIG), &configuration)?;
        if self.pending.load(Ordering::Relaxed) {
            self.folder.show()?;
            self.pending.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.folder.begin_in_place()
    }

    /// Refuses to resume if a file that the run reads back has changed since the checkpoint: the starts, and the
    /// recordings. `metrics.jsonl` is checked when it is [opened](Self::journal), the configuration when the run is.
    ///
    /// # Errors
    /// If a file has changed; the message names it.
    pub(crate) fn expect_whole(&self, kept: &RunFiles) -> Result<()> {
        let path = self.here().join(PROVENANCE);
        if starts(&path)?.is_empty() {
            return Err(damaged(&path));
        }
        kept.expect_recordings(&self.here())
    }

    /// Opens `metrics.jsonl` at the position that a checkpoint records; later lines are removed.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is damaged before that position.
    pub fn journal(&self, kept: Option<&RunFiles>) -> Result<Journal> {
        let path = self.here().join(METRICS);
        let RunFiles { metrics, dynamics, gains } = kept.cloned().unwrap_or_default();
        if metrics.bytes > 0 && !path.exists() {
            return Err(damaged(&path));
        }
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open().map_err(Error::io("write", &path))?;
        let (read, hash) = beginning(&mut file, metrics.bytes).map_err(Error::io("read", &path))?;
        if metrics.bytes > 0 && (read, digest(&hash)) != (metrics.bytes, metrics.sha256) {
            return Err(damaged(&path));
        }
        file.set_len(read).map_err(Error::io("write", &path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        Ok(Journal { file, path, bytes: read, hash, dynamics, gains })
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.pending.load(Ordering::Relaxed) {
            // The table of failed records stays: an error refers to it.
            if !self.failed().exists() {
                self.folder.discard();
            }
        } else if self.is_new && !self.path.join(PROVENANCE).exists() && !self.failed().exists() {
            // The run was refused before its first step.
            self.folder.discard_in_place(self.made);
        } else if self.folder.keeps_former() {
            // Without a checkpoint, nothing is lost by restoring the former run.
            if !self.has_progress() && self.folder.restore().is_ok() {
                return;
            }
            tracing::warn!(
                "{} is not complete; the run that it replaces is kept as {} until then",
                self.path.display(),
                self.folder.replaced().display()
            );
        }
    }
}

/// The key of a start's SHA-256, which covers the SHA-256 of the previous start and all other keys of this one.
const LINK: &str = "sha256";

fn link(before: Option<&Map<String, Value>>, start: &Map<String, Value>) -> String {
    let before = before.and_then(|before| before.get(LINK)).cloned().unwrap_or_default();
    sha256(json!([before, start]).to_string().as_bytes())
}

/// Refuses a configuration that none of the run's starts wrote. Before the first start, and in runs of older
/// versions, there is no digest to compare.
fn expect_configuration(run: &Path) -> Result<()> {
    let path = run.join(CONFIG);
    let starts = match path.exists() {
        true => starts(&run.join(PROVENANCE)),
        false => return Ok(()),
    };
    let digests: Vec<Value> = match &starts {
        Ok(starts) => starts.iter().filter_map(|start| start.get("config").cloned()).collect(),
        // Whether they belong to an older version is decided at the checkpoint.
        Err(_) => Vec::new(),
    };
    if digests.is_empty() || digests.contains(&json!(sha256_of_file(&path)?)) {
        return Ok(());
    }
    let message = format!(
        "is damaged or was changed: its SHA-256 is none of those in {PROVENANCE}; restore it, and change keys with \
         --set when you resume"
    );
    Err(Error::Checkpoint { path, message })
}

/// Refuses a run whose configuration has former names, because its checkpoints record that configuration's fingerprint.
fn expect_current_names(run: &Path) -> Result<()> {
    let path = run.join(CONFIG);
    let text = if path.exists() { read_text(&path)? } else { return Ok(()) };
    let Some(former) = Config::first_former_name(&text) else { return Ok(()) };
    let message = format!(
        "was written by an earlier version ({former}), so the run can be used but not resumed; start a new run with \
         another --out"
    );
    Err(Error::Checkpoint { path, message })
}

/// The starts of a run; empty if there is no file.
fn starts(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let refuse = |message: &str| Error::Checkpoint { path: path.to_path_buf(), message: message.to_owned() };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let starts: Vec<Map<String, Value>> = serde_json::from_slice(&bytes)
        .map_err(|_| refuse("is not a list of starts written by this program; restore it"))?;
    let mut before = None;
    for start in &starts {
        let mut entry = start.clone();
        let kept = entry.shift_remove(LINK);
        if kept.as_ref().and_then(Value::as_str) != Some(&link(before, &entry)) {
            return Err(refuse(
                "is damaged or was changed: the SHA-256 of a start does not match; restore it",
            ));
        }
        before = Some(start);
    }
    Ok(starts)
}

/// Whether a run that was refused before its first step may have left this entry in its folder, so that nothing is lost
/// by removing it.
fn may_be_in_a_refused_run(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_empty_folder = || fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
    let text = name.to_string_lossy();
    is_leftover(&name)
        || text.strip_suffix(NEW) == Some(MARKER)
        || (name == CHECKPOINTS || name == DYNAMICS) && is_empty_folder()
        // They are opened before the start is recorded.
        || name == METRICS
        || text.starts_with("events.out.tfevents.")
        || [MARKER, CONFIG, INPUTS, IMAGE_TOKENIZER_FOLDER, TEXT_ENCODER_FOLDER, FAILED].iter().any(|made| name == *made)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, &json_text(value)?)
}

fn json_text(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::invalid(error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
