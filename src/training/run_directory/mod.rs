//! The folder of one training run.
//!
//! | entry | holds |
//! | --- | --- |
//! | `config.json` | the effective configuration; the folder is a run because this and `checkpoints` are in it |
//! | `provenance.json` | version, commit, seed and command line of every start, each with the SHA-256 of all up to it; without it the run was refused before its first step |
//! | `metrics.jsonl` | one line a logged update, without times, so that equal runs have equal files |
//! | `failed.csv` | records that could not be used, with the reason |
//! | `inputs.json` | what the tables and the records were, to name what was changed since |
//! | `dynamics/` | what was measured of each training sample, an epoch a file |
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
    files::{is_leftover, remove_leftovers, sha256, sha256_of_file, text::read_text, write_whole},
    jobs::{
        Claim,
        folder::{FolderPatterns, OutputFolder, Present},
        marker::{MARKER, Marker, NEW, OutputState},
    },
    tokens::{IMAGE_TOKENIZER_FOLDER, TEXT_ENCODER_FOLDER},
};

/// The file that makes a folder a run.
const CONFIG: &str = "config.json";
/// Who made the run and how.
const PROVENANCE: &str = "provenance.json";
/// What was measured.
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
const DYNAMICS: &str = "dynamics";
/// What the tables and records were.
const INPUTS: &str = "inputs.json";
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

/// What a run's folder holds; see [`FolderPatterns`].
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
    "events.out.tfevents.*",
];

/// What is said of a file that is not what it was when the checkpoint was written.
fn damaged(path: &Path) -> Error {
    let what = if path.exists() { "is damaged or was changed" } else { "is missing" };
    Error::Checkpoint {
        path: path.to_path_buf(),
        message: format!(
            "{what}: it is not what the newest checkpoint says that it was; put it back as it was, remove that checkpoint to go on \
             from an older one, or start a new run with another --out"
        ),
    }
}

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
    /// Whether this process has begun it, and whether it made its folder.
    is_new: bool,
    made: bool,
}

impl RunDirectory {
    /// Makes the directory of a new run and writes its configuration.
    ///
    /// # Errors
    /// If it holds something already (unless that is a run as it was written and is to be overwritten), holds an input, another process
    /// uses it, or it cannot be written.
    pub fn create(path: &Path, config: &Config, existing: Existing) -> Result<Self> {
        let (inputs, made) = (config.inputs(), !path.exists());
        let overwrite = existing == Existing::Overwrite;
        let folder =
            OutputFolder::claim(&Claim { command: WRITER, inputs: &inputs, overwrite }, path, LAYOUT)?;
        let present = folder.present()?;
        let entries: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().collect();
        let unbegun = present == Present::Unfinished && entries.iter().all(may_be_in_a_refused_run);
        if present != Present::Nothing {
            if !unbegun && !overwrite {
                return Err(Error::mismatch(
                    path,
                    format!(
                        "{} already holds a run; give --resume to continue it, --overwrite to discard it, or another --out",
                        path.display()
                    ),
                ));
            }
            folder.expect_own()?;
            let others = folder.others()?;
            if !others.is_empty() {
                tracing::warn!(
                    "{} is replaced, but not what other commands have written into it: {}",
                    path.display(),
                    others.join(", ")
                );
            }
        }
        let pending = present != Present::Nothing && !unbegun;
        if pending {
            folder.begin_beside(false)?;
        } else {
            folder.begin_in_place()?;
            folder.clear_in_place()?;
        }
        let run =
            Self { path: path.to_path_buf(), folder, pending: AtomicBool::new(pending), is_new: true, made };
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        // Until it is there, the folder counts as empty.
        write_json(&run.here().join(CONFIG), &config.to_json())?;
        Ok(run)
    }

    /// Whether a folder holds a run that has begun and was stopped before its end.
    ///
    /// # Errors
    /// If its marker is damaged.
    pub(crate) fn was_stopped(path: &Path) -> Result<bool> {
        let marker = Marker::read(&path.join(MARKER))?.filter(|marker| marker.command == WRITER);
        let unfinished = marker.is_some_and(|marker| marker.state != OutputState::Complete);
        Ok(unfinished && Self::is_run(path) && path.join(PROVENANCE).exists())
    }

    /// Opens the directory of a run that is to be resumed, and gives the configuration it was started with.
    ///
    /// # Errors
    /// If there is no run, another process uses it, or its configuration cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Config)> {
        expect_configuration(path)?;
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
            return Err(Error::input(path, message));
        }
        let path = path.join(CONFIG);
        Config::parse_kept(&path.display().to_string(), &read_text(&path)?)
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
    pub(crate) fn image_tokenizer(&self) -> PathBuf {
        self.here().join(IMAGE_TOKENIZER_FOLDER)
    }

    /// The folder of the text encoder.
    pub(crate) fn text_encoder(&self) -> PathBuf {
        self.here().join(TEXT_ENCODER_FOLDER)
    }

    /// The folder of what was measured of each sample, an epoch a file.
    pub(crate) fn dynamics(&self) -> PathBuf {
        self.here().join(DYNAMICS)
    }

    /// What the tables and records were when the run was begun.
    pub(super) fn inputs(&self) -> PathBuf {
        self.here().join(INPUTS)
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
        // The configuration is known to one of the starts whenever the process is killed.
        write_whole(&path, &json_text(&json!(starts))?)?;
        write_whole(&self.here().join(CONFIG), &configuration)?;
        if self.pending.load(Ordering::Relaxed) {
            self.folder.show()?;
            self.pending.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.folder.begin_in_place()
    }

    /// Refuses a run that goes on from a checkpoint of which a file that is read back is not what it was: that of the starts,
    /// and what the checkpoint says of the recordings. `metrics.jsonl` is checked when it is [opened](Self::journal), the
    /// configuration when the run is.
    ///
    /// # Errors
    /// If so; the file is named.
    pub(crate) fn expect_whole(&self, kept: &RunFiles) -> Result<()> {
        let path = self.here().join(PROVENANCE);
        if starts(&path)?.is_empty() {
            return Err(damaged(&path));
        }
        kept.expect_recordings(&self.here())
    }

    /// Opens `metrics.jsonl`, to go on after what a checkpoint says of it; what was written later is removed.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is damaged before that place.
    pub fn journal(&self, kept: Option<&RunFiles>) -> Result<Journal> {
        let path = self.here().join(METRICS);
        let RunFiles { metrics, dynamics } = kept.cloned().unwrap_or_default();
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
        Ok(Journal { file, path, bytes: read, hash, dynamics })
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.pending.load(Ordering::Relaxed) {
            // The table of failed records is what an error refers to.
            if !self.failed().exists() {
                self.folder.discard();
            }
        } else if self.is_new && !self.path.join(PROVENANCE).exists() && !self.failed().exists() {
            // It was refused before its first step.
            self.folder.discard_in_place(self.made);
        } else if self.folder.keeps_former() {
            // Nothing is lost with a run that has no checkpoint yet.
            let begun = fs::read_dir(self.checkpoints()).is_ok_and(|mut entries| entries.next().is_some());
            if !begun && self.folder.restore().is_ok() {
                return;
            }
            tracing::warn!(
                "{} is not complete; the run whose place it takes is kept as {} until it is",
                self.path.display(),
                self.folder.replaced().display()
            );
        }
    }
}

/// The member of a start that holds the SHA-256 over the one of the start before and all other members.
const LINK: &str = "sha256";

fn link(before: Option<&Map<String, Value>>, start: &Map<String, Value>) -> String {
    let before = before.and_then(|before| before.get(LINK)).cloned().unwrap_or_default();
    sha256(json!([before, start]).to_string().as_bytes())
}

/// Refuses a configuration that none of a run's starts has written. Before the first of them, and in runs of older versions,
/// nobody says what it was.
fn expect_configuration(run: &Path) -> Result<()> {
    let path = run.join(CONFIG);
    let starts = match path.exists() {
        true => starts(&run.join(PROVENANCE)),
        false => return Ok(()),
    };
    let told: Vec<Value> = match &starts {
        Ok(starts) => starts.iter().filter_map(|start| start.get("config").cloned()).collect(),
        // Whether they are those of an older version shows at the checkpoint.
        Err(_) => Vec::new(),
    };
    if told.is_empty() || told.contains(&json!(sha256_of_file(&path)?)) {
        return Ok(());
    }
    let message = format!(
        "is damaged or was changed: its SHA-256 is none of those in {PROVENANCE}; put it back as it was, and give keys that are to \
         change by --set when you resume"
    );
    Err(Error::Checkpoint { path, message })
}

/// The starts of a run; none if there is no file.
fn starts(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let refuse = |message: &str| Error::Checkpoint { path: path.to_path_buf(), message: message.to_owned() };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let starts: Vec<Map<String, Value>> = serde_json::from_slice(&bytes)
        .map_err(|_| refuse("is not the list of starts that this program writes; put it back as it was"))?;
    let mut before = None;
    for start in &starts {
        let mut told = start.clone();
        let kept = told.shift_remove(LINK);
        if kept.as_ref().and_then(Value::as_str) != Some(&link(before, &told)) {
            return Err(refuse(
                "is damaged or was changed: a start does not have the SHA-256 that stands in it; put it back as it was",
            ));
        }
        before = Some(start);
    }
    Ok(starts)
}

/// Whether an entry of a run's folder may be there although the run was refused before its first step, so that nothing is
/// lost with it.
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
    write_whole(path, &json_text(value)?)
}

fn json_text(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::invalid(error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
