//! A folder with a drawn data set and a configuration, and the program in it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use alchemist_engine::{
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    training::checkpoint::Checkpoint,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Workplace(pub TempDir);

impl Workplace {
    /// `data/` with so many training records and 16 for validation, of 24 pixels, and `config.json`: that of a tiny network, with
    /// these keys besides.
    pub fn new(train: usize, keys: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            DataSetSettings { train, validation: 16, side: 24, shares: FlawShares::default(), seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        let mut config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 60},
            "text_encoder": {"tokens": 8, "channels": 16},
            "rule": "excess",
            "bs": 8,
            "tlr": 2e-3,
            "workers": 2,
        });
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"));
        command.current_dir(self.0.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the program prints, and what it warns of.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        String::from_utf8(output.stdout).unwrap() + &errors
    }

    /// What the program says, which holds these words, when it refuses.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], words: &[&str]) -> String {
        let output = self.program(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        for word in words {
            assert!(errors.contains(word), "`{word}` is missing in: {errors}");
        }
        errors
    }

    /// Starts the program as often as `times` and kills it after a while that grows each time, in milliseconds; how often it was
    /// still running.
    pub fn killed(&self, arguments: &[&str], times: u64, first: u64, more: u64) -> usize {
        let mut kills = 0;
        for attempt in 0..times {
            let mut child = self.program(arguments).spawn().unwrap();
            sleep(Duration::from_millis(first + more * attempt));
            kills += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        kills
    }

    /// Everything that a run came to.
    pub fn result(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let newest = Checkpoint::newest(&self.path(run).join("checkpoints")).unwrap().unwrap();
        let entries = fs::read_dir(newest).unwrap().map(|entry| entry.unwrap().path());
        contents(entries.chain([self.path(run).join("metrics.jsonl"), self.path(run).join("failed.csv")]))
    }
}

/// Names and bytes of files.
pub fn contents(paths: impl Iterator<Item = PathBuf>) -> BTreeMap<String, Vec<u8>> {
    paths
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}
