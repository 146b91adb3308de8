//! What goes wrong at the terminal: one sentence with the place and the cure, an exit code that is not 0, nothing half
//! written.
#![cfg(unix)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use alchemist_engine::{
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    files::LEFTOVER,
};
use serde_json::json;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_alchemist-engine");

/// A folder with a small data set and a configuration for it.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shares = FlawShares::default();
        let settings = DataSetSettings { train: 24, validation: 8, side: 24, shares, seed: 3 };
        let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
        let config = json!({
            "data_args": {"train_csv_path": data.train_csv, "val_csv_path": data.validation_csv},
            "depth": 1,
            "raterDepth": 1,
            "pn": "1_2_3",
            "patch_size": 8,
            "image_tokenizer": {"components": 8, "codes": 32, "fit_images": 24},
            "text_encoder": {"tokens": 8, "channels": 16},
            "rule": "excess",
            "bs": 8,
            "ep": 1,
            "workers": 1,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        finish(Command::new(PROGRAM).current_dir(self.folder.path()).args(arguments))
    }

    /// Runs the program where no file may grow beyond `kilobytes`: writing fails in the middle, as on a full disk.
    fn run_on_a_full_disk(&self, kilobytes: u32, arguments: &[&str]) -> (Option<i32>, String) {
        // bash counts the limit in units of 1024 bytes; the signal would end the program before it could say anything.
        let script = format!("ulimit -f {kilobytes}; trap '' XFSZ; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.current_dir(self.folder.path()).args(["-c", &script, PROGRAM]).args(arguments);
        finish(&mut command)
    }

    /// Trains one epoch into `run`.
    fn trained(&self, run: &str) {
        let (code, errors) = self.run(&["train", "--config", "config.json", "--out", run]);
        assert_eq!(code, Some(0), "{errors}");
    }

    /// Every file below the folder whose name says that it was never finished.
    fn unfinished(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.starts_with(LEFTOVER)
                    || [".lock", ".new", ".replaced"].iter().any(|end| name.ends_with(end))
                {
                    found.push(path);
                } else if path.is_dir() {
                    walk(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found
    }
}

/// Exit code and what was said on stderr.
fn finish(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// One line on stderr that begins with `error:` and holds all of these words.
#[track_caller]
fn one_sentence((code, errors): &(Option<i32>, String), words: &[&str]) {
    assert_eq!(*code, Some(1), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    for word in words {
        assert!(lines[0].contains(word), "`{word}` is missing in: {errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn a_full_disk_is_one_sentence_and_leaves_nothing_half_written() {
    let place = Workplace::new();
    let trained = place.run_on_a_full_disk(64, &["train", "--config", "config.json", "--out", "full"]);
    one_sentence(&trained, &["cannot write", "full", "File too large"]);
    assert!(place.unfinished().is_empty(), "{:?}", place.unfinished());

    place.trained("run");
    // A ratings table that outgrows the limit, because the corpus carries a long column.
    let corpus = fs::read_to_string(place.path("data/train.csv")).unwrap();
    let mut long = String::new();
    for (at, line) in corpus.lines().enumerate() {
        let addition = if at == 0 { "long".to_owned() } else { "x".repeat(8_000) };
        long.push_str(&format!("{line},{addition}\n"));
    }
    fs::write(place.path("data/long.csv"), &long).unwrap();
    for out in ["ratings.csv", "ratings.parquet"] {
        let scored = place.run_on_a_full_disk(
            if out.ends_with("csv") { 64 } else { 1 },
            &["score", "--checkpoint", "run", "--data", "data/long.csv", "--out", out],
        );
        one_sentence(&scored, &["cannot write", "ratings", "File too large"]);
        assert!(!place.path(out).exists());
    }
    // What was found by then belongs to rows in their places.
    let score = ["score", "--checkpoint", "run", "--data", "data/long.csv", "--out", "ratings.csv"];
    let mut lines: Vec<&str> = long.lines().collect();
    lines.swap(1, 2);
    fs::write(place.path("data/long.csv"), lines.join("\n")).unwrap();
    one_sentence(&place.run(&score), &["ratings.csv.unfinished", "another job", "--overwrite"]);
    fs::write(place.path("data/long.csv"), &long).unwrap();
    let scored = place.run(&score);
    assert_eq!(scored.0, Some(0), "once there is room again: {}", scored.1);

    let select = ["select", "--ratings", "ratings.csv", "--keep", "80%", "--out", "subset.csv"];
    one_sentence(&place.run_on_a_full_disk(64, &select), &["cannot write", "subset.csv", "File too large"]);
    for name in ["subset.csv", "subset.ids.txt", "subset.summary.json"] {
        assert!(!place.path(name).exists(), "{name} is there");
    }
    assert!(place.unfinished().is_empty(), "{:?}", place.unfinished());
    assert_eq!(place.run(&select).0, Some(0));
}

/// Paths in a corpus start at its folder; what is made of it elsewhere must name the same images.
#[test]
fn images_are_found_from_tables_in_other_folders() {
    let place = Workplace::new();
    place.trained("run");
    fs::create_dir(place.path("chosen")).unwrap();
    let images = |table: &str| -> Vec<String> {
        let mut reader = csv::Reader::from_path(place.path(table)).unwrap();
        let column = reader.headers().unwrap().iter().position(|name| name == "image_save_path").unwrap();
        reader.records().map(|row| row.unwrap()[column].to_owned()).collect()
    };
    let of_corpus = images("data/train.csv");
    assert!(of_corpus.iter().all(|path| path.starts_with("train/")), "the corpus has relative paths");
    let score =
        |out: &str| place.run(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", out]);
    assert_eq!(score("data/sibling.csv").0, Some(0));
    assert_eq!(images("data/sibling.csv"), of_corpus, "in the same folder they stay as they are written");
    assert_eq!(score("elsewhere.csv").0, Some(0));
    for (written, moved) in of_corpus.iter().zip(images("elsewhere.csv")) {
        assert_eq!(
            fs::canonicalize(&moved).unwrap(),
            fs::canonicalize(place.path("data").join(written)).unwrap()
        );
    }
    let subset = "chosen/subset.csv";
    let select = ["select", "--keep", "3", "--overwrite", "--out", subset, "--ratings"];
    let said = place.run(&[&select[..], &["data/sibling.csv"]].concat());
    assert_eq!(said.0, Some(0), "{}", said.1);
    assert!(images(subset).iter().all(|path| Path::new(path).is_absolute() && Path::new(path).is_file()));
    let rated = place.run(&["score", "--checkpoint", "run", "--data", subset, "--out", "chosen/again.csv"]);
    assert_eq!(rated.0, Some(0), "{}", rated.1);
    let failed = fs::read_to_string(place.path("chosen/again.failed.csv")).unwrap();
    assert_eq!(failed.lines().count(), 1, "a header alone: {failed}");
    assert_eq!(images("chosen/again.csv"), images(subset));
    // A corpus' own rows are copied as they are, and a user is told that they lead nowhere.
    let copied = place.run(&[&select[..], &["data/sibling.csv", "--data", "data/train.csv"]].concat());
    assert_eq!(copied.0, Some(0), "{}", copied.1);
    assert!(
        copied.1.contains("data/train.csv has image paths relative to its folder in 3 rows"),
        "{}",
        copied.1
    );
    assert!(images(subset).iter().all(|path| of_corpus.contains(path)));
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let place = Workplace::new();
    fs::write(place.path("file"), "in the way").unwrap();
    let trained = place.run(&["train", "--config", "config.json", "--out", "file/run"]);
    one_sentence(&trained, &["cannot create", "file/run"]);
    place.trained("run");
    let score =
        |out: &str| place.run(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", out]);
    one_sentence(&score("file/ratings.csv"), &["file/ratings"]);
    assert_eq!(score("ratings.csv").0, Some(0));
    let select =
        place.run(&["select", "--ratings", "ratings.csv", "--keep", "3", "--out", "nowhere/subset.csv"]);
    one_sentence(&select, &["create it first", "nowhere/subset"]);
    let demo = place.run(&["demo", "--out", "file/demo"]);
    one_sentence(&demo, &["file/demo"]);
}

#[test]
fn a_checkpoint_that_does_not_fit_or_is_damaged_is_refused() {
    let place = Workplace::new();
    place.trained("run");
    place.trained("other");
    let score = || {
        place.run(&[
            "score",
            "--checkpoint",
            "run",
            "--data",
            "data/train.csv",
            "--out",
            "r.csv",
            "--overwrite",
        ])
    };
    assert_eq!(score().0, Some(0));

    // Another tokenizer: fitted to fewer images, so its codes mean something else.
    let (code, errors) = place.run(&[
        "train",
        "--config",
        "config.json",
        "--out",
        "fewer",
        "--set",
        "image_tokenizer.fit_images=12",
    ]);
    assert_eq!(code, Some(0), "{errors}");
    let swap = |from: &str| {
        fs::remove_dir_all(place.path("run/image_tokenizer")).unwrap();
        copy_folder(&place.path(from).join("image_tokenizer"), &place.path("run/image_tokenizer"));
    };
    swap("fewer");
    one_sentence(&score(), &["image tokenizer"]);
    swap("other");

    let step = newest(&place.path("run/checkpoints"));
    let rater = step.join("rater.safetensors");
    let whole = fs::read(&rater).unwrap();
    fs::write(&rater, &whole[..whole.len() / 2]).unwrap();
    one_sentence(&score(), &["rater.safetensors"]);
    // Whole, but of a network of another shape.
    let (code, errors) =
        place.run(&["train", "--config", "config.json", "--out", "wide", "--set", "rater_width=128"]);
    assert_eq!(code, Some(0), "{errors}");
    fs::copy(newest(&place.path("wide/checkpoints")).join("rater.safetensors"), &rater).unwrap();
    one_sentence(&score(), &["rater"]);
    fs::write(&rater, &whole).unwrap();
    assert_eq!(score().0, Some(0));
    assert!(place.unfinished().is_empty(), "{:?}", place.unfinished());
}

fn newest(checkpoints: &Path) -> PathBuf {
    let folders = fs::read_dir(checkpoints).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).max().expect("a checkpoint")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn send_interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// `select` on so many rows that there is time to interrupt it.
#[test]
fn an_interrupted_selection_leaves_nothing() {
    const ROWS: usize = 1_000_000;
    let place = Workplace::new();
    let mut table = std::io::BufWriter::new(fs::File::create(place.path("ratings.csv")).unwrap());
    writeln!(table, "id,rating,caption").unwrap();
    for row in 0..ROWS {
        writeln!(table, "{row},{},a caption of some length for row {row}", (row * 7_919) % ROWS).unwrap();
    }
    table.into_inner().unwrap().sync_all().unwrap();
    let mut stopped = 0;
    for delay_ms in [20, 60, 120, 240, 480, 960] {
        let mut child = Command::new(PROGRAM)
            .current_dir(place.folder.path())
            .args([
                "select",
                "--ratings",
                "ratings.csv",
                "--keep",
                "50%",
                "--out",
                "subset.csv",
                "--overwrite",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(delay_ms));
        send_interrupt(&child);
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it goes on after Ctrl-C");
            sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(130) => {
                stopped += 1;
                assert!(errors.contains("interrupted; nothing was written"), "{errors}");
                assert!(!place.path("subset.csv").exists());
            }
            // The signal came before the program listened, or after it had done everything.
            None => assert!(!place.path("subset.csv").exists()),
            Some(0) => fs::remove_file(place.path("subset.csv")).unwrap(),
            Some(code) => panic!("exit code {code}: {errors}"),
        }
        assert!(place.unfinished().is_empty(), "{:?}", place.unfinished());
    }
    assert!(stopped > 0, "no interrupt came in time");
}
