//! A flipped bit in any file that a stopped job reads back: the job either refuses and names the file, or makes anew what was damaged
//! and ends with the bytes of an undisturbed one. It never ends with others.
#![cfg(unix)]

mod workplace;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use alchemist_engine::engine::{Purpose, Random};
use serde_json::json;
use workplace::Workplace;

type Files = BTreeMap<String, Vec<u8>>;

fn workplace() -> Workplace {
    let keys = json!({
        "depth": 1, "raterDepth": 1, "proxy_width": 64, "rater_width": 64, "ep": 3, "rule": "alignment",
        "rater_only_epochs": 0, "checkpoint_every": 3, "keep_checkpoints": 2,
    });
    Workplace::new(48, &keys)
}

/// All files in a folder, in order.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() { files.extend(files_in(&path)) } else { files.push(path) }
    }
    files
}

fn read(paths: &[PathBuf]) -> Files {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Starts a job and asks it to stop as soon as `begun` is there; tried again if it has ended before.
fn stop(work: &Workplace, arguments: &[&str], begun: impl Fn() -> bool, again: impl Fn()) {
    for _ in 0..10 {
        let mut child = work.program(arguments).spawn().unwrap();
        let since = Instant::now();
        while !begun() && child.try_wait().unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(300), "the job has not begun");
            sleep(Duration::from_millis(1));
        }
        let _ended = Command::new("kill").args(["-INT", &child.id().to_string()]).output().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(130) {
            return;
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        again();
    }
    panic!("the job was never stopped");
}

/// Flips a bit in up to `most` files of the stopped job in `state`, one after the other, and gives the command again each time.
fn flip(
    work: &Workplace,
    arguments: &[&str],
    state: &str,
    most: usize,
    clear: impl Fn(),
    result: impl Fn() -> Files,
    expected: &Files,
) {
    let (state, saved) = (work.path(state), work.path("saved"));
    copy(&state, &saved);
    let mut random = Random::new(19, Purpose::Test, 0);
    // Nothing is read from a lock.
    let mut files: Vec<PathBuf> = files_in(&state)
        .into_iter()
        .filter(|path| !path.ends_with("lock") && fs::metadata(path).unwrap().len() > 0)
        .collect();
    random.shuffle(&mut files);
    let (mut refused, mut same) = (0, 0);
    for file in files.iter().take(most) {
        clear();
        copy(&saved, &state);
        let mut bytes = fs::read(file).unwrap();
        let bit = random.below(8 * bytes.len() as u64);
        bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        fs::write(file, bytes).unwrap();
        let output = work.program(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = format!("bit {bit} of {}: {errors}", file.display());
        match output.status.code() {
            Some(0) => {
                assert!(result() == *expected, "another result after {what}");
                same += 1;
            }
            Some(1) => {
                // Of the files of an encoder, one cannot be told from the other.
                let mut names = vec![file.file_name().unwrap().to_string_lossy().into_owned()];
                let folder = file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
                names.extend(["image_tokenizer", "text_encoder"].contains(&&*folder).then_some(folder));
                // Of a marker and the file that it is of, one cannot be told from the other.
                let of = names[0].strip_prefix('.').and_then(|name| name.strip_suffix(".alchemist.json"));
                names.extend(of.map(str::to_owned));
                assert!(names.iter().any(|name| errors.contains(name)), "the file is not named after {what}");
                refused += 1;
            }
            code => panic!("{code:?} after {what}"),
        }
    }
    assert!(refused + same > 0);
    clear();
    copy(&saved, &state);
    assert!(work.program(arguments).output().unwrap().status.success(), "the undamaged job does not go on");
    assert!(result() == *expected);
}

/// A table in which the rows of the training set come often enough for several parts.
fn many_rows(work: &Workplace) {
    let train = fs::read_to_string(work.path("data/train.csv")).unwrap();
    let (header, rows) = train.split_once('\n').unwrap();
    let mut table = format!("{header}\n");
    for copy in 0..24 {
        for row in rows.lines() {
            table.push_str(&format!("{copy}-{row}\n"));
        }
    }
    fs::write(work.path("data/corpus.csv"), &table).unwrap();
}

#[test]
fn parts_of_a_table() {
    let work = workplace();
    work.succeed(&["train", "--config", "config.json", "--out", "run"]);
    many_rows(&work);
    let validation = ["--validation", "data/validation.csv"];
    for (command, more, most) in [("score", &[][..], 6), ("attribute", &validation[..], 8)] {
        let arguments = |out: &'static str| {
            [&[command, "--checkpoint", "run", "--data", "data/corpus.csv", "--out", out], more].concat()
        };
        work.succeed(&arguments("whole.csv"));
        let expected = fs::read(work.path("whole.csv")).unwrap();
        fs::remove_file(work.path("whole.csv")).unwrap();
        let clear = || {
            for stem in ["out", "whole"] {
                for ending in ["csv", "failed.csv", "histogram.png", "contact_sheet.png"] {
                    let _absent = fs::remove_file(work.path(&format!("{stem}.{ending}")));
                }
            }
        };
        clear();
        let first = || work.path(".out.csv.unfinished/parts/0000-00000000.json").exists();
        stop(&work, &arguments("out.csv"), first, clear);
        let result = || Files::from([("out.csv".to_owned(), fs::read(work.path("out.csv")).unwrap())]);
        let expected = Files::from([("out.csv".to_owned(), expected)]);
        flip(&work, &arguments("out.csv"), ".out.csv.unfinished", most, clear, result, &expected);
        clear();
    }
}

#[test]
fn runs() {
    let work = workplace();
    for (command, most) in [("train", 20), ("fit", 12)] {
        work.succeed(&[command, "--config", "config.json", "--out", "whole"]);
        let result = |run: &str| {
            let mut files = work.result(run);
            if command == "train" {
                files.extend(read(&files_in(&work.path(run).join("dynamics"))));
            }
            files
        };
        let arguments = [command, "--config", "config.json", "--resume", "--out", "run"];
        let checkpoints = work.path("run/checkpoints");
        let begun = || {
            fs::read_dir(&checkpoints).is_ok_and(|mut entries| {
                entries.any(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.'))
            })
        };
        stop(&work, &arguments, begun, || fs::remove_dir_all(work.path("run")).unwrap());
        flip(&work, &arguments, "run", most, || {}, || result("run"), &result("whole"));
        for run in ["run", "whole", "saved"] {
            fs::remove_dir_all(work.path(run)).unwrap();
        }
    }
}

#[test]
fn a_token_cache() {
    let work = workplace();
    let arguments = |out: &'static str| {
        ["encode", "--config", "config.json", "--shard", "7", "--text", "f32", "--out", out]
    };
    let shards = |out: &str| {
        let files = files_in(&work.path(out));
        read(&files.into_iter().filter(|path| !path.ends_with("lock")).collect::<Vec<_>>())
    };
    work.succeed(&arguments("whole"));
    let first = || work.path("cache/shard-00001.json").exists();
    stop(&work, &arguments("cache"), first, || fs::remove_dir_all(work.path("cache")).unwrap());
    flip(&work, &arguments("cache"), "cache", 14, || {}, || shards("cache"), &shards("whole"));
}

#[test]
fn a_comparison() {
    let work = workplace();
    let ratings = ["--ratings", "alignment,plain-loss,resolution", "--samplers", "top-k", "--keep", "50%"];
    let arguments = [
        &["compare", "--config", "config.json", "--seeds", "1", "--equal", "epochs", "--out", "compared"],
        &ratings[..],
    ]
    .concat();
    work.succeed(&arguments);
    let fits = || {
        let mut reader = csv::Reader::from_path(work.path("compared/fits.csv")).unwrap();
        let seconds = reader.headers().unwrap().iter().position(|name| name == "seconds");
        let rows = reader.records().enumerate().map(|(at, row)| {
            let row = row.unwrap();
            let cells: Vec<&str> =
                row.iter().enumerate().filter(|(at, _)| Some(*at) != seconds).map(|(_, cell)| cell).collect();
            (at.to_string(), cells.join(",").into_bytes())
        });
        rows.collect::<Files>()
    };
    let expected = fits();
    // One model is still to be fitted.
    let results = files_in(&work.path("compared/fits"));
    let result = results.iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    fs::remove_file(result).unwrap();
    flip(&work, &arguments, "compared", 16, || {}, fits, &expected);
    // What it is a comparison of is its own, too.
    let image = work.path("data/train/000003.png");
    let original = fs::read(&image).unwrap();
    let mut other = original.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&image, other).unwrap();
    work.refused(&arguments, &["000003.png: was replaced, added or deleted"]);
    fs::remove_file(&image).unwrap();
    work.refused(&arguments, &["000003.png: was replaced, added or deleted"]);
    fs::write(&image, original).unwrap();
    let table = work.path("data/train.csv");
    let rows = fs::read_to_string(&table).unwrap();
    let mut lines: Vec<&str> = rows.lines().collect();
    lines.swap(4, 5);
    fs::write(&table, lines.join("\n") + "\n").unwrap();
    work.refused(&arguments, &["compared contains a comparison of other tables", "train.csv"]);
}
