//! Every command of the program on a tiny corpus, as a test can give it with an output of its choice.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use alchemist_engine::{
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    files::LEFTOVER,
};
use serde_json::json;
use tempfile::TempDir;

/// A folder with a corpus, a run of `train` and one of `fit`, ratings and weights.
pub struct Place(TempDir);

/// A command and what is known of it.
pub struct Given {
    /// Its name.
    pub name: &'static str,
    /// Its arguments; each `OUT` stands for what it writes.
    pub arguments: &'static [&'static str],
    /// What it needs besides to continue what was interrupted; nothing where it is never continued but refuses what is there.
    pub again: Option<&'static [&'static str]>,
    /// What of its output has the same bytes each time, by the end of the path; all but the files of a run that hold times.
    pub same: fn(&Path) -> bool,
}

fn all(_: &Path) -> bool {
    true
}

/// Checkpoints and metrics: what a run has learned. Provenance and events hold times.
fn learned(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ["rater.safetensors", "proxy.safetensors", "model.safetensors", "metrics.jsonl", "failed.csv"]
        .contains(&&*name)
}

/// What a token cache holds. It names its folder, so descriptions differ.
fn encoded(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

/// The tables of a comparison; the rest holds times.
fn compared(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "pool.csv")
}

const SAME: Option<&[&str]> = Some(&[]);
const OVERWRITE: Option<&[&str]> = Some(&["--overwrite"]);

/// All commands but `demo`, whose data set is not tiny.
pub const COMMANDS: &[Given] = &[
    Given {
        name: "train",
        arguments: &["train", "--config", "config.json", "--out", "OUT"],
        again: SAME,
        same: learned,
    },
    Given {
        name: "fit",
        arguments: &["fit", "--config", "config.json", "--out", "OUT"],
        again: SAME,
        same: learned,
    },
    Given {
        name: "encode",
        arguments: &["encode", "--config", "config.json", "--shard", "4", "--out", "OUT"],
        again: SAME,
        same: encoded,
    },
    Given {
        name: "score",
        arguments: &["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "OUT.csv"],
        again: SAME,
        same: all,
    },
    Given {
        name: "attribute",
        arguments: &[
            "attribute",
            "--checkpoint",
            "run",
            "--data",
            "data/train.csv",
            "--validation",
            "data/validation.csv",
            "--out",
            "OUT.csv",
        ],
        again: SAME,
        same: all,
    },
    Given {
        name: "select",
        arguments: &["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", "OUT.csv"],
        again: SAME,
        same: all,
    },
    Given {
        name: "pack",
        arguments: &["pack", "--data", "data/train.csv", "--format", "parquet", "--out", "OUT.parquet"],
        again: OVERWRITE,
        same: all,
    },
    Given {
        name: "sample",
        arguments: &[
            "sample",
            "--checkpoint",
            "model",
            "--prompt",
            "a red circle",
            "--each",
            "3",
            "--out",
            "OUT",
        ],
        again: None,
        same: all,
    },
    Given {
        name: "measure",
        arguments: &[
            "measure",
            "--generated",
            "data/train.csv",
            "--reference",
            "data/validation.csv",
            "--checkpoint",
            "run",
            "--out",
            "OUT.json",
        ],
        again: SAME,
        same: all,
    },
    Given {
        name: "compare",
        arguments: &[
            "compare",
            "--config",
            "config.json",
            "--seeds",
            "1",
            "--keep",
            "60%",
            "--ratings",
            "caption-length",
            "--samplers",
            "top-k",
            "--equal",
            "steps",
            "--out",
            "OUT",
        ],
        again: SAME,
        same: compared,
    },
    Given {
        name: "report",
        arguments: &["report", "--of", "run", "--out", "OUT.html"],
        again: SAME,
        same: all,
    },
    Given {
        name: "export",
        arguments: &["export", "--checkpoint", "run", "--out", "OUT.pth"],
        again: SAME,
        same: all,
    },
    Given { name: "inspect", arguments: &["inspect", "weights.pth"], again: SAME, same: all },
    Given {
        name: "convert",
        arguments: &["convert", "weights.pth", "OUT.safetensors"],
        again: SAME,
        same: all,
    },
    Given {
        name: "plant",
        arguments: &["plant", "--data", "data/plain.csv", "--side", "24", "--out", "OUT"],
        again: SAME,
        same: all,
    },
    Given { name: "devices", arguments: &["devices"], again: SAME, same: all },
];

impl Given {
    /// The arguments that write to `out`.
    pub fn to(&self, out: &str) -> Vec<String> {
        self.arguments.iter().map(|argument| argument.replace("OUT", out)).collect()
    }

    /// The arguments that continue what the same command has begun.
    pub fn again(&self, out: &str) -> Option<Vec<String>> {
        let more = self.again?.iter().map(|argument| (*argument).to_owned());
        Some(self.to(out).into_iter().chain(more).collect())
    }
}

impl Place {
    pub fn new() -> Self {
        let place = Self::untrained();
        place.succeed(&["train", "--config", "config.json", "--out", "run"]);
        place.succeed(&["fit", "--config", "config.json", "--out", "model"]);
        place.succeed(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "ratings.csv"]);
        place.succeed(&["export", "--checkpoint", "run", "--out", "weights.pth"]);
        place
    }

    /// The corpus and its configuration alone.
    pub fn untrained() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shares = FlawShares::default();
        let settings = DataSetSettings { train: 40, validation: 16, side: 24, shares, seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        // Without the columns that `plant` adds.
        let mut plain = csv::Writer::from_path(folder.path().join("data/plain.csv")).unwrap();
        let mut table = csv::ReaderBuilder::new().has_headers(false).from_path(&data.train_csv).unwrap();
        for row in table.records() {
            plain.write_record(row.unwrap().iter().take(3)).unwrap();
        }
        plain.flush().unwrap();
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": 1,
            "raterDepth": 1,
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 24},
            "text_encoder": {"tokens": 8, "channels": 16},
            "rule": "excess",
            "bs": 8,
            "ep": 2,
            "workers": 1,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with these arguments, its output to be read.
    pub fn program<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"));
        command.current_dir(self.0.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same by a line of the shell, in which `"$@"` is the program with its arguments.
    pub fn shell<A: AsRef<std::ffi::OsStr>>(&self, line: &str, arguments: &[A]) -> Command {
        let mut command = Command::new("bash");
        command.current_dir(self.0.path()).args(["-c", line, "bash", env!("CARGO_BIN_EXE_alchemist-engine")]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub fn succeed<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Output {
        let output = self.program(arguments).output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Removes everything that a command wrote to `out`.
    pub fn clear(&self, out: &str) {
        for entry in fs::read_dir(self.0.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().trim_start_matches('.').starts_with(out) {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
        }
    }

    /// The files that a command wrote to `out` and that always have the same bytes, by their names after it.
    pub fn written(&self, out: &str, same: fn(&Path) -> bool) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for path in self.files() {
            let name = path.strip_prefix(self.0.path()).unwrap().to_string_lossy().into_owned();
            if let Some(rest) = name.strip_prefix(out)
                && same(&path)
            {
                files.insert(rest.to_owned(), fs::read(&path).unwrap());
            }
        }
        // Of a run's checkpoints only the newest: an interrupt makes one where there would be none.
        let step = |name: &str| Some(name.split_once("/checkpoints/")?.1.split('/').next()?.to_owned());
        let newest = files.keys().filter_map(|name| step(name)).max();
        files.retain(|name, _| step(name).is_none_or(|step| Some(&step) == newest.as_ref()));
        files
    }

    /// Temporary files and folders that nothing removed.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let hidden = |path: &PathBuf| {
            path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(LEFTOVER))
        };
        self.files().into_iter().filter(hidden).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.everything().into_iter().filter(|path| !path.is_dir()).collect()
    }

    /// All files and folders, hidden ones among them.
    pub fn everything(&self) -> BTreeSet<PathBuf> {
        let (mut all, mut folders) = (BTreeSet::new(), vec![self.0.path().to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                all.insert(path);
            }
        }
        all
    }
}
