//! Schedules and parameter groups as released; checkpoints and run directories that survive what befalls them.

use std::{collections::BTreeMap, fs, path::Path};

use alchemist_engine::{
    config::Config,
    engine::{Parameters, Tensor},
    rater::samples::SampleRecords,
    training::{
        checkpoint::{self, Checkpoint, CheckpointState, Tensors},
        optimizer::{AdamW, AdamWSettings},
        parameter_groups::decays,
        run_directory::{Existing, RunDirectory},
        schedule::Schedule,
    },
};
use serde_json::{Value, json};

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn schedules_equal_the_released_ones() {
    let fixture = read_json("tests/fixtures/lr_schedule.json");
    let argument = |name: &str| fixture["args"][name].as_f64().unwrap();
    let mut compared = 0;
    for (name, rows) in fixture["schedules"].as_object().unwrap() {
        let schedule = Schedule {
            shape: name.parse().unwrap(),
            peak: argument("peak_lr"),
            warmup: argument("wp_it"),
            start: argument("wp0"),
            end: argument("wpe"),
            weight_decay: argument("wd"),
            weight_decay_end: argument("wd_end"),
            iterations: fixture["args"]["max_it"].as_u64().unwrap(),
        };
        for row in rows.as_array().unwrap() {
            let rates = schedule.at(row[0].as_u64().unwrap());
            for (ours, released) in [
                (rates.learning_rate, row[1].as_f64().unwrap()),
                (rates.weight_decay, row[2].as_f64().unwrap()),
            ] {
                assert!(
                    ((ours - released) / released).abs() <= 1e-12,
                    "{name} at {}: {ours} {released}",
                    row[0]
                );
                compared += 1;
            }
        }
    }
    assert!(compared >= 150, "only {compared} values compared");
}

#[test]
fn the_groups_of_weight_decay_are_the_released_ones() {
    let groups = &read_json("tests/fixtures/rater_train_tiny/manifest.json")["rater_weight_groups"];
    let mut shapes = safetensors_shapes("tests/fixtures/rater_train_tiny/final_rater.safetensors");
    // The one weight that training never moves is left out there.
    shapes.entry("class_emb.weight".to_owned()).or_insert_with(|| vec![1001, 128]);
    let mut compared = 0;
    for (group, expected) in [("decay", true), ("no_decay", false)] {
        for name in groups[group].as_array().unwrap() {
            let name = name.as_str().unwrap();
            // The unused table of classes is in the groups, but the fixture leaves its numbers out.
            let shape = if name == "class_emb.weight" { vec![1001, 128] } else { shapes[name].clone() };
            assert_eq!(decays(name, &shape), expected, "{name}");
            compared += 1;
        }
    }
    assert!(compared > 40, "only {compared} names compared");
}

fn safetensors_shapes(path: &str) -> BTreeMap<String, Vec<usize>> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect()
}

fn network(scale: f32) -> Parameters {
    let mut parameters = Parameters::default();
    for (name, shape) in [("word_embed.weight", vec![2, 3]), ("word_embed.bias", vec![2])] {
        let values = (0..shape.iter().product()).map(|at: usize| at as f32 * scale).collect();
        parameters.push(name, Tensor::new::<f32>(&shape, values).unwrap()).unwrap();
    }
    parameters
}

fn state(step: u64) -> CheckpointState {
    CheckpointState {
        rater_only_steps: 0,
        step,
        epoch: 1,
        upper_level_weight: 0.97,
        seed: 7,
        proxy_optimizer_steps: step,
        rater_optimizer_steps: step,
        reference_optimizer_steps: None,
        proxy_loss_scale: None,
        reference_loss_scale: None,
        rater_loss_scale: Some(alchemist_engine::training::loss_scale::LossScale::default()),
        config: "c".to_owned(),
        image_tokenizer: "t".to_owned(),
        text_encoder: "e".to_owned(),
        data: "d".to_owned(),
        version: "0".to_owned(),
        git_hash: "g".to_owned(),
    }
}

fn checkpoint(step: u64) -> Checkpoint {
    let parameters = network(step as f32);
    let optimizer = AdamW::new(&parameters, decays, AdamWSettings::default());
    let weights = checkpoint::weights(&parameters).unwrap();
    let moments = checkpoint::moments("proxy", &parameters, &optimizer).unwrap();
    // Numbers, as no number is like no other.
    let samples = SampleRecords::new(0, 0).tensors().unwrap();
    Checkpoint {
        proxy: weights.clone(),
        rater: weights,
        optimizer: moments,
        reference: None,
        samples,
        state: state(step),
    }
}

#[test]
fn a_checkpoint_comes_back_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Checkpoint::newest(&folder.path().join("missing")).unwrap(), None);
    for step in 1..=5 {
        checkpoint(step).save(folder.path(), Some(2)).unwrap();
    }
    let newest = Checkpoint::newest(folder.path()).unwrap().unwrap();
    assert!(newest.ends_with("step-00000005"));
    assert_eq!(Checkpoint::load(&newest).unwrap(), checkpoint(5));
    assert_eq!(Checkpoint::load_rater(&newest).unwrap().1, state(5));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // Written again with the same content, the bytes are the same.
    let before = fs::read(newest.join("proxy.safetensors")).unwrap();
    checkpoint(5).save(folder.path(), Some(2)).unwrap();
    assert_eq!(fs::read(newest.join("proxy.safetensors")).unwrap(), before);

    let mut parameters = network(0.0);
    checkpoint::restore_weights(&newest, &checkpoint(5).proxy, &mut parameters).unwrap();
    assert_eq!(parameters, network(5.0));
    let mut optimizer = AdamW::new(&parameters, decays, AdamWSettings::default());
    let moments = &checkpoint(5).optimizer;
    checkpoint::restore_moments(&newest, "proxy", moments, &parameters, &mut optimizer).unwrap();
    let error =
        checkpoint::restore_moments(&newest, "rater", moments, &parameters, &mut optimizer).unwrap_err();
    assert!(error.to_string().contains("rater/first/word_embed.weight is missing"), "{error}");
}

#[test]
fn damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoint(1).save(folder.path(), None).unwrap();
    let file = path.join("rater.safetensors");
    let whole = fs::read(&file).unwrap();

    let refusal = || Checkpoint::load(&path).unwrap_err().to_string();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(refusal().contains("truncated"), "{}", refusal());
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&file, &flipped).unwrap();
    assert!(refusal().contains("damaged"), "{}", refusal());
    fs::remove_file(&file).unwrap();
    assert!(refusal().contains("cannot read"), "{}", refusal());
    fs::write(&file, &whole).unwrap();
    Checkpoint::load(&path).unwrap();
    fs::write(path.join("state.json"), "{\"format\": 1").unwrap();
    assert!(refusal().contains("not the state"), "{}", refusal());
    fs::write(path.join("state.json"), "{\"format\": 99}").unwrap();
    assert!(refusal().contains("format 99"), "{}", refusal());
    // Of an older version: read, but not gone on from.
    let state = path.join("state.json");
    checkpoint(1).save(folder.path(), None).unwrap();
    let mut described = read_json(state.to_str().unwrap());
    described["format"] = json!(2);
    described.as_object_mut().unwrap().remove("sha256").unwrap();
    fs::write(&state, described.to_string()).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(1));
    described["format"] = json!(3);
    fs::write(&state, described.to_string()).unwrap();
    assert!(refusal().contains("state.json: is damaged"), "{}", refusal());
}

#[test]
fn tensors_that_do_not_fit_are_all_named() {
    let mut tensors: Tensors = checkpoint::weights(&network(1.0)).unwrap();
    let weight = tensors.remove("word_embed.weight").unwrap();
    tensors.insert("word_embed.weights".to_owned(), weight);
    tensors.insert("word_embed.bias".to_owned(), Tensor::new(&[3], vec![0f32; 3]).unwrap());
    let mut parameters = network(2.0);
    let error =
        checkpoint::restore_weights(Path::new("a"), &tensors, &mut parameters).unwrap_err().to_string();
    for part in [
        "word_embed.weight is missing (there is word_embed.weights)",
        "word_embed.bias has shape [3] instead of [2]",
        "word_embed.weights is not part of the network",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(parameters, network(2.0), "nothing may have changed");
    let error = checkpoint::expect_fingerprint(Path::new("a"), "image tokenizer", "aa", "bb").unwrap_err();
    assert!(error.to_string().contains("another image tokenizer"), "{error}");
}

#[test]
fn a_run_is_not_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let config = Config::parse("test", "{}", &[]).unwrap();
    let run = RunDirectory::create(&path, &config, Existing::Refuse).unwrap();
    let error = RunDirectory::open(&path).unwrap_err().to_string();
    assert!(error.contains("is being written by `train/fit` (process "), "{error}");
    run.record_start(&config, &["train".to_owned()], 0).unwrap();
    run.record_start(&config, &["train".to_owned()], 7).unwrap();
    drop(run);
    let provenance = read_json(path.join("provenance.json").to_str().unwrap());
    assert_eq!(provenance[1]["step"], json!(7));
    assert_eq!(provenance[0]["seed"], json!(0));

    let error = RunDirectory::create(&path, &config, Existing::Refuse).unwrap_err().to_string();
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
    let (run, held) = RunDirectory::open(&path).unwrap();
    assert_eq!(held, config);
    let leftover = run.checkpoints().join(".unfinished-a1b2c3d4e5f6");
    fs::create_dir(&leftover).unwrap();
    drop(run);
    drop(RunDirectory::open(&path).unwrap());
    assert!(!leftover.exists());
    fs::write(path.join("metrics.jsonl"), "{}").unwrap();
    // Until the new run takes its first step, the old one is there.
    let new = RunDirectory::create(&path, &config, Existing::Overwrite).unwrap();
    assert!(path.join("metrics.jsonl").exists());
    drop(new);
    assert!(path.join("metrics.jsonl").exists() && path.join("provenance.json").exists());
    let new = RunDirectory::create(&path, &config, Existing::Overwrite).unwrap();
    new.record_start(&config, &["train".to_owned()], 0).unwrap();
    assert!(!path.join("metrics.jsonl").exists() && new.checkpoints().exists());
    new.complete().unwrap();
    drop(new);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::remove_dir_all(&path).unwrap();
    drop(RunDirectory::create(&path, &config, Existing::Refuse).unwrap());
    assert!(!path.exists(), "a run that was refused before its first step leaves nothing");
    fs::create_dir(&path).unwrap();
    drop(RunDirectory::create(&path, &config, Existing::Refuse).unwrap());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the folder was there before");
    let run = RunDirectory::create(&path, &config, Existing::Refuse).unwrap();
    fs::write(run.failed(), "id,origin,reason\n").unwrap();
    drop(run);

    // It has not begun: nothing is lost by another.
    fs::create_dir(path.join("image_tokenizer")).unwrap();
    let seed = Config::parse("test", "{}", &["seed=1".to_owned()]).unwrap();
    let run = RunDirectory::create(&path, &seed, Existing::Refuse).unwrap();
    assert!(!path.join("image_tokenizer").exists());
    // A configuration is replaced by a start, not before.
    let (wanted, held) =
        (Config::parse("test", "{}", &["seed=1".to_owned(), "workers=9".to_owned()]).unwrap(), seed);
    assert_eq!(RunDirectory::config_of(&path).unwrap(), held);
    run.record_start(&wanted, &["train".to_owned()], 3).unwrap();
    assert_eq!(RunDirectory::config_of(&path).unwrap(), wanted);
    drop(run);
    // Somebody's file lies in a run that has not begun, and a folder of another program has a config.json.
    let notes = folder.path().join("notes");
    let run = RunDirectory::create(&notes, &config, Existing::Refuse).unwrap();
    fs::write(notes.join("notes.txt"), "").unwrap();
    drop(run);
    let error = RunDirectory::create(&notes, &config, Existing::Refuse).unwrap_err().to_string();
    assert!(error.contains("already contains a run"), "{error}");
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{\"model_type\": \"clip\"}").unwrap();
    for existing in [Existing::Refuse, Existing::Overwrite] {
        let error = RunDirectory::create(&model, &config, existing).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }
    assert!(model.join("config.json").exists() && notes.join("notes.txt").exists());

    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let error = RunDirectory::open(&other).unwrap_err().to_string();
    assert!(error.contains("contains no run"), "{error}");
    fs::write(other.join("thesis.tex"), "").unwrap();
    for existing in [Existing::Refuse, Existing::Overwrite] {
        let error = RunDirectory::create(&other, &config, existing).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }
    assert!(other.join("thesis.tex").exists());
    let error = RunDirectory::create(&other.join("thesis.tex/run"), &config, Existing::Refuse)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot create"), "{error}");
}

#[test]
fn metrics_go_on_where_the_checkpoint_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::parse("test", "{}", &[]).unwrap();
    let run = RunDirectory::create(&folder.path().join("run"), &config, Existing::Refuse).unwrap();
    let path = run.path().join("metrics.jsonl");
    let mut journal = run.journal(None).unwrap();
    let mut kept = None;
    for step in 0..5 {
        if step == 3 {
            kept = Some(journal.sync().unwrap());
        }
        journal.append(&json!({"step": step, "loss": 0.5})).unwrap();
    }
    let all = journal.sync().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    // What was written after the checkpoint is written again.
    let mut journal = run.journal(kept.as_ref()).unwrap();
    for step in 3..5 {
        journal.append(&json!({"step": step, "loss": 0.5})).unwrap();
    }
    assert_eq!(journal.sync().unwrap(), all);
    assert_eq!(fs::read(&path).unwrap(), whole);
    // What was written before it must be what it was.
    let refused = || run.journal(kept.as_ref()).unwrap_err().to_string();
    let mut flipped = whole.clone();
    flipped[20] ^= 4;
    fs::write(&path, flipped).unwrap();
    assert!(refused().contains("metrics.jsonl: is damaged"), "{}", refused());
    fs::write(&path, &whole[..30]).unwrap();
    assert!(refused().contains("metrics.jsonl: is damaged"), "{}", refused());
    fs::remove_file(&path).unwrap();
    assert!(refused().contains("metrics.jsonl: is missing"), "{}", refused());
}

#[test]
fn no_bit_of_what_says_how_a_run_was_started_can_be_changed_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::parse("test", "{}", &[]).unwrap();
    let run = RunDirectory::create(&folder.path().join("run"), &config, Existing::Refuse).unwrap();
    let start = || run.record_start(&config, &["train".to_owned()], 0);
    start().unwrap();
    start().unwrap();
    let path = run.path().join("provenance.json");
    let whole = fs::read(&path).unwrap();
    let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    for bit in (0..8 * whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Between the values nothing depends on what kind of space there is.
        if value(&bytes) == value(&whole) {
            continue;
        }
        fs::write(&path, bytes).unwrap();
        let refused = start().unwrap_err().to_string();
        assert!(refused.contains("provenance.json"), "{refused}");
    }
    fs::write(&path, whole).unwrap();
    start().unwrap();
}
