//! `compare` as a user meets it: every arm is fitted and told, a stopped comparison goes on to the same numbers, and what makes a
//! comparison unfair is refused.
#![cfg(unix)]

mod workplace;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use serde_json::json;
use workplace::Workplace;

fn workplace() -> Workplace {
    let sizes = json!({"depth": 1, "raterDepth": 1, "proxy_width": 64, "rater_width": 64, "ep": 2});
    Workplace::new(96, &sizes)
}

trait Tables {
    fn table(&self, name: &str) -> Vec<BTreeMap<String, String>>;
    fn fits(&self, comparison: &str) -> Vec<BTreeMap<String, String>>;
}

impl Tables for Workplace {
    /// The rows of a table, by column.
    fn table(&self, name: &str) -> Vec<BTreeMap<String, String>> {
        let mut reader = csv::Reader::from_path(self.path(name)).unwrap();
        reader.deserialize().map(Result::unwrap).collect()
    }

    /// What every fit came to, without its time.
    fn fits(&self, comparison: &str) -> Vec<BTreeMap<String, String>> {
        let mut rows = self.table(&format!("{comparison}/fits.csv"));
        rows.iter_mut().for_each(|row| drop(row.remove("seconds")));
        rows
    }
}

const COMPARE: [&str; 9] = [
    "compare",
    "--config",
    "config.json",
    "--keep",
    "50%",
    "--ratings",
    "alignment,plain-loss,inner-product,excess-loss,caption-length,clarity",
    "--samplers",
    "top-k,shift-gsample",
];

#[test]
fn every_arm_is_fitted_and_a_stopped_comparison_goes_on() {
    let work = workplace();
    let whole = [&COMPARE[..], &["--seeds", "2", "--out", "whole"]].concat();
    let said = work.succeed(&whole);
    assert!(
        said.contains(
            "96 training records, 8 validation records to guide raters, 8 held-out records to measure models"
        ),
        "{said}"
    );
    let fits = work.fits("whole");
    // Everything once, random, the oracle and twelve chosen parts by both conventions, for two seeds.
    assert_eq!(fits.len(), 2 * (1 + 2 * (2 + 12)));
    for row in &fits {
        let loss: f64 = row["held_out_loss"].parse().unwrap();
        assert!(loss > 0.5 && loss < 4.5, "{row:?}");
        let steps = match (row["rating"].as_str(), row["convention"].as_str()) {
            ("everything", "") | (_, "steps") => "24",
            _ => "12",
        };
        // 65 of 96 are clean, so the oracle keeps a half, too.
        assert_eq!(row["steps"], steps, "{row:?}");
    }
    // The summary is what the fits say.
    let loss = |rating: &str, sampler: &str, convention: &str| -> Vec<f64> {
        let rows = fits.iter().filter(|row| {
            (row["rating"].as_str(), row["sampler"].as_str(), row["convention"].as_str())
                == (rating, sampler, convention)
        });
        rows.map(|row| row["held_out_loss"].parse().unwrap()).collect()
    };
    let summary = work.table("whole/summary.csv");
    assert_eq!(summary.len(), 1 + 2 * (2 + 12));
    let line = summary.iter().find(|row| row["rating"] == "clarity" && row["sampler"] == "top-k").unwrap();
    assert_eq!(line["convention"], "epochs");
    let (own, random, oracle) = (
        loss("clarity", "top-k", "epochs"),
        loss("random", "", "epochs"),
        loss("oracle", "random", "epochs"),
    );
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let number = |name: &str| line[name].parse::<f64>().unwrap();
    approx::assert_relative_eq!(number("held_out_loss"), mean(&own), max_relative = 1e-12);
    let differences = [own[0] - random[0], own[1] - random[1]];
    approx::assert_relative_eq!(number("difference_to_random"), mean(&differences), max_relative = 1e-9);
    let half = 12.706 * (differences[0] - differences[1]).abs() / 2.0;
    approx::assert_relative_eq!(number("difference_half_interval"), half, max_relative = 1e-9);
    if mean(&random) > mean(&oracle) {
        let closed = (mean(&random) - mean(&own)) / (mean(&random) - mean(&oracle));
        approx::assert_relative_eq!(number("gap_closed"), closed, max_relative = 1e-9);
    } else {
        assert_eq!(line["gap_closed"], "");
    }
    // Scales, flaws and images.
    assert_eq!(work.table("whole/scales.csv").len(), 3 * fits.len());
    let flaws = work.table("whole/flaws.csv");
    assert_eq!(flaws.len(), 6 * 5, "six ratings, five flaws");
    assert!(flaws.iter().all(|row| (0.0..=1.0).contains(&row["auroc"].parse::<f64>().unwrap())));
    let subsets = work.table("whole/subsets.csv");
    assert!(subsets.iter().filter(|row| row["rating"] == "oracle").all(|row| row["flaw"] == "clean"));
    assert!(subsets.iter().any(|row| row["rating"] == "random" && row["flaw"] == "noise"));
    for name in ["difference-50-epochs.png", "difference-50-steps.png", "summary.md"] {
        assert!(work.path("whole").join(name).metadata().unwrap().len() > 300, "{name}");
    }

    // A cell is what `fit` gives of its subset.
    let row = fits
        .iter()
        .find(|row| row["rating"] == "alignment" && row["sampler"] == "top-k" && row["seed"] == "1")
        .unwrap();
    let said = work.succeed(&[
        "fit",
        "--config",
        "config.json",
        "--out",
        "by-hand",
        "--data",
        "whole/subsets/alignment_top-k-50%-1.csv",
        "--validation",
        "whole/data/held_out.csv",
        "--set",
        "token_cache=whole/tokens",
        "--set",
        "seed=1",
    ]);
    let loss: f64 = row["held_out_loss"].parse().unwrap();
    assert!(said.contains(&format!("validation: loss {loss:.4}")), "{said}, not {loss}");

    // One page of all that, from the folder alone.
    work.succeed(&["report", "--of", "whole"]);
    let page = fs::read_to_string(work.path("whole/report.html")).unwrap();
    let difference = format!("{:+.4}", number("difference_to_random")).replace('-', "−");
    for text in [
        "with 2 seeds on everything",
        "8 other pairs guide the raters; the models are measured on 8",
        "50% kept, equal epochs",
        "50% kept, equal steps",
        &difference,
        "AUROC",
        "Composition of the subsets, 50% kept",
        "rater by alignment",
        "the model itself, on everything",
    ] {
        assert!(page.contains(text), "the page says nothing of {text}");
    }
    // Two tables of fifteen lines and two of their caption gains, one of flaws, two of what is in the subsets (everything's and 50%'s), one of costs.
    assert_eq!(page.matches("<table>").count(), 2 * 2 + 1 + 2 + 1);
    assert_eq!(page.matches("<td data-sort=\"clarity\">").count(), 2 * 2 * 2 + 1 + 2);
    assert_eq!(page.matches("class=\"sheet\"").count(), 3, "the three best ratings have sheets");
    // 96 pairs: each decile shows all its nine or ten.
    assert!(page.matches("<img src=\"data:image/jpeg;base64,").count() >= 3 * 90);
    let chosen = ["report", "--of", "whole", "--sheets", "caption-length", "--out", "one.html"];
    work.succeed(&chosen);
    let page = fs::read_to_string(work.path("one.html")).unwrap();
    assert!(
        page.contains("Ratings by caption-length, seed 0") && page.matches("class=\"sheet\"").count() == 1
    );
    // A rater that diverged with the first seed has left nothing of it, and one that was killed has not said what it took.
    let (rated, away) = (work.path("whole/ratings/alignment-0.csv"), work.path("away.csv"));
    fs::rename(&rated, &away).unwrap();
    work.succeed(&["report", "--of", "whole", "--sheets", "alignment", "--out", "one.html", "--overwrite"]);
    let page = fs::read_to_string(work.path("one.html")).unwrap();
    assert!(page.contains("Ratings by alignment, seed 1") && page.matches("class=\"sheet\"").count() == 1);
    fs::rename(&away, &rated).unwrap();
    for seed in ["0", "1"] {
        fs::remove_file(work.path(&format!("whole/raters/alignment-{seed}.train.seconds"))).unwrap();
    }
    work.succeed(&whole);
    work.succeed(&["report", "--of", "whole", "--out", "one.html", "--overwrite"]);
    assert!(work.fits("whole") == fits);
    work.refused(&["report", "--overwrite", "--of", "whole", "--sheets", "loss"], &["no ratings by loss"]);
    work.refused(&["report", "--overwrite", "--of", "whole", "--ratings", "x.csv"], &["the page of a run"]);
    work.refused(&["report", "--overwrite", "--of", "data"], &["neither a run of `train` nor a comparison"]);

    // Stopped anywhere, it comes to the same; first with one seed only.
    let one = [&COMPARE[..], &["--seeds", "1", "--out", "stopped"]].concat();
    let kills = work.killed(&one, 8, 120, 90);
    assert!(kills > 0, "the comparison was never killed");
    work.succeed(&one);
    let results = || -> BTreeMap<PathBuf, u64> {
        let entries = fs::read_dir(work.path("stopped/fits")).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|entry| entry.path().extension().is_some_and(|end| end == "json"))
            .map(|entry| (entry.path(), entry.metadata().unwrap().ino()))
            .collect()
    };
    let first = results();
    work.succeed(&[&COMPARE[..], &["--seeds", "2", "--out", "stopped"]].concat());
    assert!(work.fits("stopped") == fits, "a stopped comparison comes to something else");
    let both = results();
    assert!(first.iter().all(|(path, inode)| both.get(path) == Some(inode)), "a fit was made again");
    assert!(both.len() > first.len());
}

const QUICK: [&str; 9] = [
    "compare",
    "--config",
    "config.json",
    "--seeds",
    "1",
    "--samplers",
    "block:0.6",
    "--ratings",
    "resolution",
];

fn run<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&QUICK[..], more].concat()
}

#[test]
fn what_makes_a_comparison_unfair_is_refused() {
    let work = workplace();
    work.refused(&run(&["--out", "few", "--keep", "5%"]), &["5% of 96", "leaves 5", "batch of 8"]);
    work.refused(&run(&["--out", "name", "--samplers", "best"]), &["unknown sampler `best`", "top-k"]);
    work.refused(&run(&["--out", "flaw", "--flaw-column", "flawed"]), &["no column `flawed`"]);
    // The validation set may have other columns than the corpus.
    let table = fs::read_to_string(work.path("data/validation.csv")).unwrap();
    let more = table
        .lines()
        .enumerate()
        .map(|(at, line)| format!("{},{line}\n", if at == 0 { "more" } else { "x" }));
    fs::write(work.path("data/wide.csv"), more.collect::<String>()).unwrap();
    let wide = ["--out", "wide", "--validation", "data/wide.csv", "--keep", "30%", "--equal", "epochs"];
    let said = work.succeed(&run(&wide));
    assert!(
        said.contains(
            "96 training records, 8 validation records to guide raters, 8 held-out records to measure models"
        ),
        "{said}"
    );
    // Without a validation set records are held out, and the column of flaws need not be there.
    let table = fs::read_to_string(work.path("data/train.csv")).unwrap();
    fs::write(work.path("data/plain.csv"), table.replacen(",flaw,", ",kind,", 1)).unwrap();
    let without = [
        "--out",
        "without",
        "--data",
        "data/plain.csv",
        "--set",
        "data_args.val_csv_path=",
        "--equal",
        "epochs",
    ];
    let said = work.succeed(&run(&[&without[..], &["--keep", "30%"]].concat()));
    assert!(said.contains("19 records are held out"), "{said}");
    assert!(
        said.contains(
            "77 training records, 10 validation records to guide raters, 9 held-out records to measure models"
        ),
        "{said}"
    );
    assert!(!work.path("without/flaws.csv").exists());
    // The block of 50% from 60% on would run past the end.
    let said = work.succeed(&run(&[&without[..], &["--keep", "30%,50%"]].concat()));
    assert!(said.contains("resolution block:0.6 has no 50%"), "{said}");
    assert!(said.contains("| 30% | epochs | resolution | block:0.6 |"), "{said}");
    assert!(
        !said.contains("| 50% | epochs | resolution |") && said.contains("| 50% | epochs | random |"),
        "{said}"
    );
    work.refused(&run(&[&without[..], &["--set", "tlr=1e-3"]].concat()), &["another configuration"]);
    if cfg!(feature = "emulator") {
        work.refused(
            &run(&[&without[..], &["--device", "emulated"]].concat()),
            &["other arithmetic", "--device"],
        );
    }
    // What is set aside is not flawed where that is known; with nothing clean there is no ceiling. A sampler that drops the best
    // cannot keep nearly all.
    let flawed = |table: &str| {
        let rows = work.table(table);
        rows.iter().filter(|row| row["flaw"] != "clean").count()
    };
    let aside = [
        "--allow-duplicates",
        "--set",
        "data_args.val_csv_path=",
        "--equal",
        "epochs",
        "--keep",
        "30%,97%",
        "--out",
    ];
    let said = work.succeed(&run(&[&aside[..], &["sound", "--samplers", "shift-gsample"]].concat()));
    assert_eq!(["validation", "held_out"].map(|set| flawed(&format!("sound/data/{set}.csv"))), [0, 0]);
    assert!(flawed("sound/data/pool.csv") > 10);
    assert!(
        said.contains("shift-gsample:0.05/0.3/0.25 has no 97%")
            && !said.contains("| 97% | epochs | resolution |"),
        "{said}"
    );
    let all = table
        .lines()
        .enumerate()
        .map(|(at, line)| if at == 0 { format!("{line}\n") } else { line.replace("clean", "noise") + "\n" });
    fs::write(work.path("data/flawed.csv"), all.collect::<String>()).unwrap();
    let said = work.succeed(&run(&[
        "--out",
        "flawed",
        "--data",
        "data/flawed.csv",
        "--keep",
        "30%",
        "--equal",
        "epochs",
    ]));
    assert!(said.contains("no ceiling (`oracle`)") && !said.contains("| oracle |"), "{said}");
    // Fewer than a batch to guide raters or to measure models on, as rows and as images that can be read.
    let validation = fs::read_to_string(work.path("data/validation.csv")).unwrap();
    let few: Vec<&str> = validation.lines().take(10).collect();
    fs::write(work.path("data/few.csv"), few.join("\n")).unwrap();
    let refused = ["usable records, fewer than", "batch of 8"];
    work.refused(&run(&["--out", "rows", "--validation", "data/few.csv"]), &refused);
    assert!(!work.path("rows/tokens").exists(), "it is refused before images are looked at");
    let unreadable = validation.replace("validation/", "absent/");
    fs::write(work.path("data/unreadable.csv"), unreadable).unwrap();
    work.refused(&run(&["--out", "unreadable", "--validation", "data/unreadable.csv"]), &refused);
    // Images in two of the sets.
    let same = run(&["--out", "same", "--held-out", "data/validation.csv"]);
    work.refused(&same, &["16 validation images are also in the held-out set", "--allow-duplicates"]);
    fs::copy(work.path("data/train/000003.png"), work.path("data/validation/000099.png")).unwrap();
    let shared = run(&["--out", "shared", "--keep", "30%", "--equal", "epochs"]);
    work.refused(&shared, &["1 training images are also in the held-out set", "--allow-duplicates"]);
    let said = work.succeed(&[&shared[..], &["--allow-duplicates"]].concat());
    assert!(said.contains("1 training images are also in the held-out set"), "{said}");
}

const DISTANCE: &str = "Fréchet distance of tokenizer features, mean and standard deviation over the grid";

#[test]
fn models_draw_images_that_are_measured() {
    let work = workplace();
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures_made/clip_image_tiny");
    let plain = [
        "compare",
        "--config",
        "config.json",
        "--seeds",
        "2",
        "--samplers",
        "top-k",
        "--ratings",
        "resolution",
        "--keep",
        "50%",
        "--equal",
        "epochs",
        "--out",
        "compared",
    ];
    let drawing = [&plain[..], &["--images", "6", "--clip", clip]].concat();
    let results = || -> BTreeMap<PathBuf, u64> {
        let entries = fs::read_dir(work.path("compared/fits")).unwrap().map(|entry| entry.unwrap());
        let json = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "json"));
        json.map(|entry| (entry.path(), entry.metadata().unwrap().ino())).collect()
    };
    work.succeed(&plain);
    let (without, fits) = (results(), work.fits("compared"));
    assert!(fits.iter().all(|row| !row.contains_key("images") && !row.contains_key(DISTANCE)));
    assert!(!work.path("compared/images").exists());

    // Stopped anywhere, it comes to the same.
    work.killed(&drawing, 3, 700, 400);
    let said = work.succeed(&drawing);
    assert!(said.contains("6 images are too few for a full-rank covariance of 16 dimensions"), "{said}");
    let drawn = work.fits("compared");
    let score = drawn[0]
        .keys()
        .find(|name| name.starts_with("CLIP-Score, mean of max(100 · cos, 0), CLIP ViT"))
        .unwrap();
    for (row, before) in drawn.iter().zip(&fits) {
        assert_eq!((&row["images"][..], &row["held_out_loss"]), ("6", &before["held_out_loss"]));
        assert!(row[DISTANCE].parse::<f64>().unwrap() > 0.0, "{row:?}");
        assert!((0.0..=100.0).contains(&row[score].parse::<f64>().unwrap()), "{row:?}");
        let folder = work.path("compared/images").join(&row["fit"]);
        assert!(folder.join("0005_00.png").exists() && !folder.join("0006_00.png").exists());
        assert!(!folder.join("grid.png").exists());
    }
    // What `measure` says of the same images.
    let row = drawn.iter().find(|row| row["rating"] == "resolution" && row["seed"] == "1").unwrap();
    let folder = format!("compared/images/{}", row["fit"]);
    work.succeed(&[
        "measure",
        "--generated",
        &folder,
        "--reference",
        "compared/data/held_out.csv",
        "--config",
        "config.json",
        "--set",
        "token_cache=compared/tokens",
        "--clip",
        clip,
        "--out",
        "measured.json",
    ]);
    let measured: serde_json::Value =
        serde_json::from_slice(&fs::read(work.path("measured.json")).unwrap()).unwrap();
    for (at, name) in [(0, DISTANCE), (1, score)] {
        assert_eq!(measured["measures"][at]["name"], name);
        assert_eq!(measured["measures"][at]["value"].as_f64().unwrap(), row[name].parse::<f64>().unwrap());
    }
    // The summary is what the fits say.
    let value = |rating: &str| -> Vec<f64> {
        let rows = drawn.iter().filter(|row| row["rating"] == rating);
        rows.map(|row| row[DISTANCE].parse().unwrap()).collect()
    };
    let (own, random) = (value("resolution"), value("random"));
    let summary = work.table("compared/summary.csv");
    let line = summary.iter().find(|row| row["rating"] == "resolution").unwrap();
    let number = |name: &str| line[name].parse::<f64>().unwrap();
    approx::assert_relative_eq!(number(DISTANCE), (own[0] + own[1]) / 2.0, max_relative = 1e-12);
    let differences = [own[0] - random[0], own[1] - random[1]];
    let mean = (differences[0] + differences[1]) / 2.0;
    approx::assert_relative_eq!(
        number(&format!("{DISTANCE}, difference_to_random")),
        mean,
        max_relative = 1e-9
    );
    let half = 12.706 * (differences[0] - differences[1]).abs() / 2.0;
    approx::assert_relative_eq!(
        number(&format!("{DISTANCE}, difference_half_interval")),
        half,
        max_relative = 1e-9
    );
    let text = fs::read_to_string(work.path("compared/summary.md")).unwrap();
    assert!(text.contains(&format!(
        "{DISTANCE}: of 6 images that each model generates from held-out captions, compared with 8"
    )));
    assert!(text.contains(&format!("{score}: of 6 images")), "{text}");

    // What was fitted before is not fitted again, and knows nothing of images.
    let both = results();
    assert!(without.iter().all(|(path, inode)| both.get(path) == Some(inode)), "a fit was made again");
    assert_eq!(both.len(), 2 * without.len());
    work.succeed(&plain);
    assert!(work.fits("compared") == fits && results() == both);
    // Others are.
    work.succeed(&[&plain[..], &["--images", "5"]].concat());
    assert_eq!(results().len(), 3 * without.len());
    let too_many = [&plain[..], &["--images", "9"]].concat();
    work.refused(&too_many, &["cannot generate 9 images from 8 held-out captions"]);
    work.refused(&[&drawing[..], &["--features", "inception"]].concat(), &["--inception FILE"]);
}
