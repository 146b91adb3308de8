//! The programs in `examples/`, which `cargo test` builds: each runs, and prints what it promises.
#![cfg(unix)]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use alchemist_engine::data::{
    corruption::FlawShares,
    synthetic::{DataSetSettings, write_data_set},
};

/// An example's program, in `examples/` next to the folder of this test's.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing; `cargo build --release --examples` builds it",
        program.display()
    );
    Command::new(program)
}

#[track_caller]
fn printed(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_rule_of_ones_own_trains_a_rater() {
    let printed = printed(example("own_rule").output().unwrap());
    assert!(printed.contains("\nstep 59: validation loss "), "{printed}");
    let (_, table) = printed.split_once("\nrank   rating  constant  caption\n").unwrap();
    let (mut ratings, mut constants) = (Vec::new(), Vec::new());
    for (at, line) in table.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words[0] == (at + 1).to_string() && words.len() > 4, "{line}");
        ratings.push(words[1].parse::<f64>().unwrap());
        constants.push(words[2].parse::<f64>().unwrap());
    }
    assert!(ratings.len() == 32 && ratings.is_sorted_by(|one, other| one >= other), "{table}");
    // The best-rated half is closer to the validation gradient.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (best, worst) = (mean(&constants[..16]), mean(&constants[16..]));
    assert!(best < worst, "{best} and {worst}:\n{table}");
}

#[test]
fn a_corpus_is_rated_from_rust() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        DataSetSettings { train: 48, validation: 8, side: 24, shares: FlawShares::default(), seed: 3 };
    let data = write_data_set(&folder.path().join("data"), &settings).unwrap();
    let run = folder.path().join("run");
    let rate = |sets: &[&str]| {
        let mut command = example("rate");
        command.arg(&data.train_csv).arg(&run).args(sets);
        printed(command.output().unwrap())
    };
    let first = rate(&["pn=1_2_3", "depth=1", "proxy_width=64", "raterDepth=1", "bs=8", "crossfit.epochs=2"]);
    assert!(first.contains(" steps of the rater on 48 records (0 skipped)"), "{first}");
    assert!(first.contains("48 rows in = 48 scored + 0 failed"), "{first}");
    let (_, lists) = first.split_once("\nbest\n").unwrap();
    let (best, worst) = lists.split_once("\nworst\n").unwrap();
    let ratings = |list: &str| -> Vec<f64> {
        list.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
    };
    let all = [ratings(best), ratings(worst)].concat();
    assert_eq!(all.len(), 20, "{first}");
    assert!(all.is_sorted_by(|one, other| one >= other) && all[0] > all[19], "{first}");
    // The run is there now: it is loaded, and rates as before.
    let again = rate(&[]);
    assert!(!again.contains(" steps of "), "{again}");
    assert!(first.ends_with(&again), "{again}");
    let output = example("rate").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: rate CORPUS.csv RUN"));
}
