//! Sets that differ from the copies, made of them: the tests of a process of its own run them, as `ALCHEMIST_FIXTURES` has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::weights::{Value as Stored, Weights, write_torch};
use serde_json::{Value, json};

use super::named_root;

fn copies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Copies a set, but for the files that end so.
fn copy(to: &Path, name: &str, without: &[&str]) -> PathBuf {
    let folder = to.join(name);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(copies().join(name)).unwrap().flatten() {
        let file = entry.file_name().into_string().unwrap();
        if !without.iter().any(|end| file.ends_with(end)) {
            fs::copy(entry.path(), folder.join(file)).unwrap();
        }
    }
    folder
}

fn change(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

/// Leaves tensors out of a safetensors file, and keeps the first `samples` of those whose first dimension is the batch's.
fn reduce(path: &Path, batch: usize, samples: usize, without: &[&str]) {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file.tensors().into_iter().filter(|(name, _)| !without.contains(&name.as_str()));
    let views = kept.map(|(name, view)| {
        let mut shape = view.shape().to_vec();
        let mut data = view.data();
        if shape.first() == Some(&batch) {
            data = &data[..data.len() / batch * samples];
            shape[0] = samples;
        }
        (name, safetensors::tensor::TensorView::new(view.dtype(), shape, data).unwrap())
    });
    let written = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
    fs::write(path, written).unwrap();
}

/// What the copy's checkpoint says of its trainer.
fn config() -> Stored {
    let manifest: Value =
        serde_json::from_slice(&fs::read(copies().join("ar_ckpt/manifest.json")).unwrap()).unwrap();
    fn stored(value: &Value) -> Stored {
        match value {
            Value::Bool(value) => Stored::Bool(*value),
            Value::Array(items) => Stored::Tuple(items.iter().map(stored).collect()),
            value => value.as_i64().map_or(Stored::Float(value.as_f64().unwrap_or_default()), Stored::Int),
        }
    }
    let items = manifest["trainer_config"].as_object().unwrap().iter();
    Stored::Dict(items.map(|(key, value)| (key.clone(), stored(value))).collect())
}

/// Runs tests of this program on a folder of sets; whether they pass, and what they say.
fn run(sets: &Path, tests: &[&str]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("ALCHEMIST_FIXTURES", sets).args(["--exact", "--nocapture", "--test-threads=1"]).args(tests);
    let output = command.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), said)
}

#[track_caller]
fn passes(sets: &Path, tests: &[&str], says: &[&str]) {
    let (passed, said) = run(sets, tests);
    assert!(passed, "{said}");
    assert!(said.contains(&format!("{} passed", tests.len())), "{said}");
    for part in says {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
}

/// A checkpoint with a proxy, of other sizes than the rater, is loaded; without anything else in its folder, too.
#[test]
fn a_checkpoint_with_a_proxy() {
    if named_root().is_some() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let folder = copy(work.path(), "ar_ckpt", &[".pth", "io.safetensors"]);
    let rater = Weights::open(&copies().join("ar_ckpt/ar-ckpt-ep0.pth")).unwrap();
    let rater = rater.within("trainer.varRater_wo_ddp");
    let proxy = Weights::open(&copies().join("proxy_tiny/weights.safetensors")).unwrap();
    let state = |weights: &Weights| {
        let tensors = weights.payloads().unwrap().into_iter();
        Stored::Ordered(tensors.map(|(name, payload)| (name, Stored::Tensor(payload))).collect())
    };
    let named = |name: &str, value: Stored| (name.to_owned(), value);
    let trainer = Stored::Dict(vec![
        named("config", config()),
        named("var_wo_ddp", state(&proxy)),
        named("varRater_wo_ddp", state(&rater)),
    ]);
    let checkpoint = Stored::Dict(vec![
        named("epoch", Stored::Int(1)),
        named("iter", Stored::Int(0)),
        named("trainer", trainer),
    ]);
    write_torch(&folder.join("ar-ckpt-ep0.pth"), &checkpoint).unwrap();
    let tests = [
        "released::a_released_rater_gives_the_released_scores",
        "released::a_released_proxy_is_loaded_where_there_is_one",
        "weights::the_raters_checkpoint",
    ];
    let says = ["tensors of a proxy are the file's", "skipped: it lacks io.safetensors"];
    passes(work.path(), &tests, &says);
}

/// Batches of another size, no gradients, no tensor before clamping, a manifest that tells less.
#[test]
fn sets_that_hold_less() {
    if named_root().is_some() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    for name in ["proxy_tiny", "rater_tiny"] {
        let folder = copy(work.path(), name, &["grads.safetensors"]);
        let inputs = folder.join("inputs.safetensors");
        // The rater's scores are of the whole batch.
        if name == "proxy_tiny" {
            reduce(&inputs, 4, 2, &[]);
            reduce(&folder.join("outputs.safetensors"), 4, 2, &["fixedcross_logits"]);
        }
        change(&folder, |manifest| {
            manifest["config"] = json!({
                "patch_nums": manifest["config"]["patch_nums"], "V": manifest["config"]["V"],
                "rope_theta": manifest["config"]["rope_theta"], "rope_norm": manifest["config"]["rope_norm"],
            })
        });
    }
    let folder = copy(work.path(), "vqvae_tiny", &[]);
    reduce(&folder.join("io.safetensors"), 0, 0, &["decoder_raw"]);
    fs::create_dir(work.path().join("rater_train_none")).unwrap();
    fs::write(work.path().join("rater_train_none/manifest.json"), "{}").unwrap();
    let tests = [
        "proxy_matches_the_released_code",
        "rater_matches_the_released_code",
        "vqvae::vqvae_matches_the_released_code",
        "training::training_steps_match_the_released_code",
        "schedules::sampler_matches_the_released_code",
    ];
    let says = [
        "proxy_tiny               skipped: it lacks logits, default cross-attention",
        "gradients of the mean loss, the first of",
        "gradients of the score, the first of",
        "vqvae_tiny               skipped: it lacks decoder_raw",
        "rater_train_none         skipped: it lacks batches.safetensors",
        "sampler.json             skipped",
        "loss per token ",
        "image from codes",
    ];
    passes(work.path(), &tests, &says);
}

/// The limits of the steps follow the manifest: its own noise where it tells that, else a fixed one; f64 is held to f64.
#[test]
fn steps_are_held_to_the_manifests_own_noise() {
    // Other sets' steps in f64 run on the CPU alone; the set of the repository runs on every device.
    if std::env::var("ALCHEMIST_DEVICE").is_ok_and(|device| device != "cpu") {
        return;
    }
    if named_root().is_some() {
        return;
    }
    const TEST: [&str; 1] = ["training::training_steps_match_the_released_code"];
    let with = |edit: &dyn Fn(&mut Value)| {
        let work = tempfile::tempdir().unwrap();
        copy(work.path(), "rater_tiny", &["grads.safetensors", "inputs.safetensors"]);
        copy(work.path(), "proxy_tiny", &["grads.safetensors", "inputs.safetensors"]);
        let folder = copy(work.path(), "rater_train_tiny", &[]);
        change(&folder, |manifest| {
            for key in ["steps_rater_reg", "steps_fixVar", "f32_vs_f64_final_rater_max_abs"] {
                manifest.as_object_mut().unwrap().remove(key);
            }
            // Two steps are enough, and the final weights are of all.
            for key in ["steps", "steps_f64"] {
                manifest[key].as_array_mut().unwrap().truncate(2);
            }
            manifest.as_object_mut().unwrap().remove("f32_vs_f64_final_proxy_max_abs");
            edit(manifest);
        });
        run(work.path(), &TEST)
    };
    let moved = |manifest: &mut Value, key: &str, factor: f64| {
        let loss = manifest[key][1]["val_loss"].as_f64().unwrap();
        manifest[key][1]["val_loss"] = json!(loss * factor);
    };
    let (passed, said) = with(&|_| {});
    assert!(passed && said.contains("F64") && said.contains("limit 1e-7"), "{said}");
    assert!(said.contains("skipped: it lacks steps_rater_reg"), "{said}");
    // Noise of f32 that is the manifest's own is allowed for, three times; f64 is held none the less.
    let (passed, said) = with(&|manifest| moved(manifest, "steps", 1.0 + 3e-4));
    assert!(passed && said.contains("limit 9e-4"), "{said}");
    let (passed, said) = with(&|manifest| moved(manifest, "steps_f64", 1.0 + 1e-6));
    assert!(!passed && said.contains("F64 (val_loss) is off by"), "{said}");
    // Without figures of f64, the limit is a fixed one.
    let remove = |manifest: &mut Value| drop(manifest.as_object_mut().unwrap().remove("steps_f64"));
    let (passed, said) = with(&|manifest| {
        remove(manifest);
        moved(manifest, "steps", 1.0 + 3e-4);
    });
    assert!(passed && said.contains("limit 5e-4"), "{said}");
    let (passed, said) = with(&|manifest| {
        remove(manifest);
        moved(manifest, "steps", 1.0 + 1e-3);
    });
    assert!(!passed && said.contains("F32 (val_loss) is off by"), "{said}");
}
