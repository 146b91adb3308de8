//! Choosing subsets: exact counts, the distribution, tables in both formats, every message.

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    Error,
    select::{
        ColumnNames, Keep, Ranking, RatingRow, RatingsHeader, RatingsReader, RatingsTable, RatingsWriter,
        Selection, Strategy, SubsetJob, select, write_subset,
    },
};
use proptest::prelude::*;

const STRATEGIES: [Strategy; 5] = [
    Strategy::Random,
    Strategy::TopK,
    Strategy::Block { offset: 0.0 },
    Strategy::Gsample { mean: 0.5, sigma: 0.2 },
    Strategy::ShiftGsample { drop_top: 0.1, mean: 0.45, sigma: 0.2 },
];

fn names() -> ColumnNames {
    ColumnNames::default()
}

/// Ratings of `rows` rows in an order that is not theirs: row `r` has the rating `-(r·7919 mod rows)`.
fn shuffled_ratings(rows: usize) -> Vec<f64> {
    (0..rows).map(|row| -((row * 7919 % rows) as f64)).collect()
}

fn message<T>(outcome: Result<T, Error>) -> String {
    outcome.err().expect("this must be refused").to_string()
}

#[test]
fn every_strategy_gives_the_exact_count_on_odd_sizes() {
    for rows in [1usize, 2, 3, 7, 100, 10_007] {
        let ratings = shuffled_ratings(rows);
        for strategy in STRATEGIES {
            let available = rows - strategy.dropped(rows);
            let mut counts = vec![1, available / 3, available / 2, available - 1, available];
            counts.retain(|&count| count > 0);
            for count in counts {
                let selection = select(&ratings, &strategy, Keep::Count(count as u64), 3).unwrap();
                assert_eq!(selection.kept.len(), count, "{strategy:?} of {rows}");
                assert!(selection.kept.windows(2).all(|pair| pair[0] < pair[1]), "ascending and distinct");
                assert!(selection.kept.iter().all(|&row| (row as usize) < rows));
                assert_eq!(selection.summary.kept, count);
                assert_eq!(selection.summary.dropped, strategy.dropped(rows));
            }
        }
    }
}

#[test]
fn a_gaussian_far_away_and_thin_still_gives_the_exact_count() {
    let ratings = shuffled_ratings(1000);
    for (mean, sigma) in [(0.5, 1e-6), (-40.0, 0.01), (0.0, 1e-3), (1e6, 0.5)] {
        let strategy = Strategy::ShiftGsample { drop_top: 0.25, mean, sigma };
        for count in [1, 333, 749, 750] {
            let selection = select(&ratings, &strategy, Keep::Count(count), 1).unwrap();
            assert_eq!(selection.kept.len() as u64, count);
        }
    }
    // So thin a Gaussian keeps the rows nearest to its mean: ranks 490 to 509 around percentile 0.5.
    let strategy = Strategy::Gsample { mean: 0.4995, sigma: 1e-6 };
    let selection = select(&ratings, &strategy, Keep::Count(20), 1).unwrap();
    assert_eq!(selection.summary.kept_percentiles.minimum, 0.490);
    assert_eq!(selection.summary.kept_percentiles.maximum, 0.509);
}

#[test]
fn one_seed_gives_one_set_and_another_seed_another() {
    let ratings = shuffled_ratings(10_007);
    for strategy in [Strategy::Random, STRATEGIES[3], STRATEGIES[4]] {
        let draw = |seed| select(&ratings, &strategy, Keep::Share(0.3), seed).unwrap().kept;
        assert_eq!(draw(5), draw(5));
        let (first, second) = (draw(5), draw(6));
        let shared = first.iter().filter(|row| second.binary_search(row).is_ok()).count();
        assert!(shared < first.len() * 9 / 10, "{strategy:?}: {shared} of {} shared", first.len());
    }
}

#[test]
fn threads_do_not_change_the_set() {
    let ratings = shuffled_ratings(10_007);
    for strategy in STRATEGIES {
        let draw = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| select(&ratings, &strategy, Keep::Share(0.4), 9).unwrap())
        };
        assert_eq!(draw(1), draw(2));
    }
}

#[test]
fn top_k_keeps_the_highest_ratings_and_ties_go_to_the_earlier_row() {
    let ratings = [0.5, 2.0, 0.5, -1.0, 2.0, 0.5];
    let kept = |count| select(&ratings, &Strategy::TopK, Keep::Count(count), 0).unwrap().kept;
    assert_eq!(kept(1), [1]);
    assert_eq!(kept(2), [1, 4]);
    assert_eq!(kept(3), [0, 1, 4]);
    assert_eq!(kept(4), [0, 1, 2, 4]);
    assert_eq!(Ranking::new(&ratings).unwrap().order(), [1, 4, 0, 2, 5, 3]);
    assert_eq!(Ranking::new(&[0.0, -0.0, 0.0]).unwrap().order(), [0, 1, 2], "both zeros are one rating");
    assert_eq!(Ranking::new(&[-1.0, 1e300, f64::MIN_POSITIVE, -1e300]).unwrap().order(), [1, 2, 0, 3]);
}

#[test]
fn a_block_is_the_window_of_the_ranking_that_was_asked_for() {
    let ratings: Vec<f64> = (0..10).map(|row| -f64::from(row)).collect();
    let block =
        |offset, keep| select(&ratings, &Strategy::Block { offset }, keep, 0).map(|chosen| chosen.kept);
    assert_eq!(block(0.0, Keep::Count(3)).unwrap(), [0, 1, 2]);
    assert_eq!(block(0.4, Keep::Share(0.3)).unwrap(), [4, 5, 6]);
    assert_eq!(block(0.7, Keep::Count(3)).unwrap(), [7, 8, 9]);
    assert_eq!(
        message(block(0.8, Keep::Count(3))),
        "a block of 3 rows from offset 0.8 (rank 8) runs past the last of 10 rows; begin earlier or keep fewer."
    );
}

#[test]
fn the_dropped_top_is_never_kept_and_the_boundary_is_a_whole_row() {
    let ratings: Vec<f64> = (0..100).map(|row| -f64::from(row)).collect();
    for (drop_top, first) in [(0.29, 29), (0.07, 7), (0.0, 0), (0.995, 100 - 1)] {
        let strategy = Strategy::ShiftGsample { drop_top, mean: 0.0, sigma: 1e-4 };
        if strategy.dropped(100) == 100 {
            continue;
        }
        let kept = select(&ratings, &strategy, Keep::Count(1), 0).unwrap().kept;
        assert_eq!(kept, [first], "the nearest row to percentile 0 that was not dropped");
    }
    let strategy = Strategy::ShiftGsample { drop_top: 0.3, mean: 0.45, sigma: 0.2 };
    let selection = select(&ratings, &strategy, Keep::Count(70), 0).unwrap();
    assert_eq!(selection.kept, (30..100).collect::<Vec<u32>>());
}

/// The chance of each rank to be among `count` rows drawn without replacement with `weights`, to first order in 1/n:
/// with exponential keys, rank i is kept when Exp(1) < t·w_i, where t solves Σ (1 − exp(−t·w_i)) = count.
fn inclusion(weights: &[f64], count: f64) -> Vec<f64> {
    let (mut low, mut high) = (0.0, 1.0);
    let expected = |t: f64| weights.iter().map(|weight| 1.0 - (-t * weight).exp()).sum::<f64>();
    while expected(high) < count {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if expected(middle) < count { low = middle } else { high = middle }
    }
    weights.iter().map(|weight| 1.0 - (-low * weight).exp()).collect()
}

#[test]
fn shift_gsample_follows_the_density_of_equation_11() {
    let rows = 20_000usize;
    let ratings = shuffled_ratings(rows);
    let (drop_top, mean, sigma) = (0.1, 0.45, 0.2);
    let weights: Vec<f64> = (2_000..rows)
        .map(|rank| {
            let percentile = rank as f64 / rows as f64;
            (-(percentile - mean) * (percentile - mean) / (2.0 * sigma * sigma)).exp()
        })
        .collect();
    for count in [1_000usize, 8_000] {
        let chance = inclusion(&weights, count as f64);
        let mut observed = [0.0f64; 20];
        let draws = 4;
        for seed in 0..draws {
            let strategy = Strategy::ShiftGsample { drop_top, mean, sigma };
            let kept = select(&ratings, &strategy, Keep::Count(count as u64), seed).unwrap().kept;
            // Row r was built to have rank r·7919 mod rows.
            kept.iter().for_each(|&row| observed[row as usize * 7919 % rows / 1000] += 1.0);
        }
        for (twentieth, observed) in observed.iter().enumerate() {
            let range = twentieth * 1000..(twentieth + 1) * 1000;
            let chances = range.filter(|rank| *rank >= 2_000).map(|rank| chance[rank - 2_000]);
            let (expected, variance) = chances.fold((0.0, 0.0), |(mean, variance), chance| {
                (mean + chance, variance + chance * (1.0 - chance))
            });
            let (expected, deviation) = (expected * draws as f64, (variance * draws as f64).sqrt());
            assert!(
                (observed - expected).abs() <= 4.5 * deviation,
                "{count} rows, twentieth {twentieth}: {observed} kept, {expected:.1} ± {deviation:.1} expected"
            );
        }
        assert_eq!(observed[0] + observed[1], 0.0, "the top tenth is dropped");
    }
}

#[test]
fn random_takes_every_row_equally_often() {
    let ratings = shuffled_ratings(50);
    let mut taken = [0u32; 50];
    for seed in 0..4000 {
        let kept = select(&ratings, &Strategy::Random, Keep::Count(10), seed).unwrap().kept;
        kept.iter().for_each(|&row| taken[row as usize] += 1);
    }
    // Each is binomial(4000, 0.2): 800 ± 25.3.
    assert!(taken.iter().all(|&count| (800 - 110..=800 + 110).contains(&count)), "{taken:?}");
}

#[test]
fn the_summary_says_what_was_kept() {
    let ratings: Vec<f64> = (0..20).map(|row| 20.0 - f64::from(row)).collect();
    let Selection { kept, summary } = select(&ratings, &Strategy::TopK, Keep::Share(0.25), 0).unwrap();
    assert_eq!(kept, [0, 1, 2, 3, 4]);
    assert_eq!((summary.rows, summary.kept, summary.dropped), (20, 5, 0));
    let percentiles = summary.kept_percentiles;
    assert_eq!((percentiles.minimum, percentiles.maximum), (0.0, 0.2));
    assert_eq!(
        (percentiles.lower_quartile, percentiles.median, percentiles.upper_quartile),
        (0.05, 0.1, 0.15)
    );
    assert!((percentiles.mean - 0.1).abs() < 1e-15);
    assert_eq!((summary.kept_ratings.minimum, summary.kept_ratings.maximum), (16.0, 20.0));
    assert_eq!(summary.kept_share_by_decile[..3], [Some(1.0), Some(1.0), Some(0.5)]);
    assert_eq!(summary.kept_share_by_decile[3..], [Some(0.0); 7]);
    // Of three rows, ranks 0, 1, 2 fall into tenths 0, 3, 6; the others have no row.
    let summary = select(&[3.0, 2.0, 1.0], &Strategy::TopK, Keep::Count(1), 0).unwrap().summary;
    let filled: Vec<usize> =
        (0..10).filter(|&decile| summary.kept_share_by_decile[decile].is_some()).collect();
    assert_eq!(filled, [0, 3, 6]);
}

#[test]
fn keep_reads_shares_and_counts() {
    let keep = |text: &str| text.parse::<Keep>();
    assert_eq!(keep("50%").unwrap(), Keep::Share(0.5));
    assert_eq!(keep("0.5").unwrap(), Keep::Share(0.5));
    assert_eq!(keep("100%").unwrap(), Keep::Share(1.0));
    assert_eq!(keep("1.0").unwrap(), Keep::Share(1.0));
    assert_eq!(keep("1").unwrap(), Keep::Count(1));
    assert_eq!(keep("1200").unwrap(), Keep::Count(1200));
    assert_eq!(Keep::Share(0.5).count(7).unwrap(), 4);
    assert_eq!(Keep::Share(0.29).count(100).unwrap(), 29);
    for text in ["", "half", "50 percent", "-3", "%", "5,5"] {
        let outcome = message(keep(text));
        let outside = "the share to keep is -3, but it must be above 0 and at most 1 (100%).";
        let unreadable =
            format!("`{text}` is neither a share such as 50% or 0.5 nor a number of rows such as 1200.");
        assert_eq!(outcome, if text == "-3" { outside.to_owned() } else { unreadable });
    }
    assert_eq!(
        message(keep("150%")),
        "the share to keep is 1.5, but it must be above 0 and at most 1 (100%)."
    );
    assert_eq!(message(keep("0.0")), "the share to keep is 0, but it must be above 0 and at most 1 (100%).");
    assert_eq!(
        message(keep("NaN")),
        "the share to keep is NaN, but it must be above 0 and at most 1 (100%)."
    );
    assert_eq!(message(keep("0")), "the number of rows to keep is 0, but it must be at least 1.");
}

#[test]
fn parameters_out_of_range_are_refused_in_one_sentence() {
    let ratings = shuffled_ratings(10);
    let refused = |strategy, keep| message(select(&ratings, &strategy, keep, 0));
    let shift = |drop_top, mean, sigma| Strategy::ShiftGsample { drop_top, mean, sigma };
    let half = Keep::Share(0.5);
    assert_eq!(
        refused(shift(0.6, 0.5, 0.2), half),
        "5 rows are to be kept, but only 4 of 10 are available after dropping the 6 best rated; keep fewer."
    );
    assert_eq!(
        refused(Strategy::Random, Keep::Count(11)),
        "11 rows are to be kept, but only 10 of 10 are available; keep fewer."
    );
    assert_eq!(
        refused(Strategy::TopK, Keep::Count(0)),
        "the number of rows to keep is 0, but it must be at least 1."
    );
    assert_eq!(
        refused(Strategy::TopK, Keep::Share(0.01)),
        "1% of 10 rows is less than half a row; keep more."
    );
    for share in [0.0, -0.5, 1.01, f64::NAN] {
        assert_eq!(
            refused(Strategy::TopK, Keep::Share(share)),
            format!("the share to keep is {share}, but it must be above 0 and at most 1 (100%).")
        );
    }
    for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let expected = format!("sigma is {sigma}, but it must be a number above 0.");
        assert_eq!(refused(shift(0.0, 0.5, sigma), half), expected);
        assert_eq!(refused(Strategy::Gsample { mean: 0.5, sigma }, half), expected);
    }
    for drop_top in [-0.1, 1.0, f64::NAN] {
        assert_eq!(
            refused(shift(drop_top, 0.5, 0.2), half),
            format!("drop_top is {drop_top}, but it must be at least 0 and below 1.")
        );
    }
    assert_eq!(refused(shift(0.0, f64::NAN, 0.2), half), "mean is NaN, but it must be a finite number.");
    assert_eq!(
        refused(Strategy::Block { offset: 1.0 }, half),
        "offset is 1, but it must be at least 0 and below 1."
    );
    assert_eq!(
        message(select(&[1.0, f64::NAN], &Strategy::TopK, half, 0)),
        "the rating of row 2 is NaN, not a finite number."
    );
    assert_eq!(message(select(&[], &Strategy::TopK, half, 0)), "there is no rating to rank.");
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
        message(RatingsHeader::for_corpus(&columns(&["path", "caption"]), &names())),
        "there is no column `id`; the columns are `path`, `caption`, `rating`."
    );
    assert_eq!(
        message(RatingsHeader::for_corpus(&columns(&["id", "rating"]), &names())),
        "the corpus already has a column `rating`; rename it or choose another name for the ratings."
    );
    assert_eq!(
        message(RatingsHeader::new(columns(&["id", "a", "rating", "a"]), &names())),
        "two columns are called `a`; rename one."
    );
    let same = ColumnNames { id: "id".to_owned(), rating: "id".to_owned() };
    assert_eq!(
        message(RatingsHeader::new(columns(&["id"]), &same)),
        "one column, `id`, cannot be both the id and the rating."
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
    assert_eq!(csv_message(b""), ": the file is empty; its first line must name the columns.");
    assert_eq!(csv_message(b"id,rating\n"), ": the table has no row below its header.");
    assert_eq!(
        csv_message(b"id,score,caption\n1,2,x\n"),
        ": there is no column `rating`; the columns are `id`, `score`, `caption`."
    );
    assert_eq!(
        csv_message(b"name,rating\n1,2\n"),
        ": there is no column `id`; the columns are `name`, `rating`."
    );
    assert_eq!(csv_message(b"id,rating\na,1\nb,high\n"), ", line 3: the rating `high` is not a number.");
    assert_eq!(csv_message(b"id,rating\na,\n"), ", line 2: the rating `` is not a number.");
    for text in ["nan", "inf", "-inf", "1e999"] {
        assert_eq!(
            csv_message(format!("id,rating\na,1\nb,{text}\n").as_bytes()),
            format!(", line 3: the rating `{text}` is not a finite number.")
        );
    }
    assert_eq!(csv_message(b"id,rating\n,1\n"), ", line 2: the id is empty; every row needs one.");
    assert_eq!(
        csv_message(b"id,rating\na,1\n\"b\n\",2\nc,3\na,4\n"),
        ", line 6: the id `a` occurs twice, in line 2 and here; ids must be unique."
    );
    assert_eq!(
        csv_message(b"id,rating\na,1,2\n"),
        ", line 2: the row has 3 fields, but the header has 2; quote fields that hold commas."
    );
    assert_eq!(
        csv_message(b"id,rating\na,1\nb\n"),
        ", line 3: the row has 1 fields, but the header has 2; quote fields that hold commas."
    );
    assert_eq!(
        csv_message(b"id,rating\na,1\n\xFF,2\n"),
        ", line 3: the text is not UTF-8; convert the file to UTF-8."
    );
    let open = "the last record opens a quote that never closes; close it or double it.";
    assert_eq!(csv_message(b"rating,id\n1,a\n2,\"b\n3,c\n4,d\n"), format!(", line 3: {open}"));
    assert_eq!(csv_message(b"rating,id\n1,a\n\"2,b\n3,c\n"), format!(", line 3: {open}"));
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
    let expected = format!(
        "{}: the ending is neither .csv nor .parquet; rename the file to say which it is.",
        text.display()
    );
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
    assert_eq!(refused(), ": the table has no row below its header.");
    write_at(&path, &["id", "rating"], &[row("x", 1.0, &[]), row("y", 2.0, &[]), row("x", 3.0, &[])]);
    assert_eq!(refused(), ": the id `x` occurs twice, in rows 1 and 3; ids must be unique.");

    let other = ColumnNames { id: "key".to_owned(), ..names() };
    let outcome = message(RatingsTable::read(&path, &other));
    assert!(outcome.ends_with(": there is no column `key`; the columns are `id`, `rating`."), "{outcome}");
    let text = ColumnNames { id: "rating".to_owned(), rating: "id".to_owned() };
    let outcome = message(RatingsTable::read(&path, &text));
    assert!(
        outcome.ends_with(
            "the column `id` is of a kind that is not read (BYTE_ARRAY String); store it as DOUBLE or FLOAT."
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
        assert_eq!(
            refused(row("a", f64::NAN, &["x"])),
            ": the rating of id `a` is NaN, not a finite number."
        );
        assert_eq!(refused(row("", 1.0, &["x"])), ": row 1 has an empty id.");
        assert_eq!(
            refused(row("a", 1.0, &[])),
            ": id `a` comes with 0 carried fields, but the header has 1."
        );
    }
}

fn job(folder: &Path, ratings: &str) -> SubsetJob {
    SubsetJob {
        ratings: folder.join(ratings),
        names: names(),
        strategy: Strategy::TopK,
        keep: Keep::Share(0.5),
        seed: 0,
        out: folder.join("subset.csv"),
        data: None,
        overwrite: false,
    }
}

#[test]
fn a_subset_has_the_original_columns_in_the_original_order() {
    let folder = tempfile::tempdir().unwrap();
    let rows = difficult_rows();
    for name in ["ratings.csv", "ratings.parquet"] {
        write_table(&folder.path().join(name), &["path", "id", "rating", "caption"], &rows);
        let report = write_subset(&SubsetJob { overwrite: true, ..job(folder.path(), name) }).unwrap();
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
    let report = write_subset(&SubsetJob { strategy, seed: 7, ..job(folder.path(), "ratings.csv") }).unwrap();
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
        let report = write_subset(&job).unwrap();
        assert_eq!(report.selection.kept, [2, 3]);
        let expected = records[..3].iter().map(|record| format!("{record}{line_break}")).collect::<String>();
        assert_eq!(fs::read_to_string(&report.subset).unwrap(), expected);
        assert_eq!(fs::read_to_string(&report.ids).unwrap(), "c\nd\n");
        let low = SubsetJob { strategy: Strategy::Block { offset: 0.75 }, keep: Keep::Count(1), ..job };
        let report = write_subset(&low).unwrap();
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
        let outcome = message(write_subset(&job));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "only the two inputs are there");
        outcome.replace(&format!("{}/", folder.path().display()), "")
    };
    assert_eq!(
        refused("id,x\na,1\nc,1\n"),
        "corpus.csv: 1 of the kept ids of ratings.csv are not in this corpus, the first is `d`; give the corpus that \
         was rated."
    );
    assert_eq!(refused("id,x\nc,1\nd,1\nc,2\n"), "corpus.csv: the id `c` occurs twice; ids must be unique.");
    assert_eq!(
        refused("key,x\na,1\n"),
        "corpus.csv, line 1: there is no column `id`; the columns are `key`, `x`."
    );
}

#[test]
fn outputs_are_not_replaced_unless_asked_and_inputs_never() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["a", "b"].map(|id| row(id, f64::from(id.as_bytes()[0]), &[]));
    write_table(&folder.path().join("ratings.csv"), &["id", "rating"], &rows);
    let job = job(folder.path(), "ratings.csv");
    let first = fs::read(write_subset(&job).unwrap().subset).unwrap();
    for name in ["subset.csv", "subset.ids.txt", "subset.summary.json"] {
        let others =
            ["subset.csv", "subset.ids.txt", "subset.summary.json"].iter().filter(|other| **other != name);
        let saved: Vec<(PathBuf, Vec<u8>)> = others
            .map(|other| folder.path().join(other))
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        saved.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        assert_eq!(
            message(write_subset(&job)),
            format!(
                "{} exists already; choose another --out or give --overwrite.",
                folder.path().join(name).display()
            )
        );
        saved.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    let second = write_subset(&SubsetJob { overwrite: true, ..job.clone() }).unwrap();
    assert_eq!(fs::read(second.subset).unwrap(), first);
    let itself = SubsetJob { overwrite: true, out: job.ratings.clone(), ..job.clone() };
    assert_eq!(
        message(write_subset(&itself)),
        format!("{} is an input and would be overwritten; choose another --out.", job.ratings.display())
    );
    let ending = SubsetJob { out: folder.path().join("subset.parquet"), ..job.clone() };
    assert_eq!(
        message(write_subset(&ending)),
        format!(
            "the subset {} must be a file ending in .csv.",
            folder.path().join("subset.parquet").display()
        )
    );
    write_at(&job.ratings, &["id", "rating"], &[row("a\nb", 1.0, &[])]);
    let broken = SubsetJob { keep: Keep::Count(1), overwrite: true, ..job.clone() };
    assert_eq!(
        message(write_subset(&broken)),
        format!(
            "{}: the id \"a\\nb\" holds a line break, which a list with one id a line cannot; change the id.",
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

    #[test]
    fn any_ratings_are_ranked_from_high_to_low(ratings in proptest::collection::vec(-1e6f64..1e6, 1..200)) {
        let ranking = Ranking::new(&ratings).unwrap();
        for pair in ranking.order().windows(2) {
            let (left, right) = (ratings[pair[0] as usize], ratings[pair[1] as usize]);
            prop_assert!(left > right || (left == right && pair[0] < pair[1]));
        }
    }
}
