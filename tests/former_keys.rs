//! A run that an earlier version wrote, with the former names of keys: it is read with one warning, and not resumed.
#![cfg(unix)]

mod workplace;

use std::{fs, path::Path};

use alchemist_engine::files::{sealed::seal, sha256};
use serde_json::{Value, json};
use workplace::Workplace;

const WARNING: &str =
    "config.json: written by an earlier version; renamed keys are read under their new names";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes a run as an earlier version would have: its configuration, what its start says of it, and its checkpoints.
fn make_former(run: &Path) {
    let path = run.join("config.json");
    let mut config = read(&path);
    let keys = config.as_object_mut().unwrap();
    assert_eq!(keys.remove("rater_objective"), Some(json!("reweight")));
    keys.insert("rater_teaching".to_owned(), json!("weights"));
    assert_eq!(keys.insert("rule_scaling".to_owned(), json!("centre")), Some(json!("center")));
    let compat = keys["compat"].as_object_mut().unwrap();
    let gray = compat.remove("clip_gray16").unwrap();
    compat.insert("clip_grey16".to_owned(), gray);
    let text = config.to_string();
    fs::write(&path, &text).unwrap();

    let path = run.join("provenance.json");
    let mut starts = read(&path);
    let start = starts[0].as_object_mut().unwrap();
    start.insert("config".to_owned(), json!(sha256(text.as_bytes())));
    let link = start.keys().next_back().unwrap().clone();
    start.shift_remove(&link);
    let sum = sha256(json!([null, start]).to_string().as_bytes());
    start.insert(link, json!(sum));
    fs::write(&path, starts.to_string()).unwrap();

    for checkpoint in fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = checkpoint.unwrap().path().join("state.json");
        let mut state = read(&path);
        state.as_object_mut().unwrap().shift_remove("sha256");
        state["state"]["config"] = json!("0".repeat(64));
        fs::write(&path, seal(state.to_string().into_bytes())).unwrap();
    }
}

#[test]
fn a_run_with_former_keys_is_read_with_one_warning_and_not_resumed() {
    let keys = json!({
        "depth": 1, "raterDepth": 1, "ep": 1,
        "rater_objective": "reweight", "rule_scaling": "center", "compat": {"clip_gray16": true},
    });
    let work = Workplace::new(40, &keys);
    work.succeed(&["train", "--config", "config.json", "--out", "run"]);
    work.succeed(&["fit", "--config", "config.json", "--out", "model"]);
    let reading: &[(&[&str], &str)] = &[
        (&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out"], "ratings.csv"),
        (
            &[
                "attribute",
                "--checkpoint",
                "run",
                "--data",
                "data/train.csv",
                "--validation",
                "data/validation.csv",
                "--out",
            ],
            "attribution.csv",
        ),
        (&["report", "--of", "run", "--out"], "page.html"),
        (&["export", "--checkpoint", "run", "--out"], "weights.pth"),
        (&["sample", "--checkpoint", "model", "--prompt", "a red circle", "--out"], "images"),
        (&["encode", "--run", "run", "--data", "data/train.csv", "--out"], "tokens"),
    ];
    for (arguments, out) in reading {
        let output = work.program(&[*arguments, &[*out]].concat()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    for run in ["run", "model"] {
        make_former(&work.path(run));
    }
    for (arguments, out) in reading {
        let again = format!("again-{out}");
        let output = work.program(&[*arguments, &[again.as_str()]].concat()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        assert_eq!(errors.matches(WARNING).count(), 1, "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
        if out.ends_with(".csv") {
            assert!(
                fs::read(work.path(out)).unwrap() == fs::read(work.path(&again)).unwrap(),
                "{out} differs"
            );
        }
    }
    for (command, run) in [("train", "run"), ("fit", "model")] {
        let before = work.result(run);
        for arguments in
            [&[command, "--resume", run][..], &[command, "--config", "config.json", "--out", run, "--resume"]]
        {
            let said = work.refused(
                arguments,
                &[
                    "config.json: was written by an earlier version",
                    "rater_teaching is now rater_objective",
                    "--out",
                ],
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        assert!(work.result(run) == before, "{run} was changed");
    }
    // The configuration of a user is refused with the new name.
    let mut config = read(&work.path("config.json"));
    config["rater_teaching"] = json!("weights");
    fs::write(work.path("former.json"), config.to_string()).unwrap();
    work.refused(
        &["train", "--config", "former.json", "--out", "new"],
        &["former.json: rater_teaching: was renamed to `rater_objective`"],
    );
}
