//! `fit` and `sample` as a user calls them: the loss falls, a killed run goes on to the bit, parts of the pyramid are trained
//! as the configuration says, images come out, and the caption gain is that of the saved weights.
#![cfg(unix)]

mod common;
mod workplace;

use std::{fs, thread::sleep, time::Duration};

use alchemist_engine::{
    data::{load_image, stack},
    encode::{load_image_tokenizer, load_text_encoder},
    engine::{DType, Tape},
    models::{Mode, Proxy},
    training::{
        checkpoint::{Checkpoint, restore_weights},
        run_directory::RunDirectory,
    },
};
use serde_json::{Value, json};
use workplace::Workplace;

/// How often a run is killed.
const KILLS: usize = 6;

fn workplace() -> Workplace {
    Workplace::new(64, &json!({"depth": 2, "ep": 3, "ls": 0.1, "checkpoint_every": 1}))
}

/// The lines of a run's metrics.
fn metrics(work: &Workplace, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(work.path(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_loss_falls_and_images_come_out() {
    let work = workplace();
    let said = work.succeed(&["fit", "--config", "config.json", "--out", "run", "--set", "ep=8"]);
    assert!(said.contains("64 steps on 64 training records, 16 for validation (0 skipped)"), "{said}");
    let measured: Vec<f64> =
        metrics(&work, "run").iter().filter_map(|line| line["validation_loss"].as_f64()).collect();
    assert_eq!(measured.len(), 8, "one measurement per epoch");
    // A guess among 32 codes costs ln 32; few images teach little of others.
    assert!(measured.iter().all(|loss| *loss < f64::from(32).ln()), "{measured:?}");
    let trained: Vec<f64> =
        metrics(&work, "run").iter().map(|line| line["train_loss"].as_f64().unwrap()).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&trained[..8]), mean(&trained[56..]));
    assert!(last < first - 0.2, "the mean loss of an epoch went from {first} to {last}");

    let draw = |out: &str, more: &[&str]| {
        let arguments =
            ["sample", "--checkpoint", "run", "--prompt", "a red circle", "--prompt", "", "--out", out];
        work.succeed(&[&arguments[..], more].concat());
        let read = |name: &str| fs::read(work.path(out).join(name)).unwrap();
        [read("0000_00.png"), read("0001_00.png"), read("samples.csv"), read("grid.png")]
    };
    let first = draw("one", &[]);
    assert!(first == draw("again", &["--batch", "1", "--threads", "1"]), "the batch changes an image");
    assert!(first[0] != draw("other", &["--seed", "1"])[0], "the seed changes nothing");
    let table = String::from_utf8(first[2].clone()).unwrap();
    assert_eq!(table, "file,prompt,number\n0000_00.png,a red circle,0\n0001_00.png,,0\n");
    let said = work.refused(&["sample", "--checkpoint", "run", "--prompt", "x", "--out", "one"], &[]);
    assert!(said.contains("already exists"), "{said}");
    let said = work.refused(&["sample", "--checkpoint", "run", "--out", "none"], &[]);
    assert!(said.contains("no captions; pass --prompt TEXT"), "{said}");
    let said = work
        .refused(&["sample", "--checkpoint", "run", "--prompt", "x", "--out", "none", "--top-p", "2"], &[]);
    assert!(said.contains("top-p must be between 0 and 1"), "{said}");
    let said =
        work.refused(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "r.csv"], &[]);
    assert!(said.contains("contains a model trained by `fit`, not a rater"), "{said}");
}

/// The mean gain of the validation captions under the saved model: own caption against those of the records
/// ⌈k·N/5⌉ further on, each scale counting the same.
fn caption_gain(work: &Workplace, run: &str) -> f64 {
    let run = work.path(run);
    let config = RunDirectory::config_of(&run).unwrap();
    let tokenizer = load_image_tokenizer(&run.join("image_tokenizer")).unwrap();
    let text = load_text_encoder(&run.join("text_encoder")).unwrap();
    let quantizer = tokenizer.quantizer();
    let backbone = config.proxy_backbone(quantizer.vocabulary(), quantizer.channels(), text.channels());
    let (proxy, mut parameters) = Proxy::new(&backbone, DType::F32, 0).unwrap();
    let newest = Checkpoint::newest(&run.join("checkpoints")).unwrap().unwrap();
    let weights = common::read_tensors(&newest.join("model.safetensors"));
    restore_weights(&newest, &weights, &mut parameters).unwrap();
    let preprocess = config.preprocess(tokenizer.image_side());
    let corpus = config.open_corpus(&work.path("data/validation.csv")).unwrap();
    let records: Vec<_> = corpus.map(Result::unwrap).collect();
    let mut gains = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let image = load_image(&record.image, &preprocess).unwrap();
        let codes = tokenizer.encode(&stack(&[image]).unwrap()).unwrap();
        let input = quantizer.input(&codes).unwrap();
        let loss = |caption: &str| {
            let states = text.encode(&[caption]).unwrap();
            let found =
                proxy.loss(&mut Tape::inference(&parameters), &input, &states, &codes, 0.0, Mode::Evaluate);
            let tokens = found.unwrap().token_loss.to_f64_vec().unwrap();
            let mut rest = tokens.as_slice();
            let means = quantizer.patch_nums().iter().map(|side| {
                let (map, finer) = rest.split_at(side * side);
                rest = finer;
                map.iter().sum::<f64>() / map.len() as f64
            });
            means.sum::<f64>() / quantizer.patch_nums().len() as f64
        };
        for number in 1..5 {
            let other = &records[(index + (number * records.len()).div_ceil(5)) % records.len()];
            if other.caption.to_lowercase() != record.caption.to_lowercase() {
                gains.push(loss(&other.caption) - loss(&record.caption));
            }
        }
    }
    gains.iter().sum::<f64>() / gains.len() as f64
}

#[test]
fn the_caption_gain_is_that_of_the_saved_model() {
    let work = workplace();
    let printed = |said: &str| {
        let (_, gain) = said.split_once("caption gain ").unwrap_or_else(|| panic!("{said}"));
        gain.lines().next().unwrap().parse::<f64>().unwrap()
    };
    let said = work.succeed(&["fit", "--config", "config.json", "--out", "run", "--set", "ep=8"]);
    let gain = caption_gain(&work, "run");
    assert!(gain.abs() > 1e-3 && (printed(&said) - gain).abs() < 1e-4, "{gain}: {said}");
    // A complete run prints it again, and captions that are all the same have none.
    let again = ["fit", "--config", "config.json", "--out", "run", "--resume"];
    assert!((printed(&work.succeed(&[&again[..], &["--set", "ep=8"]].concat())) - gain).abs() < 1e-4);
    let table = fs::read_to_string(work.path("data/validation.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().unwrap().clone();
    let caption = header.iter().position(|name| name == "caption").unwrap();
    let mut same = csv::Writer::from_path(work.path("data/same.csv")).unwrap();
    same.write_record(&header).unwrap();
    for row in reader.records() {
        let row = row.unwrap();
        let fields =
            row.iter().enumerate().map(|(at, field)| if at == caption { "A circle!" } else { field });
        same.write_record(fields).unwrap();
    }
    same.flush().unwrap();
    let plain = ["fit", "--config", "config.json", "--out", "same", "--set", "ep=1"];
    let said = work.succeed(&[&plain[..], &["--validation", "data/same.csv"]].concat());
    assert!(said.contains("validation: loss") && !said.contains("caption gain"), "{said}");
}

#[test]
fn a_killed_fit_goes_on_to_the_bit() {
    let work = workplace();
    for (name, sets) in [("plain", [].as_slice()), ("progressive", &["--set", "pg=0.6", "--set", "pg0=0"])] {
        let arguments =
            |out: &'static str| [&["fit", "--config", "config.json", "--out", out], sets].concat();
        let (whole, killed) = if name == "plain" { ("whole", "killed") } else { ("whole-pg", "killed-pg") };
        work.succeed(&arguments(whole));
        let mut kills = 0;
        for attempt in 0.. {
            let again = [arguments(killed), vec!["--resume"]].concat();
            let mut child = work.program(&again).spawn().unwrap();
            sleep(Duration::from_millis(30 + 45 * attempt % 400));
            let running = child.try_wait().unwrap().is_none();
            if !running || kills == KILLS {
                assert!(child.wait().unwrap().success());
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        assert!(kills > 0, "the run was never killed");
        let (expected, found) = (work.result(whole), work.result(killed));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (file, bytes) in &found {
            assert!(bytes == &expected[file], "{name}: {file} differs after {kills} kills");
        }
    }
}

#[test]
fn parts_of_the_pyramid_are_trained_as_configured() {
    let work = workplace();
    let run = |out: &str, sets: &[&str]| {
        let mut arguments = vec!["fit", "--config", "config.json", "--out", out];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        work.succeed(&arguments);
        metrics(&work, out)
    };
    let whole = run("all", &[]);
    let dropped = run("dropped", &["drop_scale_length=9"]);
    let progressive = run("progressive", &["pg=0.9", "pg0=0"]);
    let of = |lines: &[Value], at: usize, key: &str| lines[at][key].as_f64().unwrap();
    // The first step of progressive training sees the first scale alone: one token, so its tail is all of it.
    assert_eq!(of(&progressive, 0, "train_loss"), of(&progressive, 0, "train_tail_loss"));
    assert!(of(&whole, 0, "train_loss") != of(&whole, 0, "train_tail_loss"));
    // Its loss is as released a sum over tokens divided by the number of all of them.
    let (seen, descended) = (of(&progressive, 0, "train_loss"), of(&progressive, 0, "descended_loss"));
    assert!((descended * 14.0 / seen - 1.0).abs() < 0.2, "{descended} of {seen}");
    for (name, lines) in [("dropped", &dropped), ("progressive", &progressive)] {
        assert!(of(lines, 1, "train_loss") != of(&whole, 1, "train_loss"), "{name} trains on all tokens");
        let last = lines.last().unwrap();
        assert!(last["validation_loss"].as_f64().unwrap() < f64::from(32).ln() + 0.2, "{name}: {last}");
    }
    let refused = |sets: &[&str]| {
        let mut arguments = vec!["fit", "--config", "config.json", "--out", "refused"];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        arguments.push("--overwrite");
        work.refused(&arguments, &[])
    };
    let said = refused(&["drop_scale_length=5"]);
    assert!(said.contains("must be between 6 and 14"), "{said}");
    let said = refused(&["pg=0.5", "pg0=3"]);
    assert!(said.contains("pg0") && said.contains("scale 2"), "{said}");
    let said = refused(&["pg=0.5", "drop_scale_length=9"]);
    assert!(said.contains("contradicts pg"), "{said}");
    let said = work.refused(&["train", "--config", "config.json", "--out", "rater", "--set", "pg=0.5"], &[]);
    assert!(said.contains("which only `fit` supports"), "{said}");
}
