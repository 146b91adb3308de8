//! Whole commands on the emulated device: a run that is resumed gives the bytes of one that was not stopped, and ratings,
//! losses and drawn images agree with the CPU's. `ALCHEMIST_DEVICE` names another device, `ALCHEMIST_PROGRAM` another
//! place of the program.
#![cfg(all(unix, feature = "emulator"))]

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use alchemist_engine::{
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    training::checkpoint::Checkpoint,
};
use serde_json::json;
use tempfile::TempDir;

struct Workplace(TempDir);

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            DataSetSettings { train: 12, validation: 6, side: 16, shares: FlawShares::default(), seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": 1,
            "raterDepth": 1,
            "pn": "1_2",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 16, "fit_images": 12},
            "text_encoder": {"tokens": 4, "channels": 16},
            "rule": "excess",
            "bs": 3,
            "ep": 1,
            "tlr": 1e-3,
            "upperlevel_weight": 0.5,
            "workers": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": 0,
            "fp16": 1,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let built = || OsString::from(env!("CARGO_BIN_EXE_alchemist-engine"));
        let mut command = Command::new(env::var_os("ALCHEMIST_PROGRAM").unwrap_or_else(built));
        command.current_dir(self.0.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
    }

    fn files(&self, run: &str) -> Vec<(String, Vec<u8>)> {
        let newest = Checkpoint::newest(&self.path(run).join("checkpoints")).unwrap().unwrap();
        let mut files = vec![self.path(run).join("metrics.jsonl")];
        for name in ["proxy.safetensors", "rater.safetensors", "optimizer.safetensors", "state.json"] {
            files.push(newest.join(name));
        }
        let name = |file: &Path| file.file_name().unwrap().to_string_lossy().into_owned();
        files.iter().map(|file| (name(file), fs::read(file).unwrap())).collect()
    }

    fn ratings(&self, file: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(file)).unwrap();
        let mut lines = text.lines();
        let column = lines.next().unwrap().split(',').position(|name| name == "rating").unwrap();
        // Ratings and ids come before the captions, which may hold commas.
        lines.map(|line| line.split(',').nth(column).unwrap().parse().unwrap()).collect()
    }
}

fn device() -> String {
    env::var("ALCHEMIST_DEVICE").unwrap_or_else(|_| "emulated".to_owned())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_run_is_resumed_to_the_byte_and_its_ratings_agree() {
    let work = Workplace::new();
    let device = device();
    let train = ["train", "--config", "config.json", "--device", &device, "--out"];
    work.succeed(&[&train[..], &["whole"]].concat());
    let state = fs::read_to_string(
        Checkpoint::newest(&work.path("whole/checkpoints")).unwrap().unwrap().join("state.json"),
    )
    .unwrap();
    assert!(state.contains("proxy_loss_scale"), "{state}");

    // As if it had been killed after two steps.
    copy(&work.path("whole"), &work.path("part"));
    let mut removed = 0;
    for entry in fs::read_dir(work.path("part/checkpoints")).unwrap() {
        let entry = entry.unwrap();
        let step: u64 = entry.file_name().to_string_lossy().strip_prefix("step-").unwrap().parse().unwrap();
        if step > 2 {
            fs::remove_dir_all(entry.path()).unwrap();
            removed += 1;
        }
    }
    assert!(removed > 0);
    work.succeed(&[&train[..], &["part", "--resume"]].concat());
    for ((name, found), (_, expected)) in work.files("part").iter().zip(work.files("whole")) {
        assert!(*found == expected, "{name} differs");
    }

    let data = work.path("data/train.csv");
    let score = ["score", "--checkpoint", "whole", "--data", data.to_str().unwrap()];
    for (out, rest) in [
        ("cpu.csv", &["--device", "cpu"][..]),
        ("exact.csv", &["--device", &device, "--set", "fp16=0", "--batch", "5"]),
        ("half.csv", &["--device", &device, "--batch", "5"]),
    ] {
        work.succeed(&[&score[..], &["--out", out], rest].concat());
    }
    let (cpu, exact, half) = (work.ratings("cpu.csv"), work.ratings("exact.csv"), work.ratings("half.csv"));
    assert_eq!(cpu.len(), 12);
    let scale = cpu.iter().fold(0.0f64, |most, rating| most.max(rating.abs()));
    let worst = |found: &[f64]| {
        found.iter().zip(&cpu).map(|(found, cpu)| (found - cpu).abs() / scale).fold(0.0, f64::max)
    };
    println!("ratings differ by {:.1e} in f32, {:.1e} in f16", worst(&exact), worst(&half));
    assert!(worst(&exact) <= 1e-5 && worst(&half) <= 1e-2);
    // Not a bit of a rating depends on what else is in its batch, or on whether the batch is full.
    let table = fs::read_to_string(&data).unwrap();
    let beginning: Vec<&str> = table.lines().take(1 + 7).collect();
    fs::write(work.path("data/beginning.csv"), beginning.join("\n")).unwrap();
    let rest = ["--device", &device, "--set", "fp16=0", "--batch", "5"];
    let beginning = ["score", "--checkpoint", "whole", "--data", "data/beginning.csv", "--out", "part.csv"];
    work.succeed(&[&beginning[..], &rest].concat());
    assert_eq!(exact[..7], work.ratings("part.csv")[..]);
}

#[test]
fn a_model_that_is_fitted_and_drawn_from_agrees_with_the_processor() {
    let work = Workplace::new();
    let device = device();
    let measured = |run: &str| -> Vec<[f64; 3]> {
        let text = fs::read_to_string(work.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| {
                ["train_loss", "gradient_norm", "validation_loss"]
                    .map(|key| line[key].as_f64().unwrap_or_default())
            })
            .collect()
    };
    for (run, on) in [("cpu", "cpu"), ("placed", &*device)] {
        work.succeed(&[
            "fit",
            "--config",
            "config.json",
            "--set",
            "fp16=0",
            "--set",
            "depth=2",
            "--device",
            on,
            "--out",
            run,
        ]);
    }
    let (cpu, placed) = (measured("cpu"), measured("placed"));
    assert_eq!(cpu.len(), 4, "one line per step");
    assert!(cpu[3][2] > 0.0, "the last step is followed by a validation");
    let pairs = || cpu.iter().flatten().zip(placed.iter().flatten());
    let worst = pairs().map(|(cpu, placed)| (cpu - placed).abs() / cpu.abs().max(1e-30)).fold(0.0, f64::max);
    println!("losses and norms differ by {worst:.1e}");
    assert!(cpu.len() == placed.len() && worst <= 1e-4, "{cpu:?}, on the device {placed:?}");

    // The same weights on either: the logits differ in their last digits, the codes that are drawn do not.
    for (out, on) in [("drawn-cpu", "cpu"), ("drawn", &*device)] {
        let prompts = ["--prompt", "a red circle", "--prompt", "", "--seed", "5"];
        let from = ["sample", "--checkpoint", "cpu", "--device", on, "--out", out];
        work.succeed(&[&from[..], &prompts].concat());
    }
    for image in ["0000_00.png", "0001_00.png", "grid.png"] {
        let [cpu, placed] = ["drawn-cpu", "drawn"].map(|out| fs::read(work.path(out).join(image)).unwrap());
        assert!(cpu == placed, "{image} differs");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error_before_anything_else() {
    let work = Workplace::new();
    let output = work.run(&["train", "--config", "config.json", "--out", "run", "--device", "tpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("emulated"));
    if alchemist_engine::engine::cuda::Device::cuda(0).is_err() {
        let output = work.run(&["train", "--config", "config.json", "--out", "run", "--device", "cuda"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("cuda"));
    }
}

/// A column of a table of numbers.
fn column(path: &Path, name: &str) -> Vec<f64> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let at = reader.headers().unwrap().iter().position(|column| column == name).unwrap();
    reader.records().map(|row| row.unwrap()[at].parse().unwrap()).collect()
}

#[test]
fn cross_fitting_agrees_with_the_cpu() {
    let work = Workplace::new();
    let settings =
        DataSetSettings { train: 30, validation: 3, side: 16, shares: FlawShares::default(), seed: 5 };
    write_data_set(&work.path("more"), &settings).unwrap();
    let device = device();
    let keys = [
        "rule=norm-gain",
        "crossfit.epochs=2",
        "crossfit.captions=3",
        "fp16=0",
        "rater_only_epochs=1",
        "depth=2",
    ];
    let sets: Vec<&str> = keys.iter().flat_map(|key| ["--set", *key]).collect();
    for (run, on) in [("cpu", "cpu"), ("placed", &*device)] {
        let train =
            ["train", "--config", "config.json", "--data", "more/train.csv", "--device", on, "--out", run];
        work.succeed(&[&train[..], &sets].concat());
    }
    for name in ["loss", "gain", "gain_empty", "gradient_norm"] {
        let [cpu, placed] = ["cpu", "placed"].map(|run| column(&work.path(run).join("gains.csv"), name));
        assert_eq!(cpu.len(), 30);
        let scale = cpu.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let worst =
            cpu.iter().zip(&placed).map(|(one, other)| (one - other).abs() / scale).fold(0.0, f64::max);
        println!("{name} differs by {worst:.1e}");
        assert!(scale > 0.0 && worst <= 1e-3, "{name}: {cpu:?}, on the device {placed:?}");
    }
    // Records that are not of the run are evaluated by the proxies of both folds. A rank of 15 may change.
    let [cpu, placed] = ["cpu", &*device].map(|on| {
        let out = format!("others-{}.csv", if on == "cpu" { "cpu" } else { "placed" });
        let score =
            ["score", "--checkpoint", "cpu", "--data", "more/validation.csv", "--device", on, "--out", &out];
        work.succeed(&score);
        column(&work.path(&out), "rating")
    });
    assert_eq!(cpu.len(), 3);
    assert!(cpu.iter().zip(&placed).all(|(one, other)| (one - other).abs() < 0.1), "{cpu:?}, {placed:?}");
}
