//! Ratings tables as pandas, pyarrow, Spark and spreadsheets write them. The inputs and what they hold are made by make_ratings.py.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::{
    data::{ColumnNames as CorpusColumns, Corpus},
    interrupt::Interrupt,
    select::{
        Keep, RatingColumns, RatingRow, RatingsOptions, RatingsReader, RatingsTable, Strategy, SubsetJob,
        write_subset,
    },
};
use proptest::prelude::*;
use serde::Deserialize;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/ratings")
}

/// What expected.json holds.
#[derive(Deserialize)]
struct Expected {
    /// Ids and ratings of each table.
    tables: BTreeMap<String, Vec<(String, f64)>>,
    /// Further columns of each table, as text.
    carried: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// Columns that no text can be made of.
    left_out: Vec<String>,
    /// Ids and ratings of the rows that have a rating.
    missing: BTreeMap<String, Vec<(String, f64)>>,
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn names() -> RatingColumns {
    RatingColumns::default()
}

fn ids_and_ratings(table: &RatingsTable) -> Vec<(String, f64)> {
    (0..table.ratings.len()).map(|row| (table.ids.get(row).to_owned(), table.ratings[row])).collect()
}

fn rows(path: &Path, options: RatingsOptions) -> Vec<RatingRow> {
    RatingsReader::open_with(path, &names(), options).unwrap().collect::<Result<_, _>>().unwrap()
}

fn job(ratings: PathBuf, out: &Path, keep: u64) -> SubsetJob {
    SubsetJob {
        ratings,
        options: RatingsOptions::default(),
        names: names(),
        image_column: "image_save_path".to_owned(),
        strategy: Strategy::TopK,
        keep: Keep::Count(keep),
        seed: 0,
        out: out.join("subset.csv"),
        data: None,
        format: None,
        caption_column: "caption".to_owned(),
        overwrite: true,
    }
}

/// Runs `select`; its exit code and all that it says.
fn select(arguments: &[&str], ratings: &Path, out: &Path) -> (Option<i32>, String) {
    let out = out.join("subset.csv");
    let output = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"))
        .args(["select", "--strategy", "top-k", "--overwrite", "--ratings"])
        .arg(ratings)
        .arg("--out")
        .arg(out)
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), said)
}

/// Ids of the best `count`, ties to the earlier row, in the order of bytes.
fn best(rows: &[(String, f64)], count: usize) -> Vec<String> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&one, &other| rows[other].1.total_cmp(&rows[one].1).then(one.cmp(&other)));
    let mut ids: Vec<String> = order[..count].iter().map(|&row| rows[row].0.clone()).collect();
    ids.sort();
    ids
}

#[test]
fn every_codec_separator_and_folder_gives_what_pandas_reads() {
    let expected = expected().tables;
    assert!(expected.len() >= 10, "{}", expected.len());
    let out = tempfile::tempdir().unwrap();
    for (name, expected) in &expected {
        let path = folder().join(name);
        let table = RatingsTable::read(&path, &names()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ids_and_ratings(&table), *expected, "{name}");
        let by_row: Vec<(String, f64)> =
            rows(&path, RatingsOptions::default()).into_iter().map(|row| (row.id, row.rating)).collect();
        assert_eq!(by_row, *expected, "{name}");
        let report = write_subset(&job(path, out.path(), 5), &Interrupt::default()).unwrap();
        let ids = fs::read_to_string(report.ids).unwrap();
        assert_eq!(ids.lines().collect::<Vec<_>>(), best(expected, 5), "{name}");
        let mut subset = csv::Reader::from_path(report.subset).unwrap();
        assert_eq!(subset.records().map(Result::unwrap).count(), 5, "{name}");
    }
}

#[test]
fn times_decimals_and_nulls_are_carried_as_text_and_lists_and_structs_are_left_out_by_name() {
    let Expected { carried, left_out, .. } = expected();
    let out = tempfile::tempdir().unwrap();
    for (name, columns) in &carried {
        let path = folder().join(name);
        let reader = RatingsReader::open(&path, &names()).unwrap();
        let header: Vec<String> = reader.header().carried().map(str::to_owned).collect();
        let mut sorted = header.clone();
        sorted.sort();
        assert_eq!(sorted, columns.keys().cloned().collect::<Vec<_>>(), "{name}");
        let rows = rows(&path, RatingsOptions::default());
        for (at, column) in header.iter().enumerate() {
            let found: Vec<&str> = rows.iter().map(|row| row.carried[at].as_str()).collect();
            assert_eq!(found, columns[column], "{name}: {column}");
        }
        let (code, said) = select(&["--keep", "2"], &path, out.path());
        assert_eq!(code, Some(0), "{said}");
        let named = if name == "carried.parquet" { &left_out[..] } else { &[] };
        for column in named {
            assert_eq!(said.matches(&format!("`{column}`")).count(), 1, "{said}");
        }
        assert_eq!(said.contains("skipped"), !named.is_empty(), "{said}");
    }
}

#[test]
fn missing_ratings_are_refused_or_on_request_dropped_and_counted() {
    let out = tempfile::tempdir().unwrap();
    let drop_nan = RatingsOptions { drop_nan: true, ..RatingsOptions::default() };
    for (name, kept) in &expected().missing {
        let path = folder().join(name);
        let refused = RatingsTable::read(&path, &names()).unwrap_err().to_string();
        assert!(refused.contains(name.as_str()) && refused.contains("--drop-nan"), "{refused}");
        let (table, _, left_out) = RatingsTable::read_indexed(&path, &names(), drop_nan).unwrap();
        assert_eq!(ids_and_ratings(&table), *kept, "{name}");
        assert_eq!((left_out.malformed, left_out.without_rating), (0, 3), "{name}");
        // Those that are passed over are counted without the dropped ones, too.
        let report = write_subset(
            &SubsetJob { options: drop_nan, ..job(path.clone(), out.path(), 4) },
            &Interrupt::default(),
        )
        .unwrap();
        let mut subset = csv::Reader::from_path(&report.subset).unwrap();
        let mut ids: Vec<String> = subset.records().map(|row| row.unwrap()[0].to_owned()).collect();
        ids.sort();
        assert_eq!(ids, best(kept, 4), "{name}");
        let (code, said) = select(&["--keep", "4"], &path, out.path());
        assert!(code == Some(1) && said.contains("--drop-nan"), "{said}");
        let (code, said) = select(&["--keep", "4", "--drop-nan"], &path, out.path());
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("12 rows in = 9 rated + 0 malformed + 3 without a rating"), "{said}");
        let summary: serde_json::Value =
            serde_json::from_slice(&fs::read(out.path().join("subset.summary.json")).unwrap()).unwrap();
        assert_eq!((&summary["rows"], &summary["rows_without_rating"]), (&9.into(), &3.into()));
        assert_eq!(summary["malformed_rows"], serde_json::Value::Null);
    }
}

#[test]
fn unbalanced_quotes_are_refused_or_on_request_skipped_and_counted_in_ratings_and_corpora() {
    let out = tempfile::tempdir().unwrap();
    let whole = out.path().join("whole.csv");
    fs::write(&whole, "id,rating\na,1\nb,2\nc,3\n").unwrap();
    for (name, line, malformed) in [("unclosed.csv", 3, 2), ("stray.csv", 2, 1)] {
        let path = folder().join(name);
        let left = 3 - malformed;
        let (code, said) = select(&["--keep", "1"], &path, out.path());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("{name}, line {line}: unbalanced quotes")), "{said}");
        let (code, said) = select(&["--keep", "1", "--skip-bad-rows"], &path, out.path());
        assert_eq!(code, Some(0), "{said}");
        let counts = format!("3 rows in = {left} rated + {malformed} malformed + 0 without a rating");
        assert!(said.contains(&counts), "{said}");
        assert_eq!(fs::read_to_string(out.path().join("subset.csv")).unwrap(), "id,caption\nc,z\n");
        // As the corpus.
        let data = path.to_str().unwrap();
        let (code, said) = select(&["--keep", "1", "--data", data], &whole, out.path());
        assert!(code == Some(1) && said.contains(&format!("line {line}: unbalanced quotes")), "{said}");
        let (code, said) = select(&["--keep", "1", "--skip-bad-rows", "--data", data], &whole, out.path());
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(fs::read_to_string(out.path().join("subset.csv")).unwrap(), "id,rating,caption\nc,3,z\n");
    }
}

#[test]
fn folders_that_are_no_one_table_are_refused_by_name() {
    let refused = |path: &Path| RatingsTable::read(path, &names()).unwrap_err().to_string();
    let message = refused(&folder().join("other_columns"));
    assert!(message.contains("part-1.parquet") && message.contains("`caption` is missing"), "{message}");
    let message = refused(&folder().join("other_kinds"));
    assert!(message.contains("b.parquet") && message.contains("`n`"), "{message}");
    let place = tempfile::tempdir().unwrap();
    assert!(refused(place.path()).contains("no .parquet file"));
    fs::copy(folder().join("nan.parquet"), place.path().join("a.parquet")).unwrap();
    fs::write(place.path().join("notes.txt"), "x").unwrap();
    assert!(refused(place.path()).contains("`notes.txt`"));
    fs::remove_file(place.path().join("notes.txt")).unwrap();
    fs::create_dir(place.path().join("year=2024")).unwrap();
    assert!(refused(place.path()).contains("`year=2024`, which is a folder"));
}

/// The rows that one reader of tables gives, or nothing where it refuses one.
fn of_corpus(path: &Path) -> Option<Vec<Vec<String>>> {
    let names = CorpusColumns { image: "rating".to_owned(), ..CorpusColumns::default() };
    let records = Corpus::open(path, &names).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
    Some(records.into_iter().map(|record| record.fields).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// There is one reader: whatever the corpora's refuses, that of ratings does, and what both take is what the csv crate reads.
    #[test]
    fn ratings_and_corpora_are_read_by_the_same_rules(text in "([a-c1\",;\r\n ]|1,1,|\",\"|\"\"){0,24}") {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("table.csv");
        let text = format!("id,rating,caption\nx,1,y\n{text}");
        fs::write(&path, &text).unwrap();
        let corpus = of_corpus(&path);
        let ratings: Option<Vec<RatingRow>> =
            RatingsReader::open(&path, &names()).unwrap().collect::<Result<_, _>>().ok();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let reference: Option<Vec<Vec<String>>> = reader
            .records()
            .map(|row| row.ok().map(|row| row.iter().map(str::to_owned).collect()))
            .collect();
        if let Some(corpus) = &corpus {
            let whole = |row: &Vec<String>| row.len() == 3;
            // Empty fields beyond the header's are taken here and refused there.
            if let Some(mut reference) = reference.filter(|rows| rows.iter().all(whole)) {
                // Rows of nothing but separators are skipped here and read there.
                reference.retain(|row| row.iter().any(|field| !field.is_empty()));
                prop_assert_eq!(corpus, &reference);
            }
        }
        if let Some(ratings) = ratings {
            let corpus = corpus.expect("ratings that are read are rows");
            prop_assert_eq!(ratings.len(), corpus.len());
            for (row, fields) in ratings.iter().zip(corpus) {
                prop_assert_eq!((&row.id, &row.carried[0]), (&fields[0], &fields[2]));
            }
        }
    }
}
