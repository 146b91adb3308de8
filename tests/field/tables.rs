//! Corpora as people have them: other columns, separators and spreadsheets' habits, read by every command; and files that are no
//! tables, named. The inputs and what Python's csv module reads from them are made by make_tables.py.

#[path = "../workplace/mod.rs"]
mod workplace;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::{
    Error,
    data::{ColumnNames, Corpus, Record},
    measure::images::images,
    select::{RatingColumns, RatingsTable},
};
use serde::Deserialize;
use serde_json::json;
use workplace::Workplace;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/tables")
}

/// A table that is read.
#[derive(Deserialize)]
struct Accepted {
    /// Id, image's path as it is written, and caption of each row.
    rows: Vec<[String; 3]>,
    /// What is said of its columns.
    said: Vec<String>,
}

/// A table with rows that cannot be used.
#[derive(Deserialize)]
struct BadRows {
    rows: Vec<[String; 3]>,
    /// Line and what is wrong.
    bad: Vec<(u64, String)>,
}

#[derive(Deserialize)]
struct Expected {
    accepted: BTreeMap<String, Accepted>,
    /// Files that are no tables, and the word that names each.
    refused: BTreeMap<String, String>,
    bad_rows: BadRows,
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn open(path: &Path) -> Result<Corpus, Error> {
    Corpus::open(path, &ColumnNames::default())
}

fn told(records: &[Record], folder: &Path) -> Vec<[String; 3]> {
    let told = |record: &Record| {
        let image = record.image.as_path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        [record.id.clone(), image, record.caption.clone()]
    };
    records.iter().map(told).collect()
}

/// Runs the program; its exit code, and what it says on both streams.
fn program(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_alchemist-engine")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), said)
}

#[test]
fn every_table_is_read_as_pythons_csv_module_reads_it_and_what_was_taken_is_said_once() {
    let place = tempfile::tempdir().unwrap();
    for (name, Accepted { rows, said }) in expected().accepted {
        let path = folder().join(&name);
        let records = open(&path).and_then(Corpus::read_all).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(told(&records, &folder()), rows, "{name}");
        let data = path.to_str().unwrap();
        // It says of a table what it took, and how to name others, and says nothing of one with the released names.
        let out = place.path().join("packed.csv");
        let (code, packed) = program(&[
            "pack",
            "--format",
            "csv",
            "--overwrite",
            "--data",
            data,
            "--out",
            out.to_str().unwrap(),
        ]);
        assert_eq!(code, Some(0), "{packed}");
        for word in &said {
            assert_eq!(packed.matches(word.as_str()).count(), 1, "{name}: {word}: {packed}");
            assert!(packed.contains("columns.") && packed.contains("-column NAME"), "{packed}");
        }
        assert_eq!(packed.contains("columns."), !said.is_empty(), "{name}: {packed}");
        // What another program wrote is rated and chosen from by the same ids.
        let ratings = place.path().join("ratings.csv");
        let mut writer = csv::Writer::from_path(&ratings).unwrap();
        writer.write_record(["id", "rating"]).unwrap();
        for (at, [id, ..]) in rows.iter().enumerate() {
            writer.write_record([id, &at.to_string()]).unwrap();
        }
        writer.flush().unwrap();
        let (ratings, out) = (ratings.to_str().unwrap(), place.path().join("subset.csv"));
        let chosen = [
            "select",
            "--strategy",
            "top-k",
            "--keep",
            "3",
            "--overwrite",
            "--ratings",
            ratings,
            "--data",
            data,
        ];
        let (code, said) = program(&[&chosen[..], &["--out", out.to_str().unwrap()]].concat());
        assert_eq!(code, Some(0), "{name}: {said}");
        let kept = open(&out).and_then(Corpus::read_all).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(told(&kept, place.path()), rows[rows.len() - 3..], "{name}");
        // The bytes of the rows are those of the table.
        let (whole, subset) = (fs::read(&path).unwrap(), fs::read(&out).unwrap());
        let last = &subset[subset.len() - 20..];
        assert!(whole.windows(20).any(|bytes| bytes == last), "{name}");
    }
}

#[test]
fn what_is_no_table_is_named_wherever_a_table_is_given() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out.csv");
    let out = out.to_str().unwrap();
    let ratings = place.path().join("ratings.csv");
    fs::write(&ratings, "id,rating\na,1\n").unwrap();
    for (name, word) in expected().refused {
        // Whatever it is called.
        for given in [name.as_str(), "table.csv", "table.tsv"] {
            let path = place.path().join(given);
            fs::copy(folder().join(&name), &path).unwrap();
            let says = |message: String| {
                assert!(message.contains(&word) && message.contains(given), "{name} as {given}: {message}");
                assert!(message.contains("; ") && !message.trim_end().contains('\n'), "{message}");
            };
            says(open(&path).unwrap_err().to_string());
            says(images(&path, &ColumnNames::default(), false).unwrap_err().to_string());
            says(RatingsTable::read(&path, &RatingColumns::default()).unwrap_err().to_string());
            let data = path.to_str().unwrap();
            let ratings = ratings.to_str().unwrap();
            let (code, said) =
                program(&["select", "--keep", "1", "--ratings", ratings, "--data", data, "--out", out]);
            assert_eq!(code, Some(1), "{said}");
            says(said);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.png"), "").unwrap();
    let message = open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("a folder of images without captions") && message.contains("metadata.csv"),
        "{message}"
    );
    let twins = place.path().join("twins.csv");
    for (text, word) in [
        (",,id,image,caption\n1,2,3,4,5\n", "columns 1 and 2 have no name"),
        (",,,\n1,2,3,4\n", "names no column"),
    ] {
        fs::write(&twins, text).unwrap();
        let message = open(&twins).unwrap_err().to_string();
        assert!(message.contains("twins.csv, line 1") && message.contains(word), "{message}");
    }
}

#[test]
fn malformed_rows_end_the_job_or_on_request_are_counted_with_their_lines() {
    let BadRows { rows, bad } = expected().bad_rows;
    let path = folder().join("bad_rows.csv");
    let refused = open(&path).and_then(Corpus::read_all).unwrap_err().to_string();
    assert!(refused.contains("line 2") && refused.contains(&bad[0].1), "{refused}");
    let corpus = open(&path).unwrap().skipping_malformed(true);
    let records = corpus.read_all().unwrap();
    assert_eq!(records.len(), rows.len() + bad.len());
    assert!(records.iter().enumerate().all(|(at, record)| record.row == at as u64));
    let (malformed, good): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|record| record.malformed.is_some());
    assert_eq!(told(&good, &folder()), rows);
    for (record, (line, word)) in malformed.iter().zip(&bad) {
        let message = record.malformed.as_deref().unwrap();
        let place = format!("bad_rows.csv:{line}");
        assert!(record.origin.to_string() == place && message.contains(word.as_str()), "{place}: {message}");
    }
    // Reading goes on from every row, malformed ones among them.
    let open = || open(&path).unwrap().skipping_malformed(true);
    let all: Vec<Record> = open().read_all().unwrap();
    for start in 1..all.len() {
        let next = open().batch(None, start).unwrap().next;
        assert!(next.is_some());
        assert_eq!(open().batch(next, all.len()).unwrap().records, all[start..]);
    }
}

#[test]
fn a_column_of_addresses_is_never_one_of_images() {
    let place = tempfile::tempdir().unwrap();
    for name in ["url", "URL", "image_url"] {
        let path = place.path().join("laion.csv");
        fs::write(&path, format!("key,{name},TEXT\n1,https://example.com/a.png,a cat\n")).unwrap();
        let message = open(&path).unwrap_err().to_string();
        for word in ["laion.csv", name, "img2dataset", "not fetched"] {
            assert!(message.contains(word), "{message}");
        }
    }
    let path = place.path().join("images.csv");
    fs::write(&path, "image,caption\na.png,one\nb.png,two\na.png,three\n").unwrap();
    let message = open(&path).unwrap().read_all().unwrap_err().to_string();
    assert!(
        message.contains("`a.png` is already on line 2") && message.contains("column of ids"),
        "{message}"
    );
}

/// Columns of a table: the training set's name, or none for a column that is empty, and the table's own.
type Columns<'a> = &'a [(&'a str, &'a str)];

/// The training set's records in another form of table.
fn rewritten(place: &Workplace, name: &str, separator: u8, columns: Columns<'_>) {
    let mut reader = csv::Reader::from_path(place.path("data/train.csv")).unwrap();
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let mut writer = csv::WriterBuilder::new()
        .delimiter(separator)
        .from_path(place.path(&format!("data/{name}")))
        .unwrap();
    writer.write_record(columns.iter().map(|(_, to)| to)).unwrap();
    for row in reader.records() {
        let row = row.unwrap();
        let field = |from: &str| header.iter().position(|column| column == from).map_or("", |at| &row[at]);
        writer.write_record(columns.iter().map(|(from, _)| field(from))).unwrap();
    }
    writer.flush().unwrap();
}

fn column(path: &Path, separator: u8, name: &str) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_path(path).unwrap();
    let at = reader.headers().unwrap().iter().position(|column| column == name).unwrap();
    reader.records().map(|row| row.unwrap()[at].to_owned()).collect()
}

fn tiny() -> Workplace {
    Workplace::new(24, &json!({"ep": 1, "depth": 1, "raterDepth": 1, "rater_only_epochs": 0}))
}

#[test]
fn every_command_takes_every_form_of_table_alike() {
    let place = tiny();
    let (id, image, caption) = ("id", "image_save_path", "caption");
    let forms: [(&str, u8, Columns<'_>); 4] = [
        ("no_id.tsv", b'\t', &[(image, "file_name"), (caption, "text")]),
        ("laion.csv", b',', &[("", ""), (id, "key"), ("", "url"), (caption, "TEXT"), (image, "image_path")]),
        ("excel.csv", b';', &[(id, "ID"), (image, "Image"), (caption, "Caption"), ("", "")]),
        ("rated.csv", b',', &[(id, id), (image, image), (caption, caption), (id, "rating")]),
    ];
    for (name, separator, columns) in forms {
        rewritten(&place, name, separator, columns);
    }
    // Training is the same from any of them.
    let train = |table: &str, run: &str| {
        let table = format!("data_args.train_csv_path=data/{table}");
        place.succeed(&["train", "--config", "config.json", "--out", run, "--set", &table])
    };
    train("train.csv", "run");
    let said = train("no_id.tsv", "run_no_id");
    assert_eq!(said.matches("is its id").count(), 1, "{said}");
    let score = |run: &str, table: &str, out: &str, more: &[&str]| {
        let table = format!("data/{table}");
        place.succeed(&[&["score", "--checkpoint", run, "--data", &table, "--out", out][..], more].concat())
    };
    score("run", "train.csv", "plain.csv", &[]);
    score("run_no_id", "no_id.tsv", "no_id.csv", &[]);
    let ratings = column(&place.path("plain.csv"), b',', "rating");
    assert_eq!(column(&place.path("no_id.csv"), b',', "rating"), ratings);
    // The images' paths are the ids: the ratings have a column of them, and the table's own as they were.
    let paths = column(&place.path("data/train.csv"), b',', image);
    assert_eq!(column(&place.path("no_id.csv"), b',', "id"), paths);
    score("run", "laion.csv", "laion.parquet", &[]);
    let table = RatingsTable::read(&place.path("laion.parquet"), &RatingColumns::default()).unwrap();
    assert_eq!(table.ratings.iter().map(f64::to_string).collect::<Vec<_>>(), ratings);
    score("run", "excel.csv", "excel.csv", &[]);
    assert_eq!(column(&place.path("excel.csv"), b',', "rating"), ratings);
    // A table that has a column of ratings already.
    let rated = ["score", "--checkpoint", "run", "--data", "data/rated.csv", "--out", "rated.csv"];
    place.refused(
        &rated,
        &["data/rated.csv, line 1", "already has a column `rating`", "--rating-column NAME"],
    );
    score("run", "rated.csv", "rated.csv", &["--rating-column", "alchemist"]);
    assert_eq!(column(&place.path("rated.csv"), b',', "alchemist"), ratings);
    assert_eq!(
        column(&place.path("rated.csv"), b',', "rating"),
        column(&place.path("data/train.csv"), b',', id)
    );

    let chosen = |ratings: &str, table: &str, out: &str, more: &[&str]| {
        let table = format!("data/{table}");
        let always = ["select", "--ratings", ratings, "--keep", "50%", "--data", &table, "--out", out];
        place.succeed(&[&always[..], more].concat())
    };
    chosen("plain.csv", "train.csv", "data/chosen.csv", &[]);
    // `score` has noted in which column its ratings are; a column `rating` of the table's own is left to it.
    chosen("rated.csv", "rated.csv", "data/chosen_rated.csv", &[]);
    let own = chosen("rated.csv", "rated.csv", "data/chosen_by_own.csv", &["--rating-column", "rating"]);
    assert_ne!(
        column(&place.path("data/chosen_by_own.csv"), b',', image),
        column(&place.path("data/chosen_rated.csv"), b',', image),
        "{own}"
    );
    place.succeed(&["select", "--ratings", "rated.csv", "--keep", "50%", "--out", "data/carried.csv"]);
    let carried = column(&place.path("data/carried.csv"), b',', "rating");
    assert_eq!(carried, column(&place.path("data/chosen_rated.csv"), b',', "rating"));
    chosen("no_id.csv", "no_id.tsv", "data/chosen_no_id.csv", &[]);
    chosen("laion.parquet", "laion.csv", "data/chosen_laion.csv", &[]);
    let kept = column(&place.path("data/chosen.csv"), b',', image);
    assert_eq!(column(&place.path("data/chosen_rated.csv"), b',', image), kept);
    assert_eq!(column(&place.path("data/chosen_no_id.csv"), b'\t', "file_name"), kept);
    assert_eq!(column(&place.path("data/chosen_laion.csv"), b',', "image_path"), kept);

    place.succeed(&["pack", "--format", "imagefolder", "--data", "data/chosen_laion.csv", "--out", "packed"]);
    place.succeed(&[
        "plant",
        "--data",
        "data/no_id.tsv",
        "--side",
        "24",
        "--out",
        "planted",
        "--flaws",
        "noise=50%",
    ]);
    place.succeed(&["encode", "--config", "config.json", "--data", "data/no_id.tsv", "--out", "tokens"]);
    let attributed = ["attribute", "--checkpoint", "run", "--validation", "data/validation.csv", "--data"];
    place.succeed(&[&attributed[..], &["data/laion.csv", "--out", "attributed.csv"]].concat());
    let table = "data_args.train_csv_path=data/chosen_no_id.csv";
    place.succeed(&["fit", "--config", "config.json", "--out", "model", "--set", table]);
    let measured = |generated: &str| {
        let generated = format!("data/{generated}");
        place.succeed(&[
            "measure",
            "--checkpoint",
            "run",
            "--reference",
            "data/validation.csv",
            "--generated",
            &generated,
        ])
    };
    let of_form = measured("no_id.tsv");
    let table = |said: &str| {
        said.lines().filter(|line| !line.contains("no_id.tsv")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(table(&of_form), table(&measured("train.csv")));
    place.succeed(&["report", "--of", "run", "--ratings", "rated.csv", "--data", "data/excel.csv"]);
    let shown = fs::read_to_string(place.path("run/report.html")).unwrap();
    place.succeed(&[
        "report",
        "--of",
        "run",
        "--ratings",
        "rated.csv",
        "--rating-column",
        "alchemist",
        "--data",
        "data/excel.csv",
        "--overwrite",
    ]);
    assert!(fs::read_to_string(place.path("run/report.html")).unwrap() == shown);
}

#[test]
fn every_command_counts_malformed_rows_as_failed_on_request() {
    let place = tiny();
    rewritten(&place, "clean.csv", b',', &["id", "image_save_path", "caption"].map(|name| (name, name)));
    let text = fs::read_to_string(place.path("data/clean.csv")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.insert(3, "too,few");
    lines.insert(7, "stray,\"a\"b,c");
    lines.insert(20, "open,a,\"b");
    fs::write(place.path("data/bad.csv"), lines.join("\n")).unwrap();
    let rows = lines.len() - 1;
    let set = ["--set", "data_args.train_csv_path=data/bad.csv"];
    let skip = ["--set", "skip_bad_rows=true"];
    let train = [&["train", "--config", "config.json", "--out", "run"][..], &set].concat();
    place.refused(&train, &["data/bad.csv, line 4", "found 2"]);
    place.succeed(&[&["train", "--config", "config.json", "--out", "skipped"][..], &set, &skip].concat());
    let failed = fs::read_to_string(place.path("skipped/failed.csv")).unwrap();
    for line in [":4,", ":8,", ":21,"] {
        assert!(failed.contains(line), "{line}: {failed}");
    }
    assert!(failed.contains("unbalanced quotes") && failed.contains("found 2"), "{failed}");
    let counts = |what: &str| format!("{rows} rows in = {} {what} + 3 failed", rows - 3);
    let score = ["score", "--checkpoint", "skipped", "--data", "data/bad.csv", "--out", "ratings.csv"];
    let said = place.succeed(&[&score[..], &skip].concat());
    assert!(said.contains(&counts("scored")), "{said}");
    let said = place.succeed(
        &[&["encode", "--config", "config.json", "--data", "data/bad.csv", "--out", "tokens"][..], &skip]
            .concat(),
    );
    assert!(said.contains(&counts("encoded")), "{said}");
    let attribute = [
        "attribute",
        "--checkpoint",
        "skipped",
        "--validation",
        "data/validation.csv",
        "--data",
        "data/bad.csv",
    ];
    let said = place.succeed(&[&attribute[..], &["--out", "attributed.csv"], &skip].concat());
    assert!(said.contains(&counts("attributed")), "{said}");
    let pack = ["pack", "--format", "csv", "--data", "data/bad.csv", "--out", "packed.csv"];
    place.refused(&pack, &["data/bad.csv, line 4"]);
    let said = place.succeed(&[&pack[..], &["--skip-bad-rows"]].concat());
    assert!(said.contains(&format!("{rows} rows in = {} written + 3 skipped", rows - 3)), "{said}");
    let plant = ["plant", "--side", "24", "--data", "data/bad.csv", "--out", "planted"];
    place.refused(&plant, &["data/bad.csv, line 4"]);
    let said = place.succeed(&[&plant[..], &["--skip-bad-rows"]].concat());
    assert!(said.contains(&format!("{} records", rows - 3)) && said.contains("3 skipped"), "{said}");
    let select = [
        "select",
        "--ratings",
        "ratings.csv",
        "--keep",
        "50%",
        "--data",
        "data/bad.csv",
        "--out",
        "data/chosen.csv",
    ];
    place.refused(&select, &["data/bad.csv, line 4"]);
    place.succeed(&[&select[..], &["--skip-bad-rows"]].concat());
}
