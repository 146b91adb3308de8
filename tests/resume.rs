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
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    engine::{Purpose, Random},
    training::checkpoint::Checkpoint,
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
        // A record without its image has to fail in the same way every time.
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
            "rule": "excess",
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

/// The text of a file that ends with the SHA-256 of what is before.
fn sealed(mut value: serde_json::Value) -> String {
    value.as_object_mut().unwrap().remove("sha256");
    let text = value.to_string();
    let text = text.strip_suffix('}').unwrap();
    format!("{text},\n\"sha256\": \"{}\"\n}}\n", alchemist_engine::files::sha256(text.as_bytes()))
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
        &["--set", "rule=excess", "--set", "rater_objective=regression", "--set", "rater_only_epochs=2"];
    let weights: &[&str] = &["--set", "rule=alignment", "--set", "rater_objective=reweight"];
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
    fs::write(&state, sealed(described)).unwrap();
    let refused = work.program(&["train", "--resume", "excess"]).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("has no reference proxy, which the rule `excess` needs"), "{errors}");
}

#[test]
fn a_killed_scoring_loses_and_doubles_nothing() {
    let work = Workplace::new(1);
    work.finish(&["train", "--config", "config.json", "--out", "run"]);
    // The same images often enough for several parts.
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
    let stopped = |run: &str, signal: &str| {
        let child = work.program(&["train", "--config", "config.json", "--out", run]).spawn().unwrap();
        let checkpoints = work.path(&format!("{run}/checkpoints"));
        let begun = Instant::now();
        while !checkpoints.exists() || Checkpoint::newest(&checkpoints).is_ok_and(|newest| newest.is_none()) {
            assert!(begun.elapsed() < Duration::from_secs(180), "no checkpoint in 180 s");
            sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        child.wait_with_output().unwrap()
    };
    let output = stopped("run", "-INT");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("is saved") && errors.contains("--resume"), "{errors}");

    // The other ways to name the run, and what may not change meanwhile.
    let another = ["train", "--config", "config.json", "--out", "run", "--set", "seed=9"];
    let refused = work.program(&another).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("was started with seed = ") && errors.contains("but 9 is requested"), "{errors}");
    let refused = work.program(&["train", "--resume", "run", "--set", "tlr=0.1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("tlr = 0.001, but 0.1 is requested"), "{errors}");
    work.finish(&["train", "--resume", "run", "--set", "workers=1"]);
    assert_equal(&work.result("run"), &work.result("whole"), "interrupted");
    let done = work.program(&["train", "--config", "config.json", "--out", "run"]).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(errors.contains("already contains a run") && errors.contains("--overwrite"), "{errors}");

    // The same command once more is enough, however the run was stopped.
    assert!(!stopped("killed", "-KILL").status.success());
    work.finish(&["train", "--config", "config.json", "--out", "killed"]);
    assert_equal(&work.result("killed"), &work.result("whole"), "killed");
    let usage = work.program(&["train"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// Removes the files next to a table of ratings, so that one of the other kind can have its name.
fn remove_companions(work: &Workplace, stem: &str) {
    for ending in ["failed.csv", "histogram.png", "contact_sheet.png"] {
        fs::remove_file(work.path(&format!("{stem}.{ending}"))).unwrap();
    }
}

/// Asks a run to stop as soon as it has a checkpoint, and so often that one of the stops falls between two of those that it would
/// have come by anyway. What is there in the end is what is there of a run that nobody stopped.
#[test]
fn an_interrupt_leaves_no_checkpoint_of_its_own() {
    let work = Workplace::new(8);
    let keys = ["--set", "checkpoint_every=5", "--set", "keep_checkpoints=3"];
    let train = |out: &str| {
        work.program(&[&["train", "--config", "config.json", "--resume", "--out", out][..], &keys].concat())
    };
    let attribute = |run: &str, out: &str| {
        let checkpoint =
            ["attribute", "--checkpoint", run, "--every", "--data", "data/train.csv", "--out", out];
        work.finish(&[&checkpoint[..], &["--validation", "data/validation.csv"]].concat());
        fs::read_to_string(work.path(out)).unwrap()
    };
    let all = |run: &str| -> BTreeMap<PathBuf, Vec<u8>> {
        let folder = work.path(run).join("checkpoints");
        let mut files = BTreeMap::new();
        for checkpoint in fs::read_dir(&folder).unwrap() {
            for file in fs::read_dir(checkpoint.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                files.insert(path.strip_prefix(&folder).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
        files
    };
    let names = |run: &str, prefix: &str| -> Vec<String> {
        let Ok(folder) = fs::read_dir(work.path(run).join("checkpoints")) else { return Vec::new() };
        let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).collect()
    };
    assert!(train("whole").output().unwrap().status.success());
    let expected = attribute("whole", "whole.csv");
    assert_eq!(names("whole", "").len(), 3);
    let mut between = 0;
    for turn in 0..20 {
        let run = format!("run-{turn}");
        loop {
            let mut child = train(&run).spawn().unwrap();
            let before = names(&run, "");
            // A checkpoint more than there was, and a moment.
            while child.try_wait().unwrap().is_none()
                && names(&run, "step-").iter().all(|name| before.contains(name))
            {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(3 * turn));
            let _ended = Command::new("kill").args(["-INT", &child.id().to_string()]).output().unwrap();
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.code(), Some(130), "{errors}");
            let stops = names(&run, "interrupted-");
            assert!(stops.len() <= 1, "{stops:?}");
            between += stops.len();
            if let Some(stop) = stops.first()
                && between == 1
            {
                // The newest one is what the run is rated and gone on by, but not what it is attributed by.
                let newest = Checkpoint::newest(&work.path(&run).join("checkpoints")).unwrap().unwrap();
                assert!(newest.ends_with(stop), "{}", newest.display());
                let step: u64 = stop.strip_prefix("interrupted-").unwrap().parse().unwrap();
                let table = attribute(&run, "stopped.csv");
                assert!(!table.contains(&format!("@{step},")), "{table}");
            }
        }
        assert!(all(&run) == all("whole"), "{:?} of {run}", names(&run, ""));
        assert_eq!(attribute(&run, &format!("{run}.csv")), expected);
        if between > 1 {
            return;
        }
    }
    panic!("no interrupt fell between two checkpoints");
}

/// A stopped job of parts: its inputs are its own, and nothing else is.
#[test]
fn a_stopped_scoring_goes_on_with_its_own_inputs_alone() {
    let work = Workplace::new(1);
    work.finish(&[
        "train",
        "--config",
        "config.json",
        "--out",
        "run",
        "--set",
        "checkpoint_every=4",
        "--set",
        "keep_checkpoints=0",
    ]);
    let train = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let (header, rows) = train.split_once('\n').unwrap();
    let copies = (0..20).flat_map(|copy| rows.lines().map(move |row| format!("{copy}-{row}\n")));
    let table = format!("{header}\n") + &copies.collect::<String>();
    fs::write(work.path("data/corpus.csv"), &table).unwrap();
    // States that are rounded are other ones; the tokens are the same.
    for (cache, text) in [("rounding", "bf16"), ("exact", "f32")] {
        work.finish(&["encode", "--run", "run", "--data", "data/train.csv", "--text", text, "--out", cache]);
    }
    let validation = ["--validation", "data/validation.csv"];
    for (command, more) in [("score", &[][..]), ("attribute", &validation[..])] {
        let of = |checkpoint: &str, out: &str, further: &[&str]| {
            let common = [command, "--data", "data/corpus.csv", "--checkpoint", checkpoint, "--out", out];
            work.program(&[&common[..], more, further].concat())
        };
        let done = |further: &[&str], out: &str| {
            let output = of("run", out, further).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::read(work.path(out)).unwrap()
        };
        let expected = done(&["--batch", "8"], "whole.csv");
        // With one part of three, whatever was done of the others.
        let (parts, out) = (work.path(".out.csv.unfinished/parts"), work.path("out.csv"));
        let mut child = of("run", "out.csv", &["--batch", "8"]).spawn().unwrap();
        while !parts.join("0000-00000000.json").exists() {
            assert!(child.try_wait().unwrap().is_none(), "{command} has ended without a part");
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(parts.exists() && !out.exists(), "{command} was not stopped");
        for later in ["0000-00000001.json", "0000-00000002.json"] {
            let _absent = fs::remove_file(parts.join(later));
        }
        let refused = |checkpoint: &str, further: &[&str], words: &[&str]| {
            let output = of(checkpoint, "out.csv", further).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            assert!(!out.exists());
            for word in words {
                assert!(errors.contains(word), "`{word}` is missing in: {errors}");
            }
        };
        // An image that is another one, of the same length, and one that is gone; among those that are done.
        let changed = |image: &Path| {
            let original = fs::read(image).unwrap();
            let mut other = original.clone();
            *other.last_mut().unwrap() ^= 1;
            fs::write(image, &other).unwrap();
            let name = image.file_name().unwrap().to_str().unwrap().to_owned();
            refused("run", &[], &[&name, "was replaced, added or deleted", "out.csv.unfinished/parts"]);
            fs::remove_file(image).unwrap();
            refused("run", &[], &[&name, "was replaced, added or deleted"]);
            fs::write(image, original).unwrap();
        };
        changed(&work.path("data/train/000005.png"));
        // One that was not there.
        fs::copy(work.path("data/train/000005.png"), work.path("data/train/missing.png")).unwrap();
        refused("run", &[], &["missing.png", "was replaced, added or deleted"]);
        fs::remove_file(work.path("data/train/missing.png")).unwrap();
        // Tables, checkpoints, and keys that decide something.
        let table_changed = |name: &str| {
            let path = work.path(name);
            let original = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<&str> = original.lines().collect();
            let last = lines.len() - 1;
            lines.swap(last - 1, last);
            fs::write(&path, lines.join("\n") + "\n").unwrap();
            refused("run", &[], &["contains parts of another job", name, "--overwrite"]);
            fs::write(&path, original).unwrap();
        };
        table_changed("data/corpus.csv");
        refused("run/checkpoints/step-00000004", &[], &["another job: ", "checkpoint"]);
        refused("run", &["--set", "compat.drop_alpha=true"], &["another job: the configuration"]);
        let rounding = ["--set", "token_cache=rounding"];
        refused("run", &rounding, &["another job: the data type of the cached text states"]);
        if command == "attribute" {
            changed(&fs::read_dir(work.path("data/validation")).unwrap().next().unwrap().unwrap().path());
            table_changed("data/validation.csv");
            refused("run", &["--geometry", "adamw"], &["another job: --geometry"]);
        }
        // What numbers do not depend on may change; parts of another batch go on.
        let (bytes, name) = (fs::read(parts.join("0000-00000000.json")).unwrap(), "0000-00000000.json");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&parts.join(name));
        let further: &[&str] =
            &["--batch", "7", "--threads", "1", "--set", "workers=1", "--set", "token_cache=exact"];
        let mut child = of("run", "out.csv", further).spawn().unwrap();
        while !parts.join("0000-00000001.json").exists() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if parts.join(name).exists() {
            assert_eq!((inode(&parts.join(name)), fs::read(parts.join(name)).unwrap()), (before, bytes));
        }
        let found = if parts.exists() { done(&["--batch", "5"], "out.csv") } else { fs::read(&out).unwrap() };
        assert!(found == expected, "{command} gives other numbers");
        let of = |stem: &str| {
            ["csv", "failed.csv", "histogram.png", "contact_sheet.png"]
                .map(|ending| format!("{stem}.{ending}"))
        };
        for name in of("out").iter().chain(&of("whole")) {
            let _attribute_plots_nothing = fs::remove_file(work.path(name));
        }
    }
}

/// A run that goes on says which of its data is another one now.
#[test]
fn a_run_names_what_was_changed_since_it_was_begun() {
    let work = Workplace::new(1);
    for command in ["train", "fit"] {
        work.finish(&[command, "--config", "config.json", "--out", command]);
        let refused = |words: &[&str]| {
            let output = work.program(&[command, "--resume", command]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            for word in words {
                assert!(errors.contains(word), "`{word}` is missing in: {errors}");
            }
        };
        let (image, other) = (work.path("data/train/000005.png"), work.path("data/train/000006.png"));
        let original = fs::read(&image).unwrap();
        fs::copy(&other, &image).unwrap();
        refused(&["train.csv, line 7", "000005.png has other tokens", "--out"]);
        fs::remove_file(&image).unwrap();
        refused(&["train.csv, line 7", "000005.png can no longer be used"]);
        fs::write(&image, original).unwrap();
        let missing = work.path("data/train/missing.png");
        fs::copy(&other, &missing).unwrap();
        refused(&["missing.png could not be used when the run started, and can be now"]);
        fs::remove_file(&missing).unwrap();
        let table = work.path("data/validation.csv");
        let rows = fs::read_to_string(&table).unwrap();
        fs::write(&table, rows.lines().take(15).collect::<Vec<_>>().join("\n")).unwrap();
        refused(&["validation.csv: was changed since the run started"]);
        fs::write(&table, rows).unwrap();
        work.finish(&[command, "--resume", command, "--set", "workers=1"]);
    }
}

/// What is wrong with a file is counted; what is wrong with reading it ends the fit, as the tokenizer would be another one.
#[test]
fn an_image_that_cannot_be_read_is_counted_or_ends_the_fit_of_the_tokenizer() {
    let work = Workplace::new(1);
    let [cut, folder, pipe, unreadable] =
        [3, 8, 13, 21].map(|at| work.path(&format!("data/train/{at:06}.png")));
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..20]).unwrap();
    for path in [&folder, &pipe] {
        fs::remove_file(path).unwrap();
    }
    fs::create_dir(&folder).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (command, table) in [("train", "failed.csv"), ("fit", "failed.csv"), ("encode", "failed.csv")] {
        let output = work.finish(&[command, "--config", "config.json", "--out", command]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // These three, and the one that is never there.
        assert!(said.contains("(4 skipped)") || said.contains("+ 4 failed"), "{said}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("4 of 60 images for fitting the tokenizer")
                || String::from_utf8_lossy(&output.stderr)
                    .contains("3 of 60 images for fitting the tokenizer")
        );
        let failed = fs::read_to_string(work.path(command).join(table)).unwrap();
        for name in ["000003.png", "000008.png", "000013.png", "missing.png"] {
            assert!(failed.contains(name), "{name} is missing in: {failed}");
        }
    }
    // Reading the beginning of a process' own memory fails as a broken disk does.
    if cfg!(target_os = "linux") {
        fs::remove_file(&unreadable).unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", &unreadable).unwrap();
        for command in ["train", "fit", "encode"] {
            let out = format!("unreadable-{command}");
            let output = work.program(&[command, "--config", "config.json", "--out", &out]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{errors}");
            for word in ["000021.png: cannot be read", "the tokenizer would be fitted differently"] {
                assert!(errors.contains(word), "`{word}` is missing in: {errors}");
            }
            assert!(!work.path(&out).join("image_tokenizer").exists(), "{command} has fitted a tokenizer");
        }
    }
}

/// A run as the version before this one has left it: nothing has a checksum of its own. It is read, but not gone on with.
#[test]
fn a_run_of_an_older_version_is_read_but_not_gone_on_with() {
    let work = Workplace::new(2);
    for command in ["train", "fit"] {
        work.finish(&[command, "--config", "config.json", "--out", command]);
        let change = |path: &Path, change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            change(&mut value);
            fs::write(path, value.to_string()).unwrap();
        };
        for checkpoint in fs::read_dir(work.path(command).join("checkpoints")).unwrap() {
            change(&checkpoint.unwrap().path().join("state.json"), &|state| {
                state["format"] = json!(2);
                let members = state.as_object_mut().unwrap();
                assert!(members.remove("run").is_some() && members.remove("sha256").is_some());
            });
        }
        change(&work.path(command).join("provenance.json"), &|starts| {
            let start = starts[0].as_object_mut().unwrap();
            assert!(start.remove("config").is_some() && start.remove("sha256").is_some());
        });
        fs::remove_file(work.path(command).join("inputs.json")).unwrap();
        let refused = work.program(&[command, "--resume", command]).output().unwrap();
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{errors}");
        assert!(errors.contains("state.json: was written by an older version"), "{errors}");
    }
    let data = ["--data", "data/train.csv"];
    work.finish(&[&["score", "--checkpoint", "train", "--out", "ratings.csv"][..], &data].concat());
    let validation = ["--validation", "data/validation.csv", "--every"];
    work.finish(
        &[&["attribute", "--checkpoint", "train", "--out", "a.csv"][..], &data, &validation].concat(),
    );
    work.finish(&["report", "--of", "train", "--ratings", "ratings.csv"]);
    work.finish(&["sample", "--checkpoint", "fit", "--prompt", "a red circle", "--out", "drawn"]);
}
