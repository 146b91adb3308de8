//! Writes the files of a subset: its rows, the list of ids, and a summary.

use std::{
    io::{BufReader, Read, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Keep, RatingColumns, RatingRow, RatingsReader, RatingsTable, Selection, SelectionSummary, Strategy,
    ids::IdIndex,
    ratings::{LeftOut, RatingsOptions, table_error, write_error},
    select,
};
use crate::{
    data::{
        ColumnNames, Corpus, Location,
        corpus::{
            CorpusFormat,
            columns::{IMAGE_NAMES, absent, find_id, find_image},
            delimited::{DelimitedTable, Read as RowRead, Skipped},
            files::CorpusFiles,
            moved_paths::MovedPaths,
        },
        store::Readable,
    },
    error::{Error, Result},
    files::AtomicFile,
    interrupt::Interrupt,
    jobs::{Claim, output::Output},
};

/// Options of [`write_subset`].
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetJob {
    /// The ratings: delimited text, Parquet, or a folder of Parquet files.
    pub ratings: PathBuf,
    /// Which rows to skip; `skip_bad_rows` also applies to the corpus.
    pub options: RatingsOptions,
    /// Names of the columns of ids and ratings. The corpus has the same column of ids.
    pub names: RatingColumns,
    /// Name of the column of image paths, if there is one. If it is the default, it is found by the rules of a corpus
    /// (see [`crate::data::corpus::columns`]).
    pub image_column: String,
    /// The selection strategy.
    pub strategy: Strategy,
    /// How many rows to keep.
    pub keep: Keep,
    /// Seed of random sampling.
    pub seed: u64,
    /// The CSV of the subset. The list of ids and the summary are written next to it.
    pub out: PathBuf,
    /// The corpus to copy rows from: byte for byte if it is one CSV. If `None`, rows come from the ratings table.
    pub data: Option<PathBuf>,
    /// The format of the corpus; `None` to detect it.
    pub format: Option<CorpusFormat>,
    /// Name of the column of captions of a corpus that is not one CSV.
    pub caption_column: String,
    /// Whether to replace existing outputs.
    pub overwrite: bool,
}

impl SubsetJob {
    /// Index of the column of image paths in a table's header. The default name may be missing, in which case no path
    /// is rewritten; another name is required to exist.
    fn image(&self, header: &[String], table: &Path) -> Result<Option<usize>> {
        let found = find_image(header, &self.image_column);
        if found.is_none() && self.image_column != IMAGE_NAMES[0] {
            return Err(table_error(table, Some(1), absent(header, &self.image_column)));
        }
        Ok(found)
    }
}

/// Summary of [`write_subset`].
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetReport {
    /// The selection.
    pub selection: Selection,
    /// Number of skipped rows of the ratings table.
    pub left_out: LeftOut,
    /// The CSV of the subset.
    pub subset: PathBuf,
    /// Kept ids, one per line, sorted byte by byte.
    pub ids: PathBuf,
    /// The summary, JSON.
    pub summary: PathBuf,
}

/// What an interrupted job says about its outputs.
const NOTHING_WRITTEN: &str = "nothing was written";

#[derive(Serialize)]
struct SummaryFile<'a> {
    #[serde(flatten)]
    strategy: &'a Strategy,
    seed: u64,
    keep: String,
    ratings_file: &'a Path,
    rating_column: &'a str,
    data_file: Option<&'a Path>,
    #[serde(skip_serializing_if = "is_zero")]
    malformed_rows: u64,
    #[serde(skip_serializing_if = "is_zero")]
    rows_without_rating: u64,
    #[serde(flatten)]
    summary: &'a SelectionSummary,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Selects a subset and writes `<out>`, `<out stem>.ids.txt` and `<out stem>.summary.json`: all of them or none.
///
/// The subset has the original columns in the original order: those of the ratings table without the rating, or with
/// [`data`](SubsetJob::data) the exact bytes of the corpus' rows, in the order of the corpus. Relative image paths
/// are relative to the folder of the input table: for a subset in another folder, paths from the ratings table are
/// made absolute; rows copied from the corpus are left unchanged, with a warning.
///
/// # Errors
/// If an output exists and must not be replaced or would replace an input, an input cannot be used (see
/// [`RatingsTable::read`]), the strategy's parameters are out of range, a kept id is missing in the corpus or occurs
/// twice, the disk is full, or the user interrupts the job (nothing is written then).
pub fn write_subset(job: &SubsetJob, interrupt: &Interrupt) -> Result<SubsetReport> {
    let [subset, ids, summary] = output_paths(job)?;
    job.strategy.validate()?;
    let mut inputs = vec![job.ratings.clone()];
    inputs.extend(job.data.iter().flat_map(|data| CorpusFiles::inputs(data, job.format)));
    let claim = Claim { command: "select", inputs: &inputs, overwrite: job.overwrite };
    let output = Output::fresh(&claim, &job.out, &[IDS, SUMMARY])?;
    let (selection, left_out) = output.write(|output| write_staged(job, output, interrupt))?;
    Ok(SubsetReport { selection, left_out, subset, ids, summary })
}

/// Writes all files of a subset to their staging paths.
fn write_staged(job: &SubsetJob, output: &Output, interrupt: &Interrupt) -> Result<(Selection, LeftOut)> {
    let [subset, ids, summary] = [output.staged(), output.companion(IDS), output.companion(SUMMARY)];
    let (table, index, left_out) = interrupt.while_reading(NOTHING_WRITTEN, || {
        RatingsTable::read_indexed(&job.ratings, &job.names, job.options)
    })?;
    left_out.warn(&job.ratings);
    let index = job.data.as_ref().map(|_| index);
    interrupt.check(NOTHING_WRITTEN)?;
    let selection = interrupt
        .while_reading(NOTHING_WRITTEN, || select(&table.ratings, &job.strategy, job.keep, job.seed))?;

    let mut ids_file = AtomicFile::create(&ids)?;
    for row in table.ids.sorted(&selection.kept) {
        let id = table.ids.get(row as usize);
        if id.contains(['\n', '\r']) {
            return Err(table_error(
                &job.ratings,
                None,
                format!(
                    "the id {id:?} contains a line break, so it cannot be written to the list of ids; change the id"
                ),
            ));
        }
        ids_file.write_all(id.as_bytes()).map_err(Error::io("write", &ids))?;
        ids_file.write_all(b"\n").map_err(Error::io("write", &ids))?;
    }

    let mut summary_file = AtomicFile::create(&summary)?;
    let contents = SummaryFile {
        strategy: &job.strategy,
        seed: job.seed,
        keep: job.keep.to_string(),
        ratings_file: &job.ratings,
        rating_column: &job.names.rating,
        data_file: job.data.as_deref(),
        malformed_rows: left_out.malformed,
        rows_without_rating: left_out.without_rating,
        summary: &selection.summary,
    };
    serde_json::to_writer_pretty(&mut summary_file, &contents)
        .map_err(std::io::Error::from)
        .and_then(|()| summary_file.write_all(b"\n"))
        .map_err(Error::io("write", &summary))?;

    let subset_file = AtomicFile::create(&subset)?;
    let subset_file = match (&job.data, index) {
        (Some(data), Some(index)) => {
            let requested = RequestedRows::new(&table, &index, &selection.kept);
            match CorpusFiles::of(data, job.format)?.one_csv() {
                Some(table) if table == data => {
                    copy_corpus_rows(job, table, requested, subset_file, interrupt)?
                }
                _ => write_corpus_rows(job, data, requested, subset_file, interrupt)?,
            }
        }
        _ => write_table_rows(job, &selection.kept, subset_file, interrupt)?,
    };
    interrupt.check(NOTHING_WRITTEN)?;
    for file in [ids_file, summary_file, subset_file] {
        file.finish()?;
    }
    Ok((selection, left_out))
}

/// Suffix of the list of ids.
const IDS: &str = ".ids.txt";
/// Suffix of the summary.
const SUMMARY: &str = ".summary.json";

/// Paths of the three outputs.
fn output_paths(job: &SubsetJob) -> Result<[PathBuf; 3]> {
    let ending = job.out.extension().and_then(|ending| ending.to_str()).unwrap_or("");
    let stem = job.out.file_stem().filter(|_| ending.eq_ignore_ascii_case("csv"));
    let Some(stem) = stem else {
        return Err(Error::invalid(format!("{}: the name must end in .csv", job.out.display())));
    };
    let sibling = |ending: &str| {
        let mut name = stem.to_os_string();
        name.push(ending);
        job.out.with_file_name(name)
    };
    Ok([job.out.clone(), sibling(IDS), sibling(SUMMARY)])
}

/// Streams the ratings table and writes the kept rows without their rating.
fn write_table_rows(
    job: &SubsetJob,
    kept: &[u32],
    file: AtomicFile,
    interrupt: &Interrupt,
) -> Result<AtomicFile> {
    let mut reader = RatingsReader::open_with(&job.ratings, &job.names, job.options)?;
    let mut writer = csv::WriterBuilder::new().buffer_capacity(1 << 16).from_writer(file);
    let header = reader.header().clone();
    let columns = header.columns().iter().enumerate().filter(|(index, _)| *index != header.rating_index());
    let failed = |error| write_error(&job.out, error);
    writer.write_record(columns.map(|(_, column)| column)).map_err(failed)?;
    // Index of the id once the rating is removed.
    let id_index = header.id_index() - usize::from(header.rating_index() < header.id_index());
    let image = job.image(header.columns(), &job.ratings)?.filter(|&at| at != header.rating_index());
    // If image paths are the ids, they are in the column of ids.
    let paths_are_ids = image == Some(header.id_index());
    let image = image.and_then(|at| header.carried().position(|column| *column == header.columns()[at]));
    let paths = MovedPaths::between(&job.ratings, &job.out)?;
    let mut row = RatingRow::default();
    let mut next = 0;
    for &kept_row in kept {
        interrupt.check(NOTHING_WRITTEN)?;
        let between = u64::from(kept_row - next);
        if reader.pass_over(between)? != between || !reader.read(&mut row)? {
            return Err(table_error(
                &job.ratings,
                None,
                "the file became shorter while it was being read; run the command again",
            ));
        }
        next = kept_row + 1;
        if let Some(image) = image
            && paths.changes(&row.carried[image])
        {
            row.carried[image] = paths.moved(&row.carried[image])?.into_owned();
        }
        if paths_are_ids && paths.changes(&row.id) {
            row.id = paths.moved(&row.id)?.into_owned();
        }
        let (before, after) = row.carried.split_at(id_index);
        let fields = before.iter().chain(std::iter::once(&row.id)).chain(after);
        writer.write_record(fields).map_err(failed)?;
    }
    writer.into_inner().map_err(|error| Error::Io {
        action: "write",
        path: job.out.clone(),
        source: error.into_error(),
    })
}

/// The rows of the corpus to copy, and those copied so far.
struct RequestedRows<'a> {
    table: &'a RatingsTable,
    index: &'a IdIndex,
    /// The kept rows of the ratings, ascending.
    kept: &'a [u32],
    selected: Vec<bool>,
    copied: Vec<u32>,
}

impl<'a> RequestedRows<'a> {
    fn new(table: &'a RatingsTable, index: &'a IdIndex, kept: &'a [u32]) -> Self {
        let mut selected = vec![false; table.ratings.len()];
        kept.iter().for_each(|&row| selected[row as usize] = true);
        Self { table, index, kept, selected, copied: Vec::with_capacity(kept.len()) }
    }

    /// Whether the row with this id is to be copied; it then counts as copied.
    fn take(&mut self, id: &str) -> bool {
        let row = self.index.find(&self.table.ids, id).filter(|&row| self.selected[row as usize]);
        self.copied.extend(row);
        row.is_some()
    }

    /// Fails if a kept row was not copied, or one was copied twice.
    fn expect_all(mut self, job: &SubsetJob, data: &Path) -> Result<()> {
        self.copied.sort_unstable();
        match self.copied == self.kept {
            true => Ok(()),
            false => Err(mismatch(job, data, self.table, self.kept, &self.copied)),
        }
    }
}

/// Streams a corpus in any format and writes the records with kept ids as comma-separated text.
fn write_corpus_rows(
    job: &SubsetJob,
    data: &Path,
    mut requested: RequestedRows<'_>,
    file: AtomicFile,
    interrupt: &Interrupt,
) -> Result<AtomicFile> {
    let names = ColumnNames {
        id: job.names.id.clone(),
        image: job.image_column.clone(),
        caption: job.caption_column.clone(),
    };
    let corpus = Corpus::open_as(data, &names, job.format)?.skipping_malformed(job.options.skip_bad_rows);
    let image = corpus.schema().image;
    let paths = MovedPaths::from_folder(corpus.folder(), &job.out)?;
    let mut writer = csv::WriterBuilder::new().buffer_capacity(1 << 16).from_writer(file);
    let failed = |error| write_error(&job.out, error);
    writer.write_record(&corpus.schema().columns).map_err(failed)?;
    let mut malformed = 0_u64;
    for record in corpus {
        interrupt.check(NOTHING_WRITTEN)?;
        let mut record = record?;
        malformed += u64::from(record.malformed.is_some());
        if record.malformed.is_some() || !requested.take(&record.id) {
            continue;
        }
        if paths.changes(&record.fields[image]) {
            record.fields[image] = paths.moved(&record.fields[image])?.into_owned();
        }
        writer.write_record(&record.fields).map_err(failed)?;
    }
    if malformed > 0 {
        tracing::warn!("{}: {malformed} malformed rows were skipped", data.display());
    }
    requested.expect_all(job, data)?;
    writer.into_inner().map_err(|error| Error::io("write", &job.out)(error.into_error()))
}

/// Streams the corpus and copies the rows with kept ids, byte for byte.
fn copy_corpus_rows(
    job: &SubsetJob,
    data: &Path,
    mut requested: RequestedRows<'_>,
    mut file: AtomicFile,
    interrupt: &Interrupt,
) -> Result<AtomicFile> {
    let mut corpus = DelimitedTable::open(data)?;
    if corpus.header().is_empty() {
        return Err(corpus.refuse("the file is empty; its first line must name the columns"));
    }
    let id_column = find_id(Some(data), corpus.header(), [&job.names.id, &job.image_column])
        .map_err(|message| corpus.refuse_header(message))?;
    let image = job.image(corpus.header(), data)?;
    let paths = MovedPaths::between(data, &job.out)?;
    let mut astray = 0_u64;
    let mut copier = Copier::open(data)?;
    let header = copier.take(corpus.header_bytes())?;
    let line_break: &[u8] =
        if header.ends_with(b"\r") || header.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
    let mut write_line = |line: &[u8]| {
        file.write_all(line).and_then(|()| file.write_all(line_break)).map_err(Error::io("write", &job.out))
    };
    write_line(without_line_breaks(header))?;
    let mut skipped = Skipped::default();
    loop {
        interrupt.check(NOTHING_WRITTEN)?;
        match corpus.read()? {
            RowRead::End => break,
            RowRead::Malformed(row) if job.options.skip_bad_rows => {
                skipped.add(row);
                continue;
            }
            RowRead::Malformed(row) => return Err(corpus.refuse_row(row)),
            RowRead::Row => {}
        }
        let id = corpus.field(id_column);
        if !requested.take(id) {
            continue;
        }
        astray += u64::from(image.is_some_and(|image| paths.changes(corpus.field(image))));
        let bytes = copier.take(corpus.row_bytes())?;
        write_line(without_line_breaks(bytes))?;
    }
    skipped.warn(data);
    requested.expect_all(job, data)?;
    if astray > 0 {
        tracing::warn!(
            "{} has image paths relative to its folder in {astray} rows; copied unchanged, they do not resolve from \
             {}; choose an --out in the folder of the corpus, or omit --data",
            data.display(),
            job.out.display()
        );
    }
    Ok(file)
}

/// The error if the copied rows (ascending) differ from the kept rows.
fn mismatch(job: &SubsetJob, data: &Path, table: &RatingsTable, kept: &[u32], copied: &[u32]) -> Error {
    if let Some(pair) = copied.windows(2).find(|pair| pair[0] == pair[1]) {
        let id = table.ids.get(pair[0] as usize);
        return table_error(data, None, format!("the id `{id}` occurs twice; ids must be unique"));
    }
    let first = kept.iter().find(|row| copied.binary_search(row).is_err());
    let first = first.map_or("", |&row| table.ids.get(row as usize));
    table_error(
        data,
        None,
        format!(
            "{} of the kept ids of {} are not in this corpus, the first is `{first}`; pass the corpus that was rated",
            kept.len() - copied.len(),
            job.ratings.display(),
        ),
    )
}

/// Strips line breaks around a record, which are outside its quotes.
fn without_line_breaks(record: &[u8]) -> &[u8] {
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let begin = record.iter().position(|byte| !is_break(byte)).unwrap_or(record.len());
    let end = record.iter().rposition(|byte| !is_break(byte)).map_or(begin, |last| last + 1);
    &record[begin..end]
}

/// Copies byte ranges from a file, in ascending order.
struct Copier {
    path: PathBuf,
    file: BufReader<Box<dyn Readable>>,
    at: u64,
    bytes: Vec<u8>,
}

impl Copier {
    fn open(path: &Path) -> Result<Self> {
        // Byte ranges of a compressed file are those of the decompressed data.
        let file = Location::from(path).open_decompressed(0, 0).map_err(Error::io("read", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufReader::with_capacity(1 << 20, file),
            at: 0,
            bytes: Vec::new(),
        })
    }

    fn take(&mut self, range: std::ops::Range<u64>) -> Result<&[u8]> {
        let (Ok(forward), Ok(length)) =
            (i64::try_from(range.start - self.at), usize::try_from(range.end - range.start))
        else {
            return Err(table_error(&self.path, None, "a record is too large to be copied"));
        };
        self.file.seek_relative(forward).map_err(Error::io("read", &self.path))?;
        self.bytes.resize(length, 0);
        self.file.read_exact(&mut self.bytes).map_err(Error::io("read", &self.path))?;
        self.at = range.end;
        Ok(&self.bytes)
    }
}
