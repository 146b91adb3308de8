//! The folder of one training run.
//!
//! | entry | holds |
//! | --- | --- |
//! | `config.json` | the effective configuration; the folder is a run because this and `checkpoints` are in it |
//! | `provenance.json` | version, commit, seed and command line of every start; without it the run was refused before its first step |
//! | `metrics.jsonl` | one line a logged update, without times, so that equal runs have equal files |
//! | `failed.csv` | records that could not be used, with the reason |
//! | `dynamics/` | what was measured of each training sample, an epoch a file |
//! | `image_tokenizer/`, `text_encoder/` | the encoders |
//! | `checkpoints/` | see [`checkpoint`](super::checkpoint) |
//!
//! Its lock and its marker are described in [`jobs`](crate::jobs).

use std::{
    fs::{self, DirEntry, File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};

use crate::{
    config::Config,
    error::{Error, Result},
    files::{LEFTOVER, remove_leftovers, sha256, write_whole},
    jobs::{
        Claim,
        folder::{Layout, OutputFolder, Present},
        marker::MARKER,
    },
};

/// The file that makes a folder a run.
const CONFIG: &str = "config.json";
/// Who made the run and how.
const PROVENANCE: &str = "provenance.json";
/// What was measured.
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const IMAGE_TOKENIZER: &str = "image_tokenizer";
const TEXT_ENCODER: &str = "text_encoder";
const FAILED: &str = "failed.csv";

/// What to do when the folder already holds a run that has taken a step; one that was refused before it is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Remove it and start anew.
    Overwrite,
}

/// How markers and messages name the commands that write runs.
const WRITER: &str = "train/fit";

/// What a run's folder holds; see [`Layout`].
pub(crate) const LAYOUT: Layout = &[
    CONFIG,
    PROVENANCE,
    METRICS,
    FAILED,
    "dynamics/*",
    "image_tokenizer/*",
    "text_encoder/*",
    "checkpoints/*/*",
    "events.out.tfevents.*",
];

/// A run directory, locked against other processes while it is held.
///
/// A run that takes the place of another is written beside it until its first step, when everything that could refuse it has been
/// checked; the former one is kept, hidden, until the new one is complete.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    folder: OutputFolder,
    /// Whether it is still written beside.
    pending: AtomicBool,
}

impl RunDirectory {
    /// Makes the directory of a new run and writes its configuration.
    ///
    /// # Errors
    /// If it holds something already (unless that is a run as it was written and is to be overwritten), holds an input, another process
    /// uses it, or it cannot be written.
    pub fn create(path: &Path, config: &Config, existing: Existing) -> Result<Self> {
        let inputs = config.inputs();
        let overwrite = existing == Existing::Overwrite;
        let folder =
            OutputFolder::claim(&Claim { command: WRITER, inputs: &inputs, overwrite }, path, LAYOUT)?;
        let present = folder.present()?;
        let entries: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().collect();
        let unbegun = present == Present::Unfinished && entries.iter().all(may_be_in_a_refused_run);
        if present != Present::Nothing {
            if !unbegun && !overwrite {
                return Err(Error::invalid(format!(
                    "{} already holds a run; give --resume to continue it, --overwrite to discard it, or another --out",
                    path.display()
                )));
            }
            folder.expect_own()?;
        }
        let pending = present != Present::Nothing && !unbegun;
        if pending {
            folder.begin_beside(false)?;
        } else {
            folder.begin_in_place()?;
            folder.clear_in_place()?;
        }
        let run = Self { path: path.to_path_buf(), folder, pending: AtomicBool::new(pending) };
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        // Until it is there, the folder counts as empty.
        write_json(&run.here().join(CONFIG), &config.to_json())?;
        Ok(run)
    }

    /// Opens the directory of a run that is to be resumed, and gives the configuration it was started with.
    ///
    /// # Errors
    /// If there is no run, another process uses it, or its configuration cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Config)> {
        let config = Self::config_of(path)?;
        let folder =
            OutputFolder::claim(&Claim { command: WRITER, inputs: &[], overwrite: false }, path, LAYOUT)?;
        let run = Self { path: path.to_path_buf(), folder, pending: AtomicBool::new(false) };
        remove_leftovers(path)?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        remove_leftovers(&checkpoints)?;
        if run.dynamics().exists() {
            remove_leftovers(&run.dynamics())?;
        }
        Ok((run, config))
    }

    /// Where the run's files are now.
    fn here(&self) -> PathBuf {
        if self.pending.load(Ordering::Relaxed) { self.folder.staging() } else { self.path.clone() }
    }

    /// Says that the run has ended: every file of it is listed in its marker, and the run whose place it took goes.
    ///
    /// # Errors
    /// If a file cannot be read, or the marker not written.
    pub fn complete(&self) -> Result<()> {
        self.folder.complete()
    }

    /// Whether a folder holds a run. A `config.json` alone, which many programs write, does not make it one.
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
                "{} holds no run (no {CONFIG} and {CHECKPOINTS} are in it); start one with `train --config FILE.json --out {0}`",
                path.display()
            );
            return Err(Error::invalid(message));
        }
        Config::load(path.join(CONFIG), &[])
    }

    /// The folder, in which the run is from its first step on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.here().join(CHECKPOINTS)
    }

    /// The folder of the image tokenizer.
    pub fn image_tokenizer(&self) -> PathBuf {
        self.here().join(IMAGE_TOKENIZER)
    }

    /// The folder of the text encoder.
    pub fn text_encoder(&self) -> PathBuf {
        self.here().join(TEXT_ENCODER)
    }

    /// The folder of what was measured of each sample, an epoch a file.
    pub fn dynamics(&self) -> PathBuf {
        self.here().join("dynamics")
    }

    /// The table of records that could not be used.
    pub fn failed(&self) -> PathBuf {
        self.here().join(FAILED)
    }

    /// Adds this start to `provenance.json`: version, commit, seed, command line, and the step it goes on from. The run is
    /// sure to go on now, so its configuration becomes `config`, which differs from the one before only in keys that do
    /// not change results.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn record_start(&self, config: &Config, command_line: &[String], step: u64) -> Result<()> {
        let path = self.here().join(PROVENANCE);
        let mut starts = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Value::Array(starts)) => starts,
                _ => {
                    let message =
                        "is not the list of starts that this program writes; move it away".to_owned();
                    return Err(Error::Checkpoint { path, message });
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        starts.push(json!({
            "experiment": config.experiment,
            "version": env!("CARGO_PKG_VERSION"),
            "git_hash": env!("ALCHEMIST_GIT_HASH"),
            "dependencies": sha256(include_bytes!("../../Cargo.lock")),
            "seed": config.seed,
            "command_line": command_line,
            "step": step,
        }));
        write_json(&self.here().join(CONFIG), &config.to_json())?;
        write_json(&path, &Value::Array(starts))?;
        if self.pending.load(Ordering::Relaxed) {
            self.folder.show()?;
            self.pending.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.folder.begin_in_place()
    }

    /// Opens `metrics.jsonl` to go on after update `step`: lines of that update and later ones, and a line that was cut
    /// short, are removed.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn metrics(&self, step: u64) -> Result<Metrics> {
        let path = self.here().join(METRICS);
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open().map_err(Error::io("write", &path))?;
        let mut kept = 0;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read", &path))?;
            let whole = line.ends_with(b"\n");
            let before = serde_json::from_slice::<Value>(&line)
                .ok()
                .and_then(|value| value.get("step").and_then(Value::as_u64))
                .is_some_and(|line_step| line_step < step);
            if read == 0 || !whole || !before {
                break;
            }
            kept += read as u64;
        }
        file.set_len(kept).map_err(Error::io("write", &path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        Ok(Metrics { file, path })
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.pending.load(Ordering::Relaxed) {
            self.folder.discard();
        } else if self.folder.keeps_former() {
            tracing::warn!(
                "{} is not complete; the run whose place it takes is kept as {} until it is",
                self.path.display(),
                self.folder.replaced().display()
            );
        }
    }
}

/// `metrics.jsonl`, being appended to.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Appends an object as one line. It should hold a `step`, and no time of day.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn append(&mut self, record: &Value) -> Result<()> {
        let mut line = record.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// Makes what was appended last; to be called before a checkpoint is written.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

/// Whether an entry of a run's folder may be there although the run was refused before its first step, so that nothing is
/// lost with it.
fn may_be_in_a_refused_run(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_empty_folder = || fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
    name.to_string_lossy().starts_with(LEFTOVER)
        || name == CHECKPOINTS && is_empty_folder()
        || [MARKER, CONFIG, IMAGE_TOKENIZER, TEXT_ENCODER, FAILED].iter().any(|made| name == *made)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::invalid(format!("{} cannot be written as JSON: {error}", path.display())))?;
    text.push(b'\n');
    write_whole(path, &text)
}
