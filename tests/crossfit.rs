//! The rule `gain`: cross-fitted proxies evaluate captions. Their numbers are those of the saved weights, near-duplicates
//! share a fold, and the result depends on neither interruptions nor threads.
#![cfg(unix)]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use alchemist_engine::{
    data::{
        corruption::{Flaw, FlawShares},
        load_image, stack,
        synthetic::{DataSetSettings, write_data_set},
    },
    encode::{load_image_tokenizer, load_text_encoder},
    engine::{Accumulate, DType, Purpose, Random, Tape, Tensor},
    models::{Mode, Proxy},
    training::{
        checkpoint::{Checkpoint, restore_weights},
        run_directory::RunDirectory,
    },
};
use approx::assert_relative_eq;
use serde_json::json;
use tempfile::TempDir;

/// The column of the record that a duplicate is a copy of.
const SOURCE: &str = "duplicate_of";

/// A row of a table by column.
type Row = HashMap<String, String>;

/// A folder with a corpus, of which a fifth are duplicates, and a configuration.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shares = FlawShares::of(&[
            (Flaw::Duplicate, 0.1),
            (Flaw::FlippedDuplicate, 0.1),
            (Flaw::RecompressedDuplicate, 0.1),
            (Flaw::WrongCaption, 0.1),
        ]);
        let settings = DataSetSettings { train: 80, validation: 16, side: 24, shares, seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv},
            "depth": 1,
            "raterDepth": 1,
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 80},
            "text_encoder": {"tokens": 24, "channels": 16},
            "bs": 8,
            "tlr": 1e-3,
            "rule": "gain",
            "crossfit": {"epochs": 6, "patience": 2, "captions": 4},
            "rater_only_epochs": 2,
            "workers": 2,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"));
        command.current_dir(self.folder.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn finish(&self, arguments: &[&str]) -> String {
        let output = self.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn train(&self, out: &str, further: &[&str]) -> String {
        self.finish(&[&["train", "--config", "config.json", "--out", out], further].concat())
    }

    /// One line on stderr that begins with `error:` and holds all of these words.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let Output { status, stderr, .. } = self.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{errors}");
        for word in words {
            assert!(errors.contains(word), "`{word}` is missing in: {errors}");
        }
    }

    /// The files that a run's result consists of.
    fn result(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let newest = Checkpoint::newest(&self.path(run).join("checkpoints")).unwrap().unwrap();
        let mut files = vec![self.path(run).join("metrics.jsonl"), self.path(run).join("gains.csv")];
        files.extend(fs::read_dir(newest).unwrap().map(|entry| entry.unwrap().path()));
        for fold in ["0", "1"] {
            let folder = self.path(run).join("folds").join(fold);
            files.push(self.newest_of(&folder).join("best.safetensors"));
        }
        files
            .into_iter()
            .map(|file| {
                (file.strip_prefix(self.path(run)).unwrap().display().to_string(), fs::read(file).unwrap())
            })
            .collect()
    }

    fn newest_of(&self, fold: &Path) -> PathBuf {
        Checkpoint::newest(fold).unwrap().unwrap()
    }
}

fn rows(path: &Path) -> Vec<Row> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header = reader.headers().unwrap().clone();
    let row = |record: csv::StringRecord| {
        header.iter().map(str::to_owned).zip(record.iter().map(str::to_owned)).collect()
    };
    reader.records().map(|record| row(record.unwrap())).collect()
}

fn number(row: &Row, column: &str) -> f64 {
    row[column].parse().unwrap()
}

/// The mean over the scales of the mean over their tokens.
fn mean_over_scales(tokens: &[f64], sides: &[usize]) -> f64 {
    let mut rest = tokens;
    let mut sum = 0.0;
    for side in sides {
        let (map, finer) = rest.split_at(side * side);
        sum += map.iter().sum::<f64>() / map.len() as f64;
        rest = finer;
    }
    assert!(rest.is_empty());
    sum / sides.len() as f64
}

/// What a proxy measures of a record.
struct Seen {
    own: f64,
    empty: f64,
    norm: f64,
    /// The losses with the captions of the fold's bank, other than its own.
    others: Vec<f64>,
}

/// The captions of the bank of a fold.
fn bank(work: &Workplace, run: &str, fold: &str) -> Vec<String> {
    let state = work.newest_of(&work.path(run).join("folds").join(fold)).join("state.json");
    let bytes = fs::read(state).unwrap();
    let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>();
    serde_json::from_value(values.next().unwrap().unwrap()["state"]["bank"].clone()).unwrap()
}

/// The losses of every record of a table with its own, the empty and the given other captions, and the norm of its
/// gradient, under the best weights of the fold's proxy.
fn measured(
    work: &Workplace,
    run: &str,
    table: &str,
    fold: &str,
    others: &[String],
) -> HashMap<String, Seen> {
    let run = work.path(run);
    let config = RunDirectory::config_of(&run).unwrap();
    let tokenizer = load_image_tokenizer(&run.join("image_tokenizer")).unwrap();
    let text = load_text_encoder(&run.join("text_encoder")).unwrap();
    let quantizer = tokenizer.quantizer();
    let backbone = config.proxy_backbone(quantizer.vocabulary(), quantizer.channels(), text.channels());
    let (proxy, mut parameters) = Proxy::new(&backbone, DType::F32, 0).unwrap();
    let folder = work.newest_of(&run.join("folds").join(fold));
    let weights = common::read_tensors(&folder.join("best.safetensors"));
    restore_weights(&folder, &weights, &mut parameters).unwrap();
    let preprocess = config.preprocess(tokenizer.image_side());
    let mut found = HashMap::new();
    for record in config.open_corpus(&work.path(table)).unwrap() {
        let record = record.unwrap();
        let image = load_image(&record.image, &preprocess).unwrap();
        let codes = tokenizer.encode(&stack(&[image]).unwrap()).unwrap();
        let input = quantizer.input(&codes).unwrap();
        let loss = |caption: &str| {
            let states = text.encode(&[caption]).unwrap();
            let mut tape = Tape::inference(&parameters);
            let seen = proxy.loss(&mut tape, &input, &states, &codes, 0.0, Mode::Evaluate).unwrap();
            mean_over_scales(&seen.token_loss.to_f64_vec().unwrap(), quantizer.patch_nums())
        };
        let states = text.encode(&[&*record.caption]).unwrap();
        let mut tape = Tape::new(&parameters);
        let seen = proxy.loss(&mut tape, &input, &states, &codes, 0.0, Mode::Evaluate).unwrap();
        let mut sum = Accumulate::default();
        let seed = Tensor::new(&[1], vec![1.0f32]).unwrap();
        tape.backward(vec![(&seen.sample_loss, seed)], &[], &mut sum).unwrap();
        let numbers = sum.gradients.iter().flatten().flat_map(|gradient| gradient.to_f64_vec().unwrap());
        let norm = numbers.map(|number| number * number).sum::<f64>().sqrt();
        let (own, empty) = (loss(&record.caption), loss(""));
        let others =
            others.iter().filter(|other| **other != record.caption).map(|other| loss(other)).collect();
        found.insert(record.id, Seen { own, empty, norm, others });
    }
    found
}

#[test]
fn gains_are_those_of_the_proxy_that_has_not_seen_the_record() {
    let work = Workplace::new();
    let said = work.train("run", &[]);
    assert!(said.contains("fold 0: ") && said.contains("fold 1: "), "{said}");
    let gains = rows(&work.path("run/gains.csv"));
    let corpus = rows(&work.path("data/train.csv"));
    let ids = |rows: &[Row]| rows.iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&gains), ids(&corpus));
    let evaluated = ["0", "1"].map(|fold| measured(&work, "run", "data/train.csv", fold, &[]));
    for row in &gains {
        let Seen { own, empty, norm, .. } = evaluated[row["fold"].parse::<usize>().unwrap()][&row["id"]];
        assert_relative_eq!(number(row, "loss"), own, max_relative = 1e-5);
        assert_relative_eq!(number(row, "gain_empty"), empty - own, epsilon = 1e-5 * own);
        assert!(number(row, "gain_std") > 0.0);
        assert_relative_eq!(number(row, "gradient_norm"), norm, max_relative = 1e-4);
    }
    // A duplicate is evaluated by a proxy that has seen neither of the two.
    let fold: HashMap<&str, &str> = gains.iter().map(|row| (&*row["id"], &*row["fold"])).collect();
    let duplicates: Vec<&Row> = corpus.iter().filter(|row| row["flaw"].ends_with("duplicate")).collect();
    assert_eq!(duplicates.len(), 24);
    let apart = |row: &&&Row| fold[&*row["id"]] != fold[&*row[SOURCE]];
    let apart: Vec<String> =
        duplicates.iter().filter(apart).map(|row| format!("{} {}", row["id"], row["flaw"])).collect();
    // The codes of a mirrored image are not the mirrored codes, so a few escape with a tokenizer as small as this one.
    assert!(apart.len() <= 2 && apart.iter().all(|one| one.ends_with("flipped_duplicate")), "{apart:?}");
    // Ratings are percentiles of the mean of both gains within the fold.
    for fold in ["0", "1"] {
        let mut members: Vec<[f64; 2]> = gains
            .iter()
            .filter(|row| row["fold"] == fold)
            .map(|row| [number(row, "gain") + number(row, "gain_empty"), number(row, "rating")])
            .collect();
        members.sort_by(|one, other| one[0].total_cmp(&other[0]));
        assert!(members.len() > 20 && members.is_sorted_by(|one, other| one[1] <= other[1]));
        let mean = members.iter().map(|[_, rating]| rating).sum::<f64>() / members.len() as f64;
        assert_relative_eq!(mean, 0.5, epsilon = 1e-9);
    }

    // The gains select, and other commands do not use a proxy that was never trained.
    let subset = ["select", "--ratings", "run/gains.csv", "--data", "data/train.csv", "--keep", "50%"];
    work.finish(&[&subset[..], &["--out", "subset.csv"]].concat());
    assert_eq!(rows(&work.path("subset.csv")).len(), 40);
    let attribute = ["attribute", "--checkpoint", "run", "--data", "data/train.csv"];
    let further = ["--validation", "data/validation.csv", "--out", "attributed.csv"];
    work.refuses(&[&attribute[..], &further].concat(), &["run was trained with the rule gain", "gains.csv"]);
}

/// A copy of the corpus in which one row has another caption.
fn changed(work: &Workplace, id: &str) {
    let mut reader = csv::Reader::from_path(work.path("data/train.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    let at = |name: &str| header.iter().position(|column| column == name).unwrap();
    let mut writer = csv::Writer::from_path(work.path("data/changed.csv")).unwrap();
    writer.write_record(&header).unwrap();
    for row in reader.records() {
        let row = row.unwrap();
        let other = |column: usize| column == at("caption") && &row[at("id")] == id;
        writer
            .write_record(
                row.iter().enumerate().map(
                    |(column, field)| {
                        if other(column) { "something else altogether" } else { field }
                    },
                ),
            )
            .unwrap();
    }
    writer.flush().unwrap();
}

#[test]
fn records_of_the_run_keep_what_was_measured_and_the_proxies_rate_the_others() {
    let work = Workplace::new();
    // So many that every record is compared with all captions of the bank.
    work.train("run", &["--set", "rule=norm-gain", "--set", "crossfit.captions=64"]);
    let score = |data: &str, out: &str, further: &[&str]| -> HashMap<String, f64> {
        let arguments = ["score", "--checkpoint", "run", "--data", data, "--out", out];
        let said = work.finish(&[&arguments[..], further].concat());
        assert!(said.starts_with("80 rows in = 80 scored + 0 failed"), "{said}");
        rows(&work.path(out)).iter().map(|row| (row["id"].clone(), number(row, "rating"))).collect()
    };
    let gains = rows(&work.path("run/gains.csv"));
    let scored = score("data/train.csv", "ratings.csv", &[]);
    for row in &gains {
        assert_eq!(scored[&row["id"]].to_string(), row["rating"]);
    }
    // The rating is the lower of the percentiles of a low norm and of a high gain, ranked again.
    for fold in ["0", "1"] {
        let members: Vec<&Row> = gains.iter().filter(|row| row["fold"] == fold).collect();
        let gain = |row: &Row| number(row, "gain") + number(row, "gain_empty");
        let below = |one: &Row| {
            let norms =
                members.iter().filter(|row| number(row, "gradient_norm") > number(one, "gradient_norm"));
            norms.count().min(members.iter().filter(|row| gain(row) < gain(one)).count())
        };
        let mut ranked: Vec<(usize, f64)> =
            members.iter().map(|row| (below(row), number(row, "rating"))).collect();
        ranked.sort_by(|one, other| one.partial_cmp(other).unwrap());
        assert!(ranked.is_sorted_by(|one, other| one.1 <= other.1), "{ranked:?}");
    }
    // The rater's own numbers are other ones.
    let alone = score("data/train.csv", "alone.csv", &["--by-rater"]);
    assert!(alone.iter().filter(|(id, rating)| scored[*id] != **rating).count() > 70);
    // A record that is not the run's is rated by both proxies, in the same way in any batch.
    let id = gains[7]["id"].as_str();
    changed(&work, id);
    let mixed = score("data/changed.csv", "mixed.csv", &[]);
    for (other, rating) in &mixed {
        assert_eq!(*rating == scored[other], other != id, "{other}");
    }
    let by_fold = ["0", "1"].map(|fold| {
        let members: Vec<&Row> = gains.iter().filter(|row| row["fold"] == fold).collect();
        let found = &measured(&work, "run", "data/changed.csv", fold, &bank(&work, "run", fold))[id];
        let mean = found.others.iter().sum::<f64>() / found.others.len() as f64;
        let gain = mean - found.own + found.empty - found.own;
        let share = |count: usize| count as f64 / members.len() as f64;
        let gain_of = |row: &Row| number(row, "gain") + number(row, "gain_empty");
        let low = |one: f64| {
            share(members.iter().filter(|row| number(row, "gradient_norm") > one).count())
                .min(share(members.iter().filter(|row| gain_of(row) < gain).count()))
        };
        let signal = low(found.norm);
        // Among the fold's own minima.
        let below = members.iter().filter(|one| {
            let norms =
                members.iter().filter(|row| number(row, "gradient_norm") > number(one, "gradient_norm"));
            let gains = members.iter().filter(|row| gain_of(row) < gain_of(one));
            (share(norms.count()) + 0.5 / members.len() as f64)
                .min(share(gains.count()) + 0.5 / members.len() as f64)
                < signal
        });
        share(below.count())
    });
    assert_relative_eq!(mixed[id], f64::midpoint(by_fold[0], by_fold[1]), epsilon = 1e-9);
    let warned =
        ["score", "--checkpoint", "run", "--data", "data/changed.csv", "--batch", "3", "--out", "noted.csv"];
    let output = work.program(&warned).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("1 of 80 records are not among those of the run"), "{errors}");
    assert_eq!(fs::read(work.path("noted.csv")).unwrap(), fs::read(work.path("mixed.csv")).unwrap());
    assert_eq!(score("data/changed.csv", "logit.csv", &["--by-rater"]).len(), 80);
    // What the ratings rest on cannot be changed afterwards.
    let refuses = |further: &[&str], words: &[&str]| {
        let arguments = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "refused.csv"];
        work.refuses(&[&arguments[..], further].concat(), words);
    };
    refuses(&["--set", "rule=gain"], &["rule", "was trained with \"norm-gain\""]);
    refuses(&["--set", "crossfit.captions=2"], &["crossfit", "was trained with 64"]);
    refuses(&["--set", "seed=7"], &["seed", "was trained with"]);
    work.train("plain", &["--set", "rule=loss", "--set", "rater_only_epochs=0"]);
    let plain = ["score", "--checkpoint", "plain", "--data", "data/train.csv", "--out", "refused.csv"];
    work.refuses(&[&plain[..], &["--by-rater"]].concat(), &["--by-rater", "leave the option out"]);
    // A damaged table is refused.
    let table = fs::read_to_string(work.path("run/gains.csv")).unwrap();
    fs::write(work.path("run/gains.csv"), table.replace("0.", "1.")).unwrap();
    work.refuses(
        &["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "again.csv"],
        &["gains.csv", "is damaged or was changed"],
    );
}

#[test]
fn results_depend_on_neither_interruptions_nor_threads() {
    let work = Workplace::new();
    work.train("whole", &[]);
    let expected = work.result("whole");
    work.train("one", &["--threads", "1"]);
    assert!(work.result("one") == expected, "one thread");
    let mut random = Random::new(13, Purpose::Test, 0);
    let arguments = ["train", "--config", "config.json", "--resume", "--out", "stopped"];
    for signal in ["-KILL", "-INT"].repeat(4) {
        let child = work.program(&arguments).spawn().unwrap();
        sleep(Duration::from_millis(40 + random.below(400)));
        // It may have ended by itself.
        let _ = Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert!(matches!(status.code(), None | Some(0 | 130)), "{signal}: {status}: {errors}");
    }
    work.finish(&arguments);
    let found = work.result("stopped");
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in found {
        assert!(bytes == expected[&name], "{name} differs");
    }
    let mut folders = vec![work.path("stopped")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.display().to_string().contains("unfinished"), "{} was left", path.display());
            folders.extend(path.is_dir().then_some(path));
        }
    }
    // A changed table of gains is noticed.
    fs::write(work.path("whole/gains.csv"), "id,rating\n").unwrap();
    work.refuses(&["train", "--resume", "whole"], &["gains.csv", "is damaged or was changed"]);
    // Another seed gives other folds.
    work.train("other", &["--set", "seed=1"]);
    assert_ne!(work.result("other")["gains.csv"], expected["gains.csv"]);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let work = Workplace::new();
    let train = |sets: &[&str]| -> Vec<String> {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        ["train", "--config", "config.json", "--out", "run"]
            .into_iter()
            .chain(sets)
            .map(str::to_owned)
            .collect()
    };
    let refuses = |sets: &[&str], words: &[&str]| {
        let arguments = train(sets);
        work.refuses(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), words);
        assert!(!work.path("run/gains.csv").exists());
    };
    refuses(
        &["rater_objective=reweight", "rater_only_epochs=0"],
        &["rater_objective: is reweight", "regression"],
    );
    refuses(&["rater_only_epochs=0"], &["rater_only_epochs: is 0", "after the captions are evaluated"]);
    refuses(&["rule_scaling=center"], &["rule_scaling: is center", "set it to none"]);
    refuses(&["compat.cross_attention_first_sample=true"], &["single samples"]);
    refuses(&["crossfit.folds=1"], &["crossfit.folds", "2"]);
    refuses(&["bs=60"], &["too few for the proxy of fold", "batches of 60", "set bs="]);
    refuses(&["crossfit.folds=64"], &["of 64 has ", " of the 80 records", "lower crossfit.folds"]);
    // The same caption everywhere says nothing.
    let table = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let mut writer = csv::Writer::from_path(work.path("data/alike.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    let caption = header.iter().position(|column| column == "caption").unwrap();
    writer.write_record(&header).unwrap();
    for row in reader.records() {
        let row = row.unwrap();
        writer
            .write_record(
                row.iter().enumerate().map(|(at, field)| if at == caption { "A dog." } else { field }),
            )
            .unwrap();
    }
    writer.flush().unwrap();
    let alike = ["train", "--config", "config.json", "--data", "data/alike.csv", "--out", "alike"];
    work.refuses(&alike, &["captions of fold 0 are all the same"]);
    // Nothing of what was refused stands in the way.
    let begun = train(&["crossfit.epochs=1"]);
    work.finish(&begun.iter().map(String::as_str).collect::<Vec<_>>());
}
