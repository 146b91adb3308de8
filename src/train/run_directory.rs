//! The folder of one training run.
//!
//! | entry | holds |
//! | --- | --- |
//! | `config.json` | the effective configuration; the folder is a run because this is in it |
//! | `provenance.json` | version, commit, seed and command line of every start |
//! | `metrics.jsonl` | one line a logged update, without times, so that equal runs have equal files |
//! | `failed.csv` | records that could not be used, with the reason |
//! | `dynamics/` | what was measured of each training sample, an epoch a file |
//! | `image_tokenizer/`, `text_encoder/` | the encoders |
//! | `checkpoints/` | see [`checkpoint`](super::checkpoint) |
//! | `lock` | held while a process writes here |

use std::{
    fs::{self, File, OpenOptions, TryLockError},
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

/// What to do when the folder already holds a run.
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
        let occupied = fs::read_dir(path).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name() != "lock" && !is_leftover(&entry.file_name()))
        });
        let is_run = Self::is_run(path);
        if occupied && existing == Existing::Refuse {
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
        // First of all: until it is there, the folder counts as empty.
        write_json(&path.join(CONFIG), &config.to_json())?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
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

    /// Whether a folder holds a run.
    pub fn is_run(path: &Path) -> bool {
        path.join(CONFIG).is_file()
    }

    /// The configuration of the run in a folder, without locking it.
    ///
    /// # Errors
    /// If there is no run or its configuration cannot be read.
    pub fn config_of(path: &Path) -> Result<Config> {
        if !Self::is_run(path) {
            let message = format!(
                "{} holds no run (there is no {CONFIG} in it); start one with `train --config FILE.json --out {0}`",
                path.display()
            );
            return Err(Error::invalid(message));
        }
        Config::load(path.join(CONFIG), &[])
    }

    /// Writes a configuration that differs from the first only in keys that do not change results.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn replace_config(&self, config: &Config) -> Result<()> {
        write_json(&self.path.join(CONFIG), &config.to_json())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The folder of the image tokenizer.
    pub fn image_tokenizer(&self) -> PathBuf {
        self.path.join("image_tokenizer")
    }

    /// The folder of the text encoder.
    pub fn text_encoder(&self) -> PathBuf {
        self.path.join("text_encoder")
    }

    /// The folder of what was measured of each sample, an epoch a file.
    pub fn dynamics(&self) -> PathBuf {
        self.path.join("dynamics")
    }

    /// The table of records that could not be used.
    pub fn failed(&self) -> PathBuf {
        self.path.join("failed.csv")
    }

    /// Adds this start to `provenance.json`: version, commit, seed, command line, and the step it goes on from.
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
            if entry.file_name() == "lock" {
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

fn is_leftover(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(LEFTOVER)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::invalid(format!("{} cannot be written as JSON: {error}", path.display())))?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Locks the folder for this process; the system lets go of the lock when the process ends, however it does.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
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
