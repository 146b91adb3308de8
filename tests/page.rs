//! The page of a run as a user makes it. `scripts/page.sh` opens pages in a browser.
#![cfg(unix)]

mod workplace;

use std::fs;

use serde_json::json;
use workplace::Workplace;

fn trained() -> Workplace {
    let work = Workplace::new(60, &json!({"depth": 1, "raterDepth": 1, "ep": 2, "rule": "excess"}));
    work.succeed(&["train", "--config", "config.json", "--out", "run"]);
    work
}

#[test]
fn a_run_has_a_page_with_its_scores_or_with_its_last_ratings() {
    let work = trained();
    work.succeed(&["report", "--of", "run"]);
    let page = fs::read_to_string(work.path("run/report.html")).unwrap();
    for text in [
        "60 rated pairs of train.csv",
        "the rule is excess",
        "Loss of the proxy over the steps",
        "wrong_caption",
    ] {
        assert!(page.contains(text), "the page says nothing of {text}");
    }
    assert!(page.contains("Mean loss per sample by rating"), "figure 3");
    // Six pairs a tenth, each shown once; the neighbors are among them.
    assert_eq!(page.matches("<img src=\"data:image/jpeg;base64,").count(), 60);

    // Scored, with an image that has gone since: it is said, not replaced.
    work.succeed(&["score", "--checkpoint", "run", "--data", "data/train.csv", "--out", "ratings.csv"]);
    fs::remove_file(work.path("data/train/000007.png")).unwrap();
    work.succeed(&["report", "--of", "run", "--ratings", "ratings.csv", "--out", "page.html"]);
    let page = fs::read_to_string(work.path("page.html")).unwrap();
    assert_eq!(page.matches("<img src=\"data:image/jpeg;base64,").count(), 59);
    assert_eq!(page.matches("class=\"missing\"").count(), 1);
    assert!(page.contains("000007.png"), "why it cannot be read");
    let ratings = csv::Reader::from_path(work.path("ratings.csv")).unwrap().into_records();
    let best = ratings
        .map(|row| row.unwrap())
        .max_by(|one, other| one[1].parse::<f64>().unwrap().total_cmp(&other[1].parse().unwrap()))
        .unwrap();
    let first = page.split("data-tile=\"0\"").nth(1).unwrap();
    assert!(first.contains(&best[3]), "the best rated pair comes first: {}", &best[3]);

    // A column of another name, and none.
    let table = fs::read_to_string(work.path("data/train.csv")).unwrap().replacen(",flaw,", ",kind,", 1);
    fs::write(work.path("data/kinds.csv"), table).unwrap();
    let kinds = ["report", "--of", "run", "--data", "data/kinds.csv", "--out", "kinds.html"];
    work.succeed(&kinds);
    assert!(!fs::read_to_string(work.path("kinds.html")).unwrap().contains("AUROC"));
    work.succeed(&[&kinds[..], &["--flaw-column", "kind", "--overwrite"]].concat());
    assert!(fs::read_to_string(work.path("kinds.html")).unwrap().contains("AUROC"));
    work.refused(
        &["report", "--overwrite", "--of", "run", "--sheets", "excess"],
        &["the page of a comparison"],
    );
    work.refused(&["report", "--overwrite", "--of", "run", "--ratings", "data/train.csv"], &["train.csv"]);
}
