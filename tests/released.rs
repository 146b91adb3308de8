//! Released files from the command line: a VQ-VAE in `.pth` as tokenizer, a released rater that scores, runs that start from
//! released weights, and an export that has the released names and shapes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use alchemist_engine::{
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    weights::{Value as Stored, Weights},
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

struct Workplace(TempDir);

impl Workplace {
    /// Sizes are those of the released rater in the fixture.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            DataSetSettings { train: 16, validation: 8, side: 64, shares: FlawShares::default(), seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        let manifest: Value =
            serde_json::from_slice(&fs::read(fixture("ar_ckpt/manifest.json")).unwrap()).unwrap();
        let sizes = &manifest["config"];
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": sizes["proxy_depth"],
            "raterDepth": sizes["depth"],
            "patch_nums": sizes["patch_nums"],
            "ckpt_path": fixture("vqvae_tiny/vqvae_tiny.pth"),
            "text_encoder": {"tokens": sizes["T"], "channels": sizes["in_dim_cross"]},
            "rule": "excess",
            "bs": 8,
            "ep": 1,
            "workers": 1,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let (success, said, errors) = self.run(arguments);
        assert!(success, "{arguments:?}: {errors}");
        said
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let (success, _, errors) = self.run(arguments);
        assert!(!success, "{arguments:?}");
        errors
    }

    fn ratings(&self, file: &str) -> BTreeMap<String, f64> {
        let mut table = csv::Reader::from_path(self.path(file)).unwrap();
        let column = table.headers().unwrap().iter().position(|name| name == "rating").unwrap();
        let rows = table.records().map(|row| {
            let row = row.unwrap();
            (row[0].to_owned(), row[column].parse().unwrap())
        });
        rows.collect()
    }
}

#[test]
fn released_files_are_taken_as_they_are() {
    let work = Workplace::new();
    let released = fixture("ar_ckpt/ar-ckpt-ep0.pth");
    let released = released.to_str().unwrap();
    let score = |checkpoint: &str, out: &str| {
        let arguments = ["score", "--checkpoint", checkpoint, "--data", "data/train.csv", "--out", out];
        [&arguments[..], &["--config", "config.json"]].concat().join("\u{1f}")
    };
    let run = |line: String| work.succeed(&line.split('\u{1f}').collect::<Vec<_>>());
    let said = run(score(released, "released.csv"));
    assert!(said.contains("16 rows in = 16 scored + 0 failed"), "{said}");
    let rated = work.ratings("released.csv");
    let distinct: std::collections::BTreeSet<u64> = rated.values().map(|rating| rating.to_bits()).collect();
    assert!(distinct.len() > 8, "a rater that reads images and captions tells them apart: {rated:?}");

    // What a network of other sizes would need is listed.
    let expected = work.succeed(&["inspect", released, "--config", "config.json"]);
    assert_eq!(expected, "names and shapes match\n");
    let deeper = work.succeed(&["inspect", released, "--config", "config.json", "--set", "raterDepth=12"]);
    assert!(
        deeper.contains("missing     blocks.11.attn") && deeper.contains(" of another shape"),
        "{deeper}"
    );
    let said = work.refused(&["inspect", released, "--config", "config.json", "--network", "proxy"]);
    assert!(said.contains("without trainer.var_wo_ddp"), "{said}");

    // The same weights as safetensors rate the same, to the bit.
    work.succeed(&["convert", released, "rater.safetensors", "--within", "trainer.varRater_wo_ddp"]);
    run(score("rater.safetensors", "converted.csv"));
    assert_eq!(work.ratings("converted.csv"), rated);

    // A run cannot start from a checkpoint without a proxy. One of the same sizes is exported under the released names.
    let start = format!("pretrained_ckpt={released}");
    let said = work.refused(&["train", "--config", "config.json", "--out", "refused", "--set", &start]);
    assert!(said.contains("without trainer.var_wo_ddp"), "the fixture has no proxy: {said}");
    work.succeed(&["train", "--config", "config.json", "--out", "run"]);
    work.succeed(&["export", "--checkpoint", "run", "--out", "exported.pth"]);
    let (exported, original) =
        (Weights::open(&work.path("exported.pth")).unwrap(), Weights::open(Path::new(released)).unwrap());
    let rater = "trainer.varRater_wo_ddp";
    let shapes = |weights: &Weights| -> BTreeMap<String, Vec<usize>> {
        weights.entries().map(|(name, entry)| (name.to_owned(), entry.shape.clone())).collect()
    };
    assert_eq!(shapes(&exported.within(rater)), shapes(&original.within(rater)));
    assert!(!exported.within("trainer.var_wo_ddp").is_empty());
    for key in ["epoch", "iter"] {
        assert!(matches!(exported.value(key), Some(Stored::Int(0..))), "{key}");
    }
    let settings = |weights: &Weights| {
        weights.within("trainer.config").value("patch_nums").map(|value| value.to_string())
    };
    assert_eq!(settings(&exported), settings(&original));

    // What was exported goes on: it rates as the run does, and another run starts from both of its networks.
    run(score("exported.pth", "exported.csv"));
    work.succeed(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "run.csv"]);
    assert_eq!(work.ratings("exported.csv"), work.ratings("run.csv"));
    let start = format!("pretrained_ckpt={}", work.path("exported.pth").display());
    let frozen = ["--set", "tlr=0", "--set", "twd=0", "--set", "twde=0"];
    let arguments = ["train", "--config", "config.json", "--out", "again", "--set", &start];
    work.succeed(&[&arguments[..], &frozen].concat());
    work.succeed(&["score", "--checkpoint", "again", "--data", "data/train.csv", "--out", "again.csv"]);
    assert_eq!(work.ratings("again.csv"), work.ratings("run.csv"));
    let arguments = ["fit", "--config", "config.json", "--out", "model", "--weights", "exported.pth"];
    work.succeed(&[&arguments[..], &frozen].concat());
    work.succeed(&["export", "--checkpoint", "model", "--out", "model.pth"]);
    // The weights that a run started from are needed once: it goes on without them.
    fs::rename(work.path("exported.pth"), work.path("kept.pth")).unwrap();
    work.succeed(&["fit", "--out", "model", "--resume"]);
    work.succeed(&["train", "--out", "again", "--resume"]);
    let model = Weights::open(&work.path("model.pth")).unwrap().within("trainer.var_wo_ddp");
    let proxy = exported.within("trainer.var_wo_ddp");
    assert_eq!(shapes(&model), shapes(&proxy));
    for name in proxy.names() {
        assert!(
            model.read(name).unwrap() == proxy.read(name).unwrap(),
            "{name} moved without a learning rate"
        );
    }
    let arguments =
        ["sample", "--config", "config.json", "--weights", "model.pth", "--prompt", "a", "--out", "drawn"];
    work.succeed(&arguments);
    assert!(work.path("drawn/0000_00.png").exists());

    // The run holds no copy of the tokenizer's weights: moved ones are found by the configuration, other ones refused.
    let moved = work.path("moved.pth");
    fs::copy(fixture("vqvae_tiny/vqvae_tiny.pth"), &moved).unwrap();
    let path = format!("image_tokenizer.path={}", moved.display());
    let arguments = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "moved.csv"];
    let keys = ["--set", path.as_str(), "--set", "ckpt_path="];
    work.succeed(&[&arguments[..], &keys].concat());
    assert_eq!(work.ratings("moved.csv"), work.ratings("run.csv"));
    fs::write(&moved, "<html><body>404</body></html>").unwrap();
    let arguments = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "html.csv"];
    let said = work.refused(&[&arguments[..], &keys].concat());
    assert!(said.contains("HTML"), "{said}");
}

/// The VQ-VAE and the rater on the emulator: what they give is what the CPU gives.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn a_released_rater_rates_alike_on_a_device() {
    let work = Workplace::new();
    let table = fs::read_to_string(work.path("data/train.csv")).unwrap();
    // Five of them: a group of images and a part of one.
    let beginning: Vec<&str> = table.lines().take(1 + 5).collect();
    fs::write(work.path("data/five.csv"), beginning.join("\n")).unwrap();
    let released = fixture("ar_ckpt/ar-ckpt-ep0.pth");
    let mut ratings = Vec::new();
    for device in ["cpu", "emulated"] {
        let out = format!("{device}.csv");
        let arguments = ["score", "--config", "config.json", "--checkpoint", released.to_str().unwrap()];
        let rest = ["--data", "data/five.csv", "--batch", "3", "--device", device, "--out", &out];
        work.succeed(&[&arguments[..], &rest, &["--set", "fp16=0"]].concat());
        ratings.push(work.ratings(&out));
    }
    let [cpu, placed] = ratings.try_into().unwrap();
    assert_eq!(cpu.len(), 5);
    assert!(cpu.keys().eq(placed.keys()));
    let scale = cpu.values().fold(0.0f64, |most, rating| most.max(rating.abs()));
    for (id, rating) in &cpu {
        assert!(
            (placed[id] - rating).abs() <= 1e-4 * scale,
            "{id}: {} on the device, not {rating}",
            placed[id]
        );
    }

    // What the device encodes is what the CPU encodes, so that the CPU's ratings are the same to the bit.
    let encode = ["encode", "--config", "config.json", "--data", "data/five.csv", "--device", "emulated"];
    work.succeed(&[&encode[..], &["--out", "cache"]].concat());
    let score = ["score", "--config", "config.json", "--checkpoint", released.to_str().unwrap()];
    let rest = ["--data", "data/five.csv", "--batch", "3", "--out", "cached.csv", "--set", "fp16=0"];
    work.succeed(&[&score[..], &rest, &["--set", "token_cache=cache"]].concat());
    assert_eq!(work.ratings("cached.csv"), cpu);
}
