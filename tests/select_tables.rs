//! Ratings tables in both formats and the files of a subset: what is written, what is refused, every message.

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    Error,
    interrupt::Interrupt,
    select::{
        Keep, RatingColumns, RatingRow, RatingsHeader, RatingsOptions, RatingsReader, RatingsTable,
        RatingsWriter, Strategy, SubsetJob, write_subset,
    },
};
use proptest::prelude::*;

fn names() -> RatingColumns {
    RatingColumns::default()
}

fn message<T>(outcome: Result<T, Error>) -> String {
    outcome.err().expect("this must be refused").to_string()
}

fn row(id: &str, rating: f64, carried: &[&str]) -> RatingRow {
    RatingRow { id: id.to_owned(), rating, carried: carried.iter().map(|&field| field.to_owned()).collect() }
}

/// Rows that a careless reader or writer would damage.
fn difficult_rows() -> Vec<RatingRow> {
    vec![
        row("1", f64::from(0.1f32), &["a.png", "plain"]),
        row("a,b", -1e-30, &["\"quoted\"", "two\nlines"]),
        row("ü 猫", 1e300, &["", ""]),
        row("\"", 0.0, &["carriage\r\nreturn", " spaces "]),
        row("007", f64::from(f32::MIN_POSITIVE), &["5\" screen", "кошка 🐈"]),
        row(" 8", -0.25, &[",", "\""]),
    ]
}

fn write_table(path: &Path, columns: &[&str], rows: &[RatingRow]) {
    let columns = columns.iter().map(|&column| column.to_owned()).collect();
    let mut writer = RatingsWriter::create(path, RatingsHeader::new(columns, &names()).unwrap()).unwrap();
    rows.iter().for_each(|row| writer.write(row).unwrap());
    assert!(!path.exists(), "the file appears only when it is whole");
    writer.finish().unwrap();
}

fn read_rows(path: &Path) -> Vec<RatingRow> {
    RatingsReader::open(path, &names()).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn tables_come_back_as_they_were_written_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let rows = difficult_rows();
    for columns in [["id", "rating", "path", "caption"], ["path", "rating", "caption", "id"]] {
        for name in ["table.csv", "table.parquet", "UPPER.CSV"] {
            let path = folder.path().join(name);
            let _fresh = fs::remove_file(&path);
            write_table(&path, &columns, &rows);
            let reader = RatingsReader::open(&path, &names()).unwrap();
            assert_eq!(reader.header().columns(), columns);
            assert_eq!(reader.header().carried().collect::<Vec<_>>(), ["path", "caption"]);
            assert_eq!(read_rows(&path), rows, "{name}");
            let table = RatingsTable::read(&path, &names()).unwrap();
            for (index, row) in rows.iter().enumerate() {
                assert_eq!((table.ids.get(index), table.ratings[index]), (row.id.as_str(), row.rating));
            }
        }
    }
    let leftovers = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(leftovers, 3, "no temporary file is left");
}

#[test]
fn many_row_groups_keep_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.parquet");
    let rows = 300_000;
    let header = RatingsHeader::new(vec!["id".to_owned(), "rating".to_owned()], &names()).unwrap();
    let mut writer = RatingsWriter::create(&path, header).unwrap();
    for index in 0..rows {
        writer.write(&row(&index.to_string(), f64::from(index) / 7.0, &[])).unwrap();
    }
    assert_eq!(writer.rows(), u64::from(rows as u32));
    writer.finish().unwrap();
    let table = RatingsTable::read(&path, &names()).unwrap();
    let mut reader = RatingsReader::open(&path, &names()).unwrap();
    let mut read = RatingRow::default();
    for index in 0..rows {
        assert!(reader.read(&mut read).unwrap());
        assert_eq!(read.id, index.to_string());
        assert_eq!(table.ids.get(index as usize), read.id);
        assert_eq!(table.ratings[index as usize], f64::from(index) / 7.0);
    }
    assert!(!reader.read(&mut read).unwrap());
}

#[test]
fn a_table_dropped_before_its_end_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["table.csv", "table.parquet"] {
        let header = RatingsHeader::new(vec!["id".to_owned(), "rating".to_owned()], &names()).unwrap();
        let mut writer = RatingsWriter::create(&folder.path().join(name), header).unwrap();
        writer.write(&row("1", 1.0, &[])).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_header_for_a_corpus_puts_the_rating_behind_the_id() {
    let columns = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let header = RatingsHeader::for_corpus(&columns(&["path", "id", "caption"]), &names()).unwrap();
    assert_eq!(header.columns(), ["path", "id", "rating", "caption"]);
    assert_eq!(
        message(RatingsHeader::for_corpus(&columns(&["name", "caption"]), &names())),
        "there is no column `id`; the columns are `name`, `caption`, `rating`"
    );
    assert_eq!(
        message(RatingsHeader::for_corpus(&columns(&["id", "rating"]), &names())),
        "the corpus already has a column `rating`; choose another name for the ratings with --rating-column NAME"
    );
    assert_eq!(
        message(RatingsHeader::new(columns(&["id", "a", "rating", "a"]), &names())),
        "two columns are called `a`; rename one"
    );
    let same = RatingColumns { id: "id".to_owned(), rating: "id".to_owned() };
    assert_eq!(
        message(RatingsHeader::new(columns(&["id"]), &same)),
        "one column, `id`, cannot be both the id and the rating"
    );
}

/// What reading a CSV of these bytes says, without the path in front.
fn csv_message(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ratings.csv");
    fs::write(&path, bytes).unwrap();
    let outcome = message(RatingsTable::read(&path, &names()));
    let rest = outcome.strip_prefix(path.to_str().unwrap()).expect("the message begins with the file");
    rest.to_owned()
}

#[test]
fn bad_csv_is_refused_with_the_line() {
    assert_eq!(csv_message(b""), ": the file is empty; its first line must name the columns");
    assert_eq!(csv_message(b"id,rating\n"), ": the table has a header but no rows");
    assert_eq!(
        csv_message(b"id,score,caption\n1,2,x\n"),
        ": there is no column `rating`; the columns are `id`, `score`, `caption`; name the column of ratings with --rating-column NAME"
    );
    assert_eq!(
        csv_message(b"name,rating\n1,2\n"),
        ": there is no column `id`; the columns are `name`, `rating`"
    );
    let skip = "; fix it, or skip such rows (--skip-bad-rows, or --set skip_bad_rows=true)";
    assert_eq!(
        csv_message(b"id,rating\na,1\nb,high\n"),
        format!(", line 3: the rating `high` is not a number{skip}")
    );
    let hint = "; pass --drop-nan to skip such rows";
    assert_eq!(csv_message(b"id,rating\na,\n"), format!(", line 2: the rating is missing{hint}"));
    for text in ["nan", "NaN", "NULL"] {
        assert_eq!(
            csv_message(format!("id,rating\na,1\nb,{text}\n").as_bytes()),
            format!(", line 3: the rating `{text}` is not a finite number{hint}")
        );
    }
    for text in ["inf", "-inf", "1e999"] {
        assert_eq!(
            csv_message(format!("id,rating\na,1\nb,{text}\n").as_bytes()),
            format!(", line 3: the rating `{text}` is not a finite number{skip}")
        );
    }
    assert_eq!(csv_message(b"id,rating\n,1\n"), ", line 2: the id is empty; every row needs one");
    assert_eq!(
        csv_message(b"id,rating\na,1\n\"b\n\",2\nc,3\na,4\n"),
        ", line 6: the id `a` occurs twice, in line 2 and here; ids must be unique"
    );
    assert_eq!(
        csv_message(b"id,rating\na,1,2\n"),
        ", line 2: expected 2 fields, found 3; quote fields that contain a comma, a quote or a line break"
    );
    assert_eq!(
        csv_message(b"id,rating\na,1\nb\n"),
        ", line 3: expected 2 fields, found 1; quote fields that contain a comma, a quote or a line break"
    );
    assert_eq!(
        csv_message(b"id,rating\na,1\n\xFF,2\n"),
        ", line 3: field 1 is not UTF-8 (byte 0xff); save the file as UTF-8"
    );
    for text in ["rating,id\n1,a\n2,\"b\n3,c\n4,d\n", "rating,id\n1,a\n\"2,b\n3,c\n"] {
        let open = csv_message(text.as_bytes());
        assert!(
            open.starts_with(", line 3: unbalanced quotes: the quote opened here is never closed;"),
            "{open}"
        );
    }
}

#[test]
fn unusual_but_correct_csv_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ratings.csv");
    // A byte order mark, carriage returns, an empty line, quotes inside an unquoted field, no line break at the end.
    fs::write(&path, b"\xEF\xBB\xBFid,rating,caption\r\na,1,5\" screen\r\n\r\n\"b\",2,\"say \"\"x\"\"\"")
        .unwrap();
    assert_eq!(read_rows(&path), [row("a", 1.0, &["5\" screen"]), row("b", 2.0, &["say \"x\""])]);
}

#[test]
fn other_endings_and_missing_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("ratings.txt");
    let expected = format!("{}: the name must end in .csv or .parquet", text.display());
    assert_eq!(message(RatingsTable::read(&text, &names())), expected);
    let header = RatingsHeader::new(vec!["id".to_owned(), "rating".to_owned()], &names()).unwrap();
    assert_eq!(message(RatingsWriter::create(&text, header.clone())), expected);
    for name in ["absent.csv", "absent.parquet"] {
        let path = folder.path().join(name);
        let outcome = message(RatingsTable::read(&path, &names()));
        assert!(outcome.starts_with(&format!("cannot read {}: ", path.display())), "{outcome}");
    }
    let nowhere = folder.path().join("absent").join("ratings.csv");
    let outcome = message(RatingsWriter::create(&nowhere, header));
    assert!(outcome.starts_with(&format!("cannot create {}: ", nowhere.display())), "{outcome}");
}

#[test]
fn bad_parquet_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ratings.parquet");
    let refused = || {
        let outcome = message(RatingsTable::read(&path, &names()));
        outcome.strip_prefix(path.to_str().unwrap()).expect("the message begins with the file").to_owned()
    };
    fs::write(&path, b"not parquet at all").unwrap();
    assert!(refused().starts_with(": cannot read this Parquet file: "));
    fs::remove_file(&path).unwrap();

    write_table(&path, &["id", "rating"], &[]);
    assert_eq!(refused(), ": the table has a header but no rows");
    write_at(&path, &["id", "rating"], &[row("x", 1.0, &[]), row("y", 2.0, &[]), row("x", 3.0, &[])]);
    assert_eq!(refused(), ": the id `x` occurs twice, in rows 1 and 3; ids must be unique");

    let other = RatingColumns { id: "key".to_owned(), ..names() };
    let outcome = message(RatingsTable::read(&path, &other));
    assert!(outcome.ends_with(": there is no column `key`; the columns are `id`, `rating`"), "{outcome}");
    let text = RatingColumns { id: "rating".to_owned(), rating: "id".to_owned() };
    let outcome = message(RatingsTable::read(&path, &text));
    assert!(
        outcome.ends_with(
            "the column `id` has an unsupported type (BYTE_ARRAY String); store it as DOUBLE or FLOAT"
        ),
        "{outcome}"
    );

    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 4] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(refused().starts_with(": cannot read this Parquet file: "), "cut to {length} bytes");
    }
}

fn write_at(path: &Path, columns: &[&str], rows: &[RatingRow]) {
    let _fresh = fs::remove_file(path);
    write_table(path, columns, rows);
}

#[test]
fn the_writer_refuses_rows_that_could_not_be_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["table.csv", "table.parquet"] {
        let path = folder.path().join(name);
        let columns = vec!["id".to_owned(), "rating".to_owned(), "caption".to_owned()];
        let header = RatingsHeader::new(columns, &names()).unwrap();
        let mut writer = RatingsWriter::create(&path, header).unwrap();
        let mut refused = |row: RatingRow| message(writer.write(&row)).replace(path.to_str().unwrap(), "");
        assert_eq!(refused(row("a", f64::NAN, &["x"])), ": the rating of id `a` is NaN, not a finite number");
        assert_eq!(refused(row("", 1.0, &["x"])), ": row 1 has an empty id");
        assert_eq!(refused(row("a", 1.0, &[])), ": id `a` has 0 carried fields, but the header has 1");
    }
}

fn job(folder: &Path, ratings: &str) -> SubsetJob {
    SubsetJob {
        ratings: folder.join(ratings),
        options: RatingsOptions::default(),
        names: names(),
        image_column: "image_save_path".to_owned(),
        strategy: Strategy::TopK,
        keep: Keep::Share(0.5),
        seed: 0,
        out: folder.join("subset.csv"),
        data: None,
        format: None,
        caption_column: "caption".to_owned(),
        overwrite: false,
    }
}

#[test]
fn a_subset_has_the_original_columns_in_the_original_order() {
    let folder = tempfile::tempdir().unwrap();
    let rows = difficult_rows();
    for name in ["ratings.csv", "ratings.parquet"] {
        write_table(&folder.path().join(name), &["path", "id", "rating", "caption"], &rows);
        let report =
            write_subset(&SubsetJob { overwrite: true, ..job(folder.path(), name) }, &Interrupt::default())
                .unwrap();
        // The three highest ratings: 1e300, 0.1, and the smallest normal f32.
        assert_eq!(report.selection.kept, [0, 2, 4]);
        assert_eq!(
            fs::read_to_string(&report.subset).unwrap(),
            "path,id,caption\na.png,1,plain\n,ü 猫,\n\"5\"\" screen\",007,кошка 🐈\n"
        );
        assert_eq!(fs::read_to_string(&report.ids).unwrap(), "007\n1\nü 猫\n");
        assert_eq!(report.ids, folder.path().join("subset.ids.txt"));
        assert_eq!(report.summary, folder.path().join("subset.summary.json"));
        let summary: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&report.summary).unwrap()).unwrap();
        assert_eq!(summary["strategy"], "top-k");
        assert_eq!(summary["seed"], 0);
        assert_eq!(summary["rows"], 6);
        assert_eq!(summary["kept"], 3);
        assert_eq!(summary["kept_percentiles"]["maximum"], 2.0 / 6.0);
        assert_eq!(summary["kept_share_by_decile"][0], 1.0);
        assert_eq!(summary["kept_share_by_decile"][2], serde_json::Value::Null);
    }
}

#[test]
fn the_summary_names_the_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<RatingRow> = (0..50).map(|index| row(&index.to_string(), f64::from(index), &[])).collect();
    write_table(&folder.path().join("ratings.csv"), &["id", "rating"], &rows);
    let strategy = Strategy::ShiftGsample { drop_top: 0.1, mean: 0.45, sigma: 0.2 };
    let report = write_subset(
        &SubsetJob { strategy, seed: 7, ..job(folder.path(), "ratings.csv") },
        &Interrupt::default(),
    )
    .unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(&report.summary).unwrap()).unwrap();
    assert_eq!(summary["strategy"], "shift-gsample");
    assert_eq!(
        (&summary["drop_top"], &summary["mean"], &summary["sigma"]),
        (&0.1.into(), &0.45.into(), &0.2.into())
    );
    assert_eq!((&summary["dropped"], &summary["kept"], &summary["seed"]), (&5.into(), &25.into(), &7.into()));
}

#[test]
fn rows_of_the_corpus_are_copied_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["a", "b", "c", "d"].map(|id| row(id, f64::from(id.as_bytes()[0]), &[]));
    write_table(&folder.path().join("ratings.csv"), &["id", "rating"], &rows);
    for line_break in ["\n", "\r\n"] {
        // Another order than the ratings, needless quotes, a record over two lines, an unrated row, an empty line.
        let records = [
            "\"caption\",id",
            "needless,\"d\"",
            "\"x\nid,\"\"y\"\"\",c",
            "5\" screen,b",
            "",
            "plain,a",
            "new,z",
        ];
        let data = folder.path().join("corpus.csv");
        fs::write(&data, records.join(line_break)).unwrap();
        let job = SubsetJob { data: Some(data), overwrite: true, ..job(folder.path(), "ratings.csv") };
        let report = write_subset(&job, &Interrupt::default()).unwrap();
        assert_eq!(report.selection.kept, [2, 3]);
        let expected = records[..3].iter().map(|record| format!("{record}{line_break}")).collect::<String>();
        assert_eq!(fs::read_to_string(&report.subset).unwrap(), expected);
        assert_eq!(fs::read_to_string(&report.ids).unwrap(), "c\nd\n");
        let low = SubsetJob { strategy: Strategy::Block { offset: 0.75 }, keep: Keep::Count(1), ..job };
        let report = write_subset(&low, &Interrupt::default()).unwrap();
        assert_eq!(
            fs::read_to_string(&report.subset).unwrap(),
            format!("\"caption\",id{line_break}plain,a{line_break}")
        );
    }
}

#[test]
fn a_corpus_that_does_not_fit_the_ratings_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["a", "b", "c", "d"].map(|id| row(id, f64::from(id.as_bytes()[0]), &[]));
    write_table(&folder.path().join("ratings.csv"), &["id", "rating"], &rows);
    let data = folder.path().join("corpus.csv");
    let refused = |text: &str| {
        fs::write(&data, text).unwrap();
        let job = SubsetJob { data: Some(data.clone()), ..job(folder.path(), "ratings.csv") };
        let outcome = message(write_subset(&job, &Interrupt::default()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "only the two inputs are there");
        outcome.replace(&format!("{}/", folder.path().display()), "")
    };
    assert_eq!(
        refused("id,x\na,1\nc,1\n"),
        "corpus.csv: 1 of the kept ids of ratings.csv are not in this corpus, the first is `d`; pass the corpus that \
         was rated"
    );
    assert_eq!(refused("id,x\nc,1\nd,1\nc,2\n"), "corpus.csv: the id `c` occurs twice; ids must be unique");
    assert_eq!(
        refused("name,x\na,1\n"),
        "corpus.csv, line 1: there is no column `id`; the columns are `name`, `x`"
    );
}

#[test]
fn outputs_are_not_replaced_unless_asked_and_inputs_never() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["a", "b"].map(|id| row(id, f64::from(id.as_bytes()[0]), &[]));
    write_table(&folder.path().join("ratings.csv"), &["id", "rating"], &rows);
    let job = job(folder.path(), "ratings.csv");
    let first = fs::read(write_subset(&job, &Interrupt::default()).unwrap().subset).unwrap();
    for name in ["subset.csv", "subset.ids.txt", "subset.summary.json"] {
        let others =
            ["subset.csv", "subset.ids.txt", "subset.summary.json"].iter().filter(|other| **other != name);
        let saved: Vec<(PathBuf, Vec<u8>)> = others
            .map(|other| folder.path().join(other))
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        saved.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        assert_eq!(
            message(write_subset(&job, &Interrupt::default())),
            format!(
                "{}: already exists; pass --overwrite or choose another --out",
                folder.path().join(name).display()
            )
        );
        saved.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    let second = write_subset(&SubsetJob { overwrite: true, ..job.clone() }, &Interrupt::default()).unwrap();
    assert_eq!(fs::read(second.subset).unwrap(), first);
    let itself = SubsetJob { overwrite: true, out: job.ratings.clone(), ..job.clone() };
    assert_eq!(
        message(write_subset(&itself, &Interrupt::default())),
        format!("{}: is an input and would be replaced; choose another --out", job.ratings.display())
    );
    let ending = SubsetJob { out: folder.path().join("subset.parquet"), ..job.clone() };
    assert_eq!(
        message(write_subset(&ending, &Interrupt::default())),
        format!("{}: the name must end in .csv", folder.path().join("subset.parquet").display())
    );
    write_at(&job.ratings, &["id", "rating"], &[row("a\nb", 1.0, &[])]);
    let broken = SubsetJob { keep: Keep::Count(1), overwrite: true, ..job.clone() };
    assert_eq!(
        message(write_subset(&broken, &Interrupt::default())),
        format!(
            "{}: the id \"a\\nb\" contains a line break, so it cannot be written to the list of ids; change the id",
            job.ratings.display()
        )
    );
    assert_eq!(fs::read(folder.path().join("subset.csv")).unwrap(), first, "what was there is untouched");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_survives_both_formats(
        fields in proptest::collection::vec((any::<String>(), any::<String>(), any::<f32>()), 1..20)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<RatingRow> = fields
            .iter()
            .enumerate()
            .map(|(index, (id, caption, rating))| {
                let rating = if rating.is_finite() { f64::from(*rating) } else { 0.0 };
                row(&format!("{id}{index}"), rating, &[caption])
            })
            .collect();
        for name in ["table.csv", "table.parquet"] {
            let path = folder.path().join(name);
            write_table(&path, &["id", "rating", "caption"], &rows);
            prop_assert_eq!(&read_rows(&path), &rows);
        }
    }
}

/// A table as other programs write it: whole-number ids, 32-bit ratings, values that may be missing.
fn write_foreign_table(path: &Path, rating_levels: &[i16], ratings: &[f32], logical: &str) {
    use parquet::{
        data_type::{ByteArray, ByteArrayType, FloatType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    let schema = format!(
        "message table {{ optional int64 id {logical}; optional float rating; optional binary caption (UTF8); }}"
    );
    let file = fs::File::create(path).unwrap();
    let schema = parse_message_type(&schema).unwrap().into();
    let properties = WriterProperties::builder().build().into();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[12, -7, 900], Some(&[1, 1, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<FloatType>().write_batch(ratings, Some(rating_levels), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts = [ByteArray::from("first"), ByteArray::from("third")];
    column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 0, 1]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_of_other_programs_is_read_or_refused_but_never_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreign.parquet");
    write_foreign_table(&path, &[1, 1, 1], &[0.5, 0.1, -2.0], "");
    let expected =
        [row("12", 0.5, &["first"]), row("-7", f64::from(0.1f32), &[""]), row("900", -2.0, &["third"])];
    assert_eq!(read_rows(&path), expected);
    assert_eq!(RatingsTable::read(&path, &names()).unwrap().ids.get(1), "-7");

    let refused = || message(RatingsTable::read(&path, &names())).replace(path.to_str().unwrap(), "");
    write_foreign_table(&path, &[1, 0, 1], &[0.5, -2.0], "");
    assert_eq!(
        refused(),
        ": the rating in row 2 is missing or not a number; pass --drop-nan to skip such rows"
    );
    write_foreign_table(&path, &[1, 1, 1], &[0.5, 1.0, f32::INFINITY], "");
    assert_eq!(refused(), ": the rating `inf` in row 3 is not a finite number");
    write_foreign_table(&path, &[1, 1, 1], &[0.5, 1.0, 2.0], "(TIMESTAMP(MILLIS,true))");
    let outcome = refused();
    assert!(outcome.starts_with(": the column `id` has an unsupported type (INT64 Timestamp"), "{outcome}");
    assert!(outcome.ends_with("; store it as UTF8 text"), "{outcome}");
}
