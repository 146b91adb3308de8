//! `attribute` against one backward pass per sample, and its promises: no row lost, the same bytes however it is run.
#![cfg(unix)]

mod common;

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use alchemist_engine::{
    config::Config,
    data::{
        corruption::FlawShares,
        load_image, stack,
        synthetic::{DataSetSettings, write_data_set},
    },
    encode::{ImageTokenizer, TextEncoder, TextStates, load_image_tokenizer, load_text_encoder},
    engine::{Accumulate, DType, Gradients, Parameters, Purpose, Random, Tape, Tensor},
    models::{Mode, Proxy},
    training::{
        checkpoint::{Checkpoint, restore_weights},
        run_directory::RunDirectory,
    },
};
use common::tolerance;
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How often each job is killed while it runs.
const KILLS: usize = 4;
/// Validation records: more than one batch, and no whole number of them.
const VALIDATION: usize = 39;

/// A folder with a data set and a trained run in `run`, whose checkpoints are all kept.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shares = FlawShares::default();
        let settings = DataSetSettings { train: 24, validation: VALIDATION, side: 24, shares, seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        for table in [&data.train_csv, &data.validation_csv] {
            append_broken(table);
        }
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": 2,
            "raterDepth": 1,
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 24},
            "text_encoder": {"tokens": 8, "channels": 16},
            "bs": 8,
            "ep": 2,
            "rule": "loss",
            "tlr": 1e-3,
            "ls": 0.1,
            "workers": 2,
            "checkpoint_every": 1,
            "keep_checkpoints": 0,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let work = Self { folder };
        work.finish(&["train", "--config", "config.json", "--out", "run"]);
        work
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

    /// The command with further arguments, into `out`.
    fn attribute<'a>(&self, out: &'a str, further: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["attribute", "--validation", "data/validation.csv", "--out", out];
        if !further.contains(&"--data") {
            arguments.extend(["--data", "data/train.csv"]);
        }
        arguments.extend(further);
        arguments
    }

    /// One line on stderr that begins with `error:` and holds all of these words.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let Output { status, stderr, .. } = self.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{errors}");
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(lines.len(), 1, "{errors}");
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is missing in: {errors}");
        }
    }
}

/// A record without its image.
fn append_broken(path: &Path) {
    let header = fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned();
    let field = |column: &str| match column {
        "id" => "999999",
        "image_save_path" => "train/missing.png",
        _ => "x",
    };
    let fields: Vec<&str> = header.split(',').map(field).collect();
    let mut table = fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(table, "{}", fields.join(",")).unwrap();
}

/// The rows of a CSV as columns by name.
fn read_csv(path: &Path) -> (Vec<String>, Vec<HashMap<String, String>>) {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        header.iter().cloned().zip(record.unwrap().iter().map(str::to_owned)).collect()
    };
    let rows = reader.records().map(row).collect();
    (header, rows)
}

/// The same of a Parquet file; a null is an empty text.
fn read_parquet(path: &Path) -> (Vec<String>, Vec<HashMap<String, String>>) {
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    let columns = reader.metadata().file_metadata().schema_descr().columns().to_vec();
    let text = |field: &Field| match field {
        Field::Null => String::new(),
        Field::Double(number) => format!("{number:?}"),
        Field::Str(text) => text.clone(),
        other => panic!("{other} was not written"),
    };
    let rows = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().get_column_iter().map(|(name, field)| (name.clone(), text(field))).collect());
    (columns.iter().map(|column| column.name().to_owned()).collect(), rows.collect())
}

/// The proxy of a checkpoint in f64, and records as it sees them.
struct Truth {
    config: Config,
    tokenizer: Box<dyn ImageTokenizer>,
    text: Box<dyn TextEncoder>,
    proxy: Proxy,
    parameters: Parameters,
    /// Second moments, their bias corrected.
    second: Vec<Vec<f64>>,
}

impl Truth {
    fn new(run: &Path, step: u64) -> Self {
        let config = RunDirectory::config_of(run).unwrap();
        let tokenizer = load_image_tokenizer(&run.join("image_tokenizer")).unwrap();
        let text = load_text_encoder(&run.join("text_encoder")).unwrap();
        let quantizer = tokenizer.quantizer();
        let sizes = (quantizer.vocabulary(), quantizer.channels(), text.channels());
        let folder = run.join(format!("checkpoints/step-{step:08}"));
        let saved = Checkpoint::load(&folder).unwrap();
        let backbone = config.proxy_backbone(sizes.0, sizes.1, sizes.2);
        let (proxy, mut parameters) = Proxy::new(&backbone, DType::F32, 0).unwrap();
        restore_weights(&folder, &saved.proxy, &mut parameters).unwrap();
        let correction = 1.0 - 0.95f64.powi(saved.state.proxy_optimizer_steps as i32);
        let second = parameters.iter().map(|(_, name, _)| {
            let moments = saved.optimizer[&format!("proxy/second/{name}")].to_f64_vec().unwrap();
            moments.into_iter().map(|moment| moment / correction).collect()
        });
        let second = second.collect();
        let parameters = parameters.cast(DType::F64).unwrap();
        Self { config, tokenizer, text, proxy, parameters, second }
    }

    /// Loss and gradient of every record that can be read.
    fn gradients(&self, table: &Path) -> Vec<(String, f64, Vec<Vec<f64>>)> {
        let preprocess = self.config.preprocess(self.tokenizer.image_side());
        let mut found = Vec::new();
        for record in self.config.open_corpus(table).unwrap() {
            let record = record.unwrap();
            let Ok(image) = load_image(&record.image, &preprocess) else { continue };
            let codes = self.tokenizer.encode(&stack(&[image]).unwrap()).unwrap();
            let input = self.tokenizer.quantizer().input(&codes).unwrap().cast(DType::F64).unwrap();
            let TextStates { states, mask, pooled } = self.text.encode(&[record.caption.as_str()]).unwrap();
            let wide = |tensor: Tensor| tensor.cast(DType::F64).unwrap();
            let text = TextStates { states: wide(states), mask, pooled: wide(pooled) };
            let mut tape = Tape::new(&self.parameters);
            let smoothing = self.config.training.label_smoothing;
            let seen = self.proxy.loss(&mut tape, &input, &text, &codes, smoothing, Mode::Evaluate).unwrap();
            let loss = seen.sample_loss.value().to_f64_vec().unwrap()[0];
            let seed = Tensor::new(&[1], vec![1.0f64]).unwrap();
            let mut sum = Accumulate::default();
            tape.backward(vec![(&seen.sample_loss, seed)], &[], &mut sum).unwrap();
            found.push((record.id, loss, flat(&sum.gradients)));
        }
        found
    }
}

fn flat(gradients: &Gradients) -> Vec<Vec<f64>> {
    gradients.iter().map(|gradient| gradient.as_ref().unwrap().to_f64_vec().unwrap()).collect()
}

fn inner(left: &[Vec<f64>], right: &[Vec<f64>]) -> f64 {
    left.iter().flatten().zip(right.iter().flatten()).map(|(left, right)| left * right).sum()
}

/// The learning rates that a run logged, by update.
fn learning_rates(run: &Path) -> HashMap<u64, f64> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let of = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["step"].as_u64().unwrap(), line["learning_rate"].as_f64().unwrap())
    };
    lines.lines().map(of).collect()
}

#[test]
fn numbers_are_those_of_one_backward_pass_a_sample() {
    let work = Workplace::new();
    let (run, steps) = (work.path("run"), [2, 5]);
    let rates = learning_rates(&run);
    for geometry in ["sgd", "adamw"] {
        // The later one first: columns are in the order of the steps all the same.
        let checkpoints = ["--checkpoint", "run/checkpoints/step-00000005", "run/checkpoints/step-00000002"];
        let further = [&checkpoints[..], &["--geometry", geometry]].concat();
        let out = format!("{geometry}.csv");
        let said = work.finish(&work.attribute(&out, &further));
        assert!(said.starts_with("25 rows in = 24 attributed + 1 failed\n"), "{said}");
        assert!(said.contains(&format!("on {VALIDATION} records (1 skipped)")), "{said}");
        let failed = fs::read_to_string(work.path(&format!("{geometry}.failed.csv"))).unwrap();
        assert!(failed.starts_with("id,origin,reason\n999999,train.csv:26,"), "{failed}");
        let (header, rows) = read_csv(&work.path(&out));
        let corpus = fs::read_to_string(work.path("data/train.csv")).unwrap();
        let mut expected: Vec<String> =
            corpus.lines().next().unwrap().split(',').map(str::to_owned).collect();
        assert_eq!(expected[0], "id");
        let columns = steps.iter().flat_map(|step| {
            ["loss", "gradient_norm", "product", "cosine"].map(|name| format!("{name}@{step}"))
        });
        expected.splice(1..1, columns.chain(["tracin".to_owned()]));
        assert_eq!(header, expected);

        let mut tracin = vec![0.0; rows.len()];
        let mut scale = 0.0f64;
        for step in steps {
            let truth = Truth::new(&run, step);
            let validation = truth.gradients(&work.path("data/validation.csv"));
            assert_eq!(validation.len(), VALIDATION);
            let mut direction: Vec<Vec<f64>> =
                validation[0].2.iter().map(|part| vec![0.0; part.len()]).collect();
            for (_, _, gradient) in &validation {
                for (sum, part) in direction.iter_mut().flatten().zip(gradient.iter().flatten()) {
                    *sum += part / VALIDATION as f64;
                }
            }
            if geometry == "adamw" {
                for (part, second) in direction.iter_mut().flatten().zip(truth.second.iter().flatten()) {
                    *part /= second.sqrt() + 1e-8;
                }
            }
            let length = inner(&direction, &direction).sqrt();
            let records = truth.gradients(&work.path("data/train.csv"));
            assert_eq!(records.len(), rows.len());
            for ((row, (id, loss, gradient)), tracin) in rows.iter().zip(&records).zip(&mut tracin) {
                let number = |name: &str| row[&format!("{name}@{step}")].parse::<f64>().unwrap();
                let (norm, product) = (inner(gradient, gradient).sqrt(), inner(gradient, &direction));
                assert_eq!(&row["id"], id);
                for (found, expected, scale) in [
                    (number("loss"), *loss, *loss),
                    (number("gradient_norm"), norm, norm),
                    (number("product"), product, norm * length),
                    (number("cosine"), product / (norm * length), 1.0),
                ] {
                    let error = (found - expected).abs() / scale;
                    assert!(error < tolerance::NETWORK_F32, "{geometry}, {id}: {found} is not {expected}");
                }
                // The sum is of the numbers written.
                *tracin += rates[&(step - 1)] * number("product");
                scale = scale.max(tracin.abs());
            }
        }
        for (row, tracin) in rows.iter().zip(tracin) {
            let found: f64 = row["tracin"].parse().unwrap();
            assert!((found - tracin).abs() < 1e-12 * scale, "{found} is not {tracin}");
        }
    }
}

#[test]
fn the_same_numbers_whatever_the_batch_the_threads_and_the_kind_of_table() {
    let work = Workplace::new();
    let run = ["--checkpoint", "run"];
    work.finish(&work.attribute("whole.csv", &run));
    let expected = fs::read(work.path("whole.csv")).unwrap();
    for (at, further) in
        [["--batch", "1"], ["--batch", "5"], ["--threads", "1"], ["--set", "workers=1"]].iter().enumerate()
    {
        let out = format!("again-{at}.csv");
        work.finish(&work.attribute(&out, &[&run[..], further].concat()));
        assert!(fs::read(work.path(&out)).unwrap() == expected, "{further:?} changes something");
    }
    fs::remove_file(work.path("whole.failed.csv")).unwrap();
    work.finish(&work.attribute("whole.parquet", &run));
    let csv = read_csv(&work.path("whole.csv"));
    assert_eq!(read_parquet(&work.path("whole.parquet")), csv);
    assert_eq!(csv.0[1..6], ["loss", "gradient_norm", "product", "cosine", "tracin"]);
    // The newest checkpoint is the one that is named.
    work.finish(&work.attribute("named.csv", &["--checkpoint", "run/checkpoints/step-00000006"]));
    assert!(fs::read(work.path("named.csv")).unwrap() == expected);
    // All that are kept: the newest one's numbers are among them.
    work.finish(&work.attribute("every.csv", &["--checkpoint", "run/", "--every"]));
    let every = read_csv(&work.path("every.csv"));
    assert_eq!(every.0.iter().filter(|name| name.starts_with("product@")).count(), 6);
    for (row, newest) in every.1.iter().zip(&csv.1) {
        for name in ["loss", "gradient_norm", "product", "cosine"] {
            assert_eq!(row[&format!("{name}@6")], newest[name]);
        }
    }
    // What was written is a ratings table, too.
    for ratings in ["whole.csv", "whole.parquet"] {
        let column = ["--rating-column", "tracin", "--keep", "5", "--strategy", "top-k"];
        let out = format!("{ratings}.subset.csv");
        work.finish(&[&["select", "--ratings", ratings, "--out", &out], &column[..]].concat());
        assert_eq!(read_csv(&work.path(&out)).1.len(), 5);
    }
}

/// A device gives the CPU's numbers, rounding apart.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn a_device_gives_the_numbers_of_the_processor() {
    let work = Workplace::new();
    for (from, to, rows) in [("train.csv", "few.csv", 4), ("validation.csv", "few_validation.csv", 5)] {
        let table = fs::read_to_string(work.path("data").join(from)).unwrap();
        let lines: Vec<&str> = table.lines().take(1 + rows).collect();
        fs::write(work.path("data").join(to), lines.join("\n")).unwrap();
    }
    let numbers = |device: &str| {
        let out = format!("{device}.csv");
        work.finish(&[
            "attribute",
            "--checkpoint",
            "run",
            "--data",
            "data/few.csv",
            "--validation",
            "data/few_validation.csv",
            "--out",
            &out,
            "--device",
            device,
            "--set",
            "fp16=0",
        ]);
        read_csv(&work.path(&out)).1
    };
    let (here, there) = (numbers("cpu"), numbers("emulated"));
    assert_eq!((here.len(), there.len()), (4, 4));
    for column in ["loss", "gradient_norm", "product", "cosine"] {
        let values = |rows: &[HashMap<String, String>]| {
            let numbers = rows.iter().map(|row| row[column].parse().unwrap()).collect::<Vec<f64>>();
            Tensor::new(&[numbers.len()], numbers).unwrap()
        };
        let error = common::relative_error(&values(&there), &values(&here));
        assert!(error <= common::tolerance::NETWORK_F32, "{column} is off by {error:e}");
    }
}

#[test]
fn a_killed_attribution_loses_and_doubles_nothing() {
    let work = Workplace::new();
    // The same images often enough for several parts.
    let train = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let (header, rows) = train.split_once('\n').unwrap();
    let mut table = format!("{header}\n");
    for copy in 0..42 {
        for row in rows.lines() {
            table.push_str(&format!("{copy}-{row}\n"));
        }
    }
    fs::write(work.path("data/corpus.csv"), &table).unwrap();
    let further = ["--checkpoint", "run/checkpoints/step-00000003", "run/checkpoints/step-00000006"];
    let further = [&["--data", "data/corpus.csv", "--batch", "8"], &further[..]].concat();
    for ending in ["csv", "parquet"] {
        let whole = format!("whole.{ending}");
        let begun = Instant::now();
        let said = work.finish(&work.attribute(&whole, &further));
        let took = begun.elapsed().as_millis() as u64;
        assert!(said.contains("1050 rows in = 1008 attributed + 42 failed"), "{said}");
        let expected = fs::read(work.path(&whole)).unwrap();
        let failed = fs::read(work.path("whole.failed.csv")).unwrap();
        let mut random = Random::new(13, Purpose::Test, 0);
        let (mut kills, mut completed) = (0, 0);
        while kills < KILLS {
            let out = format!("out-{completed}.{ending}");
            while !work.path(&out).exists() {
                let arguments = work.attribute(&out, &further);
                if kills == KILLS {
                    work.finish(&arguments);
                    break;
                }
                let mut child = work.program(&arguments).spawn().unwrap();
                sleep(Duration::from_millis(5 + random.below(took)));
                child.kill().unwrap();
                let output = child.wait_with_output().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.code().is_none_or(|code| code == 0), "{errors}");
                kills += 1;
            }
            // Killed between the naming of the table and the end, it is done once more.
            if work.path(&format!(".{out}.unfinished")).exists() {
                work.finish(&work.attribute(&out, &further));
            }
            assert!(fs::read(work.path(&out)).unwrap() == expected, "{out} differs");
            let failed_out = work.path(&format!("out-{completed}.failed.csv"));
            assert!(fs::read(&failed_out).unwrap() == failed, "{} differs", failed_out.display());
            fs::remove_file(&failed_out).unwrap();
            completed += 1;
        }
        fs::remove_file(work.path("whole.failed.csv")).unwrap();
    }
}

#[test]
fn what_cannot_be_attributed_is_one_sentence() {
    let work = Workplace::new();
    let attribute = |further: &[&str]| -> Vec<String> {
        work.attribute("out.csv", further).into_iter().map(str::to_owned).collect()
    };
    let refuses = |further: &[&str], words: &[&str]| {
        let arguments = attribute(further);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        work.refuses(&arguments, words);
        assert!(!work.path("out.csv").exists());
    };
    let run = ["--checkpoint", "run"];
    let mixing = ["--set", "compat.cross_attention_first_sample=true"];
    refuses(&[&run[..], &mixing].concat(), &["cross_attention_first_sample", "mixes the samples"]);
    refuses(&["--checkpoint", "run/checkpoints/step-00000009"], &["step-00000009", "cannot read"]);
    refuses(&["--checkpoint", "data/images/none"], &["data/images/none", "cannot read"]);
    let twice = ["--checkpoint", "run", "run/checkpoints/step-00000006"];
    refuses(&twice, &["step-00000006", "the same proxy as another"]);
    refuses(&[&twice[..], &["--every"]].concat(), &["--every", "only the run directory"]);
    work.finish(&["train", "--config", "config.json", "--out", "frozen", "--set", "fixVar=true"]);
    refuses(&["--checkpoint", "run", "frozen"], &["two runs", "run", "frozen"]);
    refuses(
        &["--checkpoint", "frozen", "--geometry", "adamw"],
        &["has not updated the proxy", "--geometry sgd"],
    );

    // Validation sets without a record, and with none that can be read.
    let validation = fs::read_to_string(work.path("data/validation.csv")).unwrap();
    let header = validation.lines().next().unwrap();
    let with = |rows: &str, words: &[&str]| {
        fs::write(work.path("data/poor.csv"), format!("{header}\n{rows}")).unwrap();
        let all = ["--checkpoint", "run", "--data", "data/train.csv", "--out", "out.csv"];
        let arguments = [&["attribute", "--validation", "data/poor.csv"], &all[..]].concat();
        work.refuses(&arguments, words);
    };
    with("", &["poor.csv", "no row"]);
    with(validation.lines().last().unwrap(), &["no usable record (1 of 1 failed)", "--validation"]);

    // The parts of that attempt are another job's, also if only what is in a table has changed.
    with(validation.lines().nth(1).unwrap(), &["out.csv.unfinished", "another job", "--overwrite"]);
    refuses(&run, &["out.csv.unfinished", "another job", "--overwrite"]);
    let overwrite = attribute(&["--checkpoint", "run", "--overwrite"]);
    let overwrite: Vec<&str> = overwrite.iter().map(String::as_str).collect();
    work.finish(&overwrite);
    work.refuses(&work.attribute("out.csv", &run), &["out.csv", "already exists", "--overwrite"]);
    work.finish(&overwrite);
    work.refuses(&work.attribute("out.txt", &run), &["must end in .csv or .parquet"]);
    // A column that is to be written is there already.
    let train = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let mut clash = String::new();
    for (at, line) in train.lines().enumerate() {
        clash.push_str(&format!("{line},{}\n", if at == 0 { "tracin" } else { "x" }));
    }
    fs::write(work.path("data/clash.csv"), clash).unwrap();
    let clash = [&["--data", "data/clash.csv"], &run[..]].concat();
    work.refuses(&work.attribute("clash.csv", &clash), &["already has a column `tracin`", "rename it"]);
}
