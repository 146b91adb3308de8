//! Whatever a user puts into an output or next to it, before a command, while it runs or after it, stays as it is.
#![cfg(unix)]

mod workplace;

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;
use workplace::Workplace;

fn place() -> Workplace {
    let place = Workplace::new(40, &json!({"depth": 1, "raterDepth": 1, "ep": 1, "rater_only_epochs": 0}));
    place.succeed(&["train", "--config", "config.json", "--out", "run"]);
    place.succeed(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "ratings.csv"]);
    place
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Starts a command, does something to the user's files as soon as `begun` exists, while the command stands still, and lets it end;
/// its exit code and what it said.
#[track_caller]
fn meanwhile(
    place: &Workplace,
    arguments: &[&str],
    begun: &str,
    act: impl FnOnce(),
) -> (Option<i32>, String) {
    let mut child = place.program(arguments).spawn().unwrap();
    let started = Instant::now();
    while !place.path(begun).exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "{arguments:?} has not begun");
        assert_eq!(child.try_wait().unwrap(), None, "{arguments:?} has ended");
        sleep(Duration::from_micros(200));
    }
    send("-STOP", &child);
    act();
    send("-CONT", &child);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn is_mine(path: &Path) {
    assert_eq!(fs::read_to_string(path).ok().as_deref(), Some("mine"), "{} was touched", path.display());
}

const SAMPLE: [&str; 7] = ["sample", "--checkpoint", "model", "--prompt", "a circle", "--each", "100"];

#[test]
fn what_comes_while_a_command_runs_is_neither_replaced_nor_claimed() {
    let place = place();
    place.succeed(&["fit", "--config", "config.json", "--out", "model"]);
    let sample = |out, more: &[&'static str]| [&SAMPLE[..], &["--out", out], more].concat();

    // A folder with the output's name.
    let (code, said) = meanwhile(&place, &sample("new", &[]), ".new.unfinished", || {
        fs::create_dir(place.path("new")).unwrap();
        fs::write(place.path("new/mine.txt"), "mine").unwrap();
    });
    assert_eq!(code, Some(1), "{said}");
    is_mine(&place.path("new/mine.txt"));

    // A file within a folder that is to be replaced, and another command's output in it.
    place.succeed(&["sample", "--checkpoint", "model", "--prompt", "a fox", "--out", "old"]);
    let (code, said) = meanwhile(&place, &sample("old", &["--overwrite"]), ".old.unfinished", || {
        fs::write(place.path("old/mine.txt"), "mine").unwrap();
    });
    assert_eq!(code, Some(1), "{said}");
    is_mine(&place.path("old/mine.txt"));
    fs::remove_file(place.path("old/mine.txt")).unwrap();
    let select = ["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", "old/chosen.csv"];
    let (code, said) = meanwhile(&place, &sample("old", &["--overwrite"]), ".old.unfinished", || {
        place.succeed(&select);
    });
    assert_eq!(code, Some(0), "{said}");
    assert!(place.path("old/chosen.csv").exists() && place.path("old/chosen.ids.txt").exists(), "{said}");
    place.succeed(&[&select[..], &["--overwrite"]].concat());

    // A file that is to be replaced is edited.
    let score = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "s.csv"];
    place.succeed(&score);
    let again = [&score[..], &["--overwrite"]].concat();
    let (code, said) = meanwhile(&place, &again, ".s.csv.unfinished/parts", || {
        fs::write(place.path("s.csv"), "mine").unwrap();
    });
    assert_eq!(code, Some(1), "{said}");
    is_mine(&place.path("s.csv"));

    // The lock is removed, and another job writes the same output.
    let (code, said) = meanwhile(&place, &sample("twice", &[]), ".twice.unfinished", || {
        fs::remove_file(place.path(".twice.lock")).unwrap();
        fs::create_dir(place.path("twice")).unwrap();
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("was removed while"), "{said}");
}

#[test]
fn what_lies_in_a_run_is_never_listed_as_its_own() {
    let place = place();
    let train =
        |more: &[&'static str]| [&["train", "--config", "config.json", "--out", "run"], more].concat();
    fs::write(place.path("run/mine.txt"), "mine").unwrap();
    place.succeed(&train(&["--resume"]));
    place.refused(&train(&["--overwrite"]), &["mine.txt", "not replaced"]);
    fs::remove_file(place.path("run/mine.txt")).unwrap();
    let slow = ["train", "--config", "config.json", "--out", "slow", "--set", "ep=6"];
    let (code, said) = meanwhile(&place, &slow, "slow/metrics.jsonl", || {
        fs::write(place.path("slow/mine.txt"), "mine").unwrap();
        fs::create_dir(place.path("slow/album")).unwrap();
        fs::write(place.path("slow/album/mine.txt"), "mine").unwrap();
    });
    assert_eq!(code, Some(0), "{said}");
    place.refused(&[&slow[..], &["--overwrite"]].concat(), &["mine.txt", "not replaced"]);
    is_mine(&place.path("slow/mine.txt"));
    is_mine(&place.path("slow/album/mine.txt"));
    let encode = |more: &[&'static str]| {
        [&["encode", "--config", "config.json", "--shard", "9", "--out", "tokens"], more].concat()
    };
    place.succeed(&encode(&[]));
    fs::write(place.path("tokens/mine.txt"), "mine").unwrap();
    place.succeed(&encode(&[]));
    place.refused(&encode(&["--set", "seed=9", "--overwrite"]), &["mine.txt", "not replaced"]);

    // What other commands wrote into a run outlives the run.
    let score = ["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "run/ratings.csv"];
    place.succeed(&score);
    place.succeed(&["report", "--of", "run"]);
    let said = place.succeed(&train(&["--overwrite", "--set", "seed=4"]));
    assert!(said.contains("except for files written by other commands: ratings.contact_sheet.png"), "{said}");
    for name in ["ratings.csv", "ratings.histogram.png", "report.html"] {
        assert!(place.path("run").join(name).exists(), "{name} is gone");
    }
    place.succeed(&[&score[..], &["--overwrite"]].concat());
    assert!(!place.path(".run.replaced").exists());
}

#[test]
fn hidden_files_of_the_user_are_not_the_programs() {
    let place = place();
    let select = |out| ["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", out];
    // Under the name of a lock: a text, a second name of an input, a pipe.
    fs::write(place.path(".a.csv.lock"), "mine").unwrap();
    place.refused(&select("a.csv"), &[".a.csv.lock", "is not a lock of this program"]);
    is_mine(&place.path(".a.csv.lock"));
    fs::copy(place.path("ratings.csv"), place.path("linked.csv")).unwrap();
    let table = fs::read(place.path("linked.csv")).unwrap();
    fs::hard_link(place.path("linked.csv"), place.path(".b.csv.lock")).unwrap();
    place.refused(&select("b.csv"), &[".b.csv.lock", "is not a lock of this program"]);
    assert!(fs::read(place.path("linked.csv")).unwrap() == table);
    fs::create_dir(place.path(".c.csv.lock")).unwrap();
    place.refused(&select("c.csv"), &[".c.csv.lock", "is not a lock of this program"]);
    // In a folder that is to be replaced.
    let pack = |more: &[&'static str]| {
        [&["pack", "--data", "data/train.csv", "--format", "imagefolder", "--out", "packed"], more].concat()
    };
    place.succeed(&pack(&[]));
    for name in [".poetry.lock", ".unfinished-novel.txt"] {
        fs::write(place.path("packed").join(name), "mine").unwrap();
        place.refused(&pack(&["--overwrite"]), &[name, "not replaced"]);
        is_mine(&place.path("packed").join(name));
        fs::remove_file(place.path("packed").join(name)).unwrap();
    }
    // Names that only the program gives.
    for out in [".x.csv.unfinished", ".x.replaced", ".x.lock", ".alchemist.json"] {
        place.refused(&["train", "--config", "config.json", "--out", out], &[out, "for its own files"]);
    }
    // Folders that lie where the program keeps a former output, with something of the user's in them.
    for hidden in [".run.unfinished", ".run.replaced"] {
        let copied =
            Command::new("cp").arg("-r").args([place.path("run"), place.path(hidden)]).status().unwrap();
        assert!(copied.success());
        fs::write(place.path(hidden).join("mine.txt"), "mine").unwrap();
        place.refused(&["train", "--config", "config.json", "--out", "run"], &[hidden, "mine.txt"]);
        is_mine(&place.path(hidden).join("mine.txt"));
        fs::remove_dir_all(place.path(hidden)).unwrap();
    }
}

#[test]
fn a_marker_speaks_for_its_own_output_alone() {
    let place = place();
    let select = |out, more: &[&'static str]| {
        [&["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", out], more].concat()
    };
    place.succeed(&select("a.csv", &[]));
    fs::copy(place.path(".a.csv.alchemist.json"), place.path(".b.csv.alchemist.json")).unwrap();
    place.succeed(&select("b.csv", &["--overwrite"]));
    for name in ["a.csv", "a.ids.txt", "a.summary.json"] {
        assert!(place.path(name).exists(), "{name} is gone");
    }
    // Nor may one command replace what another wrote.
    for arguments in [
        &["report", "--of", "run", "--out", "a.csv", "--overwrite"][..],
        &["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "a.csv", "--overwrite"],
        &["pack", "--data", "data/train.csv", "--format", "csv", "--out", "a.csv", "--overwrite"],
    ] {
        place.refused(arguments, &["a.csv", "was written by `select`"]);
    }
    // A companion that belongs to another table.
    place.succeed(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "t.csv"]);
    place.refused(
        &["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "t.parquet", "--overwrite"],
        &["t.histogram.png", "belongs to t.csv"],
    );
}

#[test]
fn the_lock_of_another_host_expires_whatever_its_clock_says() {
    let place = place();
    let select = |out| ["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", out];
    for (out, ahead, old) in [("now.csv", false, 0), ("past.csv", false, 3600), ("future.csv", true, 3600)] {
        let lock = place.path(&format!(".{out}.lock"));
        fs::write(&lock, r#"{"command":"score","host":"another","process":1}"#).unwrap();
        let shift = Duration::from_secs(old);
        let time = if ahead { SystemTime::now() + shift } else { SystemTime::now() - shift };
        fs::File::options().write(true).open(&lock).unwrap().set_modified(time).unwrap();
        if old == 0 {
            place.refused(&select(out), &["on another", "expires within 60 s"]);
        } else {
            place.succeed(&select(out));
        }
    }
}

/// Nothing was written yet, so nothing has to end first.
#[test]
fn a_command_that_waits_for_its_first_input_can_be_stopped() {
    let place = place();
    assert!(Command::new("mkfifo").arg(place.path("pipe")).status().unwrap().success());
    for arguments in [
        &["train", "--config", "pipe", "--out", "out"][..],
        &["sample", "--checkpoint", "run", "--prompts", "pipe", "--out", "out"],
    ] {
        let mut child = place.program(arguments).spawn().unwrap();
        sleep(Duration::from_millis(500));
        send("-TERM", &child);
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{arguments:?} goes on");
            sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was written"));
    }
    place.refused(&["inspect", "pipe"], &["pipe", "not a regular file"]);
}
