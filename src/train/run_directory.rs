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
//! | `lock` | held while a process writes here |

use std::{
    fs::{self, DirEntry, File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    config::Config,
    error::{Error, Result},
    files::{LEFTOVER, remove_leftovers, sha256, sync_folder, write_whole},
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
const LOCK: &str = "lock";

/// What to do when the folder already holds a run that has taken a step; one that was refused before it is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Remove it and start anew.
    Overwrite,
}

/// A run directory, locked against other processes while it is held.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Makes the directory of a new run and writes its configuration.
    ///
    /// # Errors
    /// If it holds something already (unless that is a run and is to be overwritten), another process uses it, or it
    /// cannot be written.
    pub fn create(path: &Path, config: &Config, existing: Existing) -> Result<Self> {
        let entries: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().collect();
        let occupied = entries.iter().any(|entry| !may_be_in_an_empty_folder(entry));
        let is_run = Self::is_run(path);
        let unbegun = is_run && entries.iter().all(may_be_in_a_refused_run);
        if occupied && existing == Existing::Refuse && !unbegun {
            let what = if is_run { "already holds a run" } else { "is not empty" };
            let cure = if is_run {
                "--resume to continue it, --overwrite to discard it, or another --out"
            } else {
                "another --out"
            };
            return Err(Error::invalid(format!("{} {what}; give {cure}", path.display())));
        }
        if occupied && !is_run {
            let message = format!(
                "{} is not empty and holds no run, so it is not overwritten; give another --out",
                path.display()
            );
            return Err(Error::invalid(message));
        }
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let run = Self { path: path.to_path_buf(), _lock: lock(path)? };
        if occupied {
            run.clear()?;
        }
        remove_leftovers(path)?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        // Until it is there, the folder counts as empty.
        write_json(&path.join(CONFIG), &config.to_json())?;
        Ok(run)
    }

    /// Opens the directory of a run that is to be resumed, and gives the configuration it was started with.
    ///
    /// # Errors
    /// If there is no run, another process uses it, or its configuration cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Config)> {
        let config = Self::config_of(path)?;
        let run = Self { path: path.to_path_buf(), _lock: lock(path)? };
        remove_leftovers(path)?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        remove_leftovers(&checkpoints)?;
        if run.dynamics().exists() {
            remove_leftovers(&run.dynamics())?;
        }
        Ok((run, config))
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

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The folder of the image tokenizer.
    pub fn image_tokenizer(&self) -> PathBuf {
        self.path.join(IMAGE_TOKENIZER)
    }

    /// The folder of the text encoder.
    pub fn text_encoder(&self) -> PathBuf {
        self.path.join(TEXT_ENCODER)
    }

    /// The folder of what was measured of each sample, an epoch a file.
    pub fn dynamics(&self) -> PathBuf {
        self.path.join("dynamics")
    }

    /// The table of records that could not be used.
    pub fn failed(&self) -> PathBuf {
        self.path.join(FAILED)
    }

    /// Adds this start to `provenance.json`: version, commit, seed, command line, and the step it goes on from. The run is
    /// sure to go on now, so its configuration becomes `config`, which differs from the one before only in keys that do
    /// not change results.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn record_start(&self, config: &Config, command_line: &[String], step: u64) -> Result<()> {
        let path = self.path.join(PROVENANCE);
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
        write_json(&self.path.join(CONFIG), &config.to_json())?;
        write_json(&path, &Value::Array(starts))
    }

    /// Opens `metrics.jsonl` to go on after update `step`: lines of that update and later ones, and a line that was cut
    /// short, are removed.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn metrics(&self, step: u64) -> Result<Metrics> {
        let path = self.path.join(METRICS);
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

    /// Removes everything but the lock. The configuration goes first: what is left of a folder half cleared is no run.
    fn clear(&self) -> Result<()> {
        let config = self.path.join(CONFIG);
        fs::remove_file(&config).map_err(Error::io("remove", &config))?;
        sync_folder(&self.path)?;
        for entry in fs::read_dir(&self.path).map_err(Error::io("read", &self.path))? {
            let entry = entry.map_err(Error::io("read", &self.path))?;
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
        Ok(())
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

/// Whether an entry of a folder may be there although the folder is empty: a process was here and came to nothing.
fn may_be_in_an_empty_folder(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_empty_folder = || fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
    name == LOCK || name.to_string_lossy().starts_with(LEFTOVER) || name == CHECKPOINTS && is_empty_folder()
}

/// Whether an entry of a run's folder may be there although the run was refused before its first step, so that nothing is
/// lost with it.
fn may_be_in_a_refused_run(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    may_be_in_an_empty_folder(entry)
        || [CONFIG, IMAGE_TOKENIZER, TEXT_ENCODER, FAILED].iter().any(|made| name == *made)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::invalid(format!("{} cannot be written as JSON: {error}", path.display())))?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Locks the folder for this process; the system lets go of the lock when the process ends, however it does.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::invalid(format!(
            "another process is writing to {}; wait for it or give another --out",
            folder.display()
        ))),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
    }
}
