//! Whatever stops a job, going on gives the bytes that it would have given undisturbed; and so do other thread counts.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use alchemist_engine::{
    data::{
        drawn::{DataSetSettings, write_data_set},
        flaws::FlawShares,
    },
    engine::{Purpose, Random},
    train::checkpoint::Checkpoint,
};
use serde_json::json;
use tempfile::TempDir;

/// How often each job is killed while it runs.
const KILLS: usize = 20;

/// A folder with a data set, a configuration for it, and what runs leave.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new(epochs: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            DataSetSettings { train: 60, validation: 16, side: 24, shares: FlawShares::default(), seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        // A record without its picture has to fail in the same way every time.
        let mut table = fs::OpenOptions::new().append(true).open(&data.train_csv).unwrap();
        let header = fs::read_to_string(&data.train_csv).unwrap().lines().next().unwrap().to_owned();
        let fields: Vec<&str> = header
            .split(',')
            .map(|column| match column {
                "id" => "999999",
                "image_save_path" => "train/missing.png",
                _ => "x",
            })
            .collect();
        writeln!(table, "{}", fields.join(",")).unwrap();
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": 1,
            "raterDepth": 1,
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 60},
            "text_encoder": {"tokens": 8, "channels": 16},
            "bs": 8,
            "ep": epochs,
            "tlr": 1e-3,
            "upperlevel_weight": 0.5,
            "workers": 2,
            "checkpoint_every": 1,
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

    fn finish(&self, arguments: &[&str]) -> Output {
        let output = self.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        output
    }

    /// Everything that a run comes to, by name.
    fn result(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let newest = Checkpoint::newest(&self.path(run).join("checkpoints")).unwrap().unwrap();
        let mut files = vec![self.path(run).join("metrics.jsonl"), self.path(run).join("failed.csv")];
        for folder in [newest, self.path(run).join("dynamics")] {
            let entries = fs::read_dir(folder).unwrap();
            files.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let name = |file: &Path| file.file_name().unwrap().to_string_lossy().into_owned();
        files.iter().map(|file| (name(file), fs::read(file).unwrap())).collect()
    }
}

fn assert_equal(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in found {
        assert!(bytes == &expected[name], "{what}: {name} differs");
    }
}

/// Kills the process after `delay`; whether it was still running then. A process that ended by itself must have
/// succeeded.
fn kill_after(mut child: Child, delay: Duration, what: &str) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    let ended = child.try_wait().unwrap().is_some();
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    // It may have ended between the last look and the signal.
    let killed = output.status.code().is_none();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{what} ended with {}: {errors}", output.status);
    killed
}

#[test]
fn a_killed_training_goes_on_to_the_bit() {
    let work = Workplace::new(6);
    work.finish(&["train", "--config", "config.json", "--out", "whole"]);
    let expected = work.result("whole");
    let mut random = Random::new(11, Purpose::Test, 0);
    let (mut kills, mut runs) = (0, 0);
    while kills < KILLS {
        let out = format!("run-{runs}");
        let arguments = ["train", "--config", "config.json", "--out", &out, "--resume"];
        loop {
            let delay = Duration::from_millis(5 + random.below(396));
            if !kill_after(work.program(&arguments).spawn().unwrap(), delay, "train") {
                break;
            }
            kills += 1;
            if kills == KILLS {
                work.finish(&arguments);
                break;
            }
        }
        assert_equal(&work.result(&out), &expected, &out);
        runs += 1;
    }
}

/// Rules with something of their own to keep: a reference proxy made in the middle of the run, and running averages.
#[test]
fn every_rule_goes_on_to_the_bit() {
    let work = Workplace::new(3);
    let excess: &[&str] = &["--set", "rule=excess"];
    let alignment: &[&str] = &["--set", "rule=alignment"];
    let alone: &[&str] =
        &["--set", "rule=excess", "--set", "rater_teaching=regression", "--set", "rater_only_epochs=2"];
    let weights: &[&str] = &["--set", "rule=alignment", "--set", "rater_teaching=weights"];
    let mut random = Random::new(12, Purpose::Test, 0);
    for (name, sets) in [("excess", excess), ("alignment", alignment), ("weights", weights), ("alone", alone)]
    {
        let run = |out: &str| {
            let mut arguments = vec!["train", "--config", "config.json", "--resume", "--out"];
            arguments.push(out);
            arguments.extend(sets);
            work.program(&arguments)
        };
        assert!(run(name).output().unwrap().status.success());
        let killed = format!("{name}-killed");
        let mut kills = 0;
        while kills < 4
            && kill_after(run(&killed).spawn().unwrap(), Duration::from_millis(20 + random.below(200)), name)
        {
            kills += 1;
        }
        assert!(run(&killed).output().unwrap().status.success());
        assert_equal(&work.result(&killed), &work.result(name), name);
        assert_eq!(
            work.result(name).contains_key("reference.safetensors"),
            ["excess", "alone"].contains(&name)
        );
        assert!(work.result(name).contains_key("epoch-0002.csv"));
    }

    // Without the reference proxy there is nothing to compare with: an older checkpoint serves, this one does not.
    let newest = Checkpoint::newest(&work.path("excess/checkpoints")).unwrap().unwrap();
    let state = newest.join("state.json");
    let mut described: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    described["files"].as_object_mut().unwrap().remove("reference.safetensors").unwrap();
    fs::write(&state, described.to_string()).unwrap();
    let refused = work.program(&["train", "--resume", "excess"]).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("holds no reference proxy, which the rule `excess` needs"), "{errors}");
}

#[test]
fn a_killed_scoring_loses_and_doubles_nothing() {
    let work = Workplace::new(1);
    work.finish(&["train", "--config", "config.json", "--out", "run"]);
    // The same pictures often enough for several parts.
    let train = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let (header, rows) = train.split_once('\n').unwrap();
    assert!(header.starts_with("id,"), "{header}");
    let mut table = format!("{header}\n");
    for copy in 0..60 {
        for row in rows.lines() {
            table.push_str(&format!("{copy}-{row}\n"));
        }
    }
    fs::write(work.path("data/corpus.csv"), &table).unwrap();
    let rows = table.lines().count() - 1;
    for ending in ["csv", "parquet"] {
        let command = |out: &str| {
            ["score", "--checkpoint", "run", "--data", "data/corpus.csv", "--batch", "8", "--out", out]
                .map(str::to_owned)
        };
        let run = |out: &str| {
            let arguments = command(out);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            work.program(&arguments)
        };
        let whole = format!("whole.{ending}");
        let output = run(&whole).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("{rows} rows in = {} scored + 60 failed", rows - 60)), "{said}");
        let failed = fs::read(work.path("whole.failed.csv")).unwrap();
        let expected = fs::read(work.path(&whole)).unwrap();

        let mut random = Random::new(12, Purpose::Test, 0);
        let (mut kills, mut completed) = (0, 0);
        while kills < KILLS / 2 {
            let out = format!("ratings-{completed}.{ending}");
            loop {
                let delay = Duration::from_millis(5 + random.below(396));
                if !kill_after(run(&out).spawn().unwrap(), delay, "score") {
                    break;
                }
                kills += 1;
                if kills == KILLS / 2 && !work.path(&out).exists() {
                    let output = run(&out).output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    break;
                }
                if work.path(&out).exists() {
                    break;
                }
            }
            // Killed between the naming of the table and the end, it is done once more.
            if work.path(&format!(".{out}.unfinished")).exists() {
                assert!(run(&out).output().unwrap().status.success());
            }
            assert!(fs::read(work.path(&out)).unwrap() == expected, "{out} differs");
            let failed_out = work.path(&format!("ratings-{completed}.failed.csv"));
            assert!(fs::read(&failed_out).unwrap() == failed, "{} differs", failed_out.display());
            assert!(!work.path(&format!(".{out}.unfinished")).exists());
            remove_companions(&work, &format!("ratings-{completed}"));
            completed += 1;
        }
        remove_companions(&work, "whole");
    }
}

#[test]
fn one_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let work = Workplace::new(2);
    let train = |out: &str, threads: &str| {
        work.finish(&["--threads", threads, "train", "--config", "config.json", "--out", out]);
        work.finish(&[
            "--threads",
            threads,
            "score",
            "--checkpoint",
            out,
            "--data",
            "data/train.csv",
            "--out",
            &format!("{out}.csv"),
        ]);
        let mut result = work.result(out);
        result.insert("ratings".to_owned(), fs::read(work.path(&format!("{out}.csv"))).unwrap());
        result
    };
    let two = train("two", "2");
    assert_equal(&train("again", "2"), &two, "the same again");
    assert_equal(&train("one", "1"), &two, "one thread");
    work.finish(&["train", "--config", "config.json", "--out", "other", "--set", "seed=1"]);
    assert_ne!(work.result("other")["rater.safetensors"], two["rater.safetensors"], "the seed must matter");
}

#[test]
fn an_interrupted_training_saves_and_goes_on() {
    let work = Workplace::new(20);
    work.finish(&["train", "--config", "config.json", "--out", "whole"]);
    let child = work.program(&["train", "--config", "config.json", "--out", "run"]).spawn().unwrap();
    let checkpoints = work.path("run/checkpoints");
    let begun = Instant::now();
    while !checkpoints.exists() || Checkpoint::newest(&checkpoints).is_ok_and(|newest| newest.is_none()) {
        assert!(begun.elapsed() < Duration::from_secs(180), "no checkpoint in 180 s");
        sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("is saved") && errors.contains("--resume"), "{errors}");

    // The other ways to name the run, and what may not change meanwhile.
    let refused = work.program(&["train", "--config", "config.json", "--out", "run"]).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("already holds a run") && errors.contains("--resume"), "{errors}");
    let refused = work.program(&["train", "--resume", "run", "--set", "tlr=0.1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("tlr = 0.001, but 0.1 is asked for"), "{errors}");
    work.finish(&["train", "--resume", "run", "--set", "workers=1"]);
    assert_equal(&work.result("run"), &work.result("whole"), "interrupted");
    let usage = work.program(&["train"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// Removes what lies beside a table of ratings, so that one of the other kind can have its name.
fn remove_companions(work: &Workplace, stem: &str) {
    for ending in ["failed.csv", "histogram.png", "contact_sheet.png"] {
        fs::remove_file(work.path(&format!("{stem}.{ending}"))).unwrap();
    }
}
