//! Ratings tables: written by `score`, read by `select`, as CSV or Parquet depending on the file extension.
//!
//! A table has a column of ids, a column of ratings and any number of carried columns (text), in the order of the
//! corpus. In Parquet, ids and carried columns are UTF8, ratings are DOUBLE, compressed with snappy. Parquet files of
//! other programs can be read too, as can a folder of them as one table: numbers and times become text, missing
//! carried values become empty text, and lists, structs and binary columns are skipped.

mod comma_separated;
mod left_out;
mod numbers;
mod parquet_file;
mod parquet_read;
mod parquet_source;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

pub(crate) use comma_separated::write_error;
pub(crate) use left_out::LeftOut;
pub use left_out::RatingsOptions;
pub(crate) use numbers::{NumberColumn, NumberHeader, NumberWriter};

use super::ids::{IdIndex, Ids};
use crate::{
    data::corpus::{
        columns::{IMAGE_NAMES, absent, find_id},
        file_kind::{foreign, is_parquet},
    },
    error::{Error, Result},
    jobs::marker::{Marker, expect_settled},
};

/// Names of the two columns that every ratings table has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RatingColumns {
    /// The column of ids. If it is the default, `id`, and there is no such column, one is found by the rules of a
    /// corpus (see [`crate::data::corpus::columns`]).
    pub id: String,
    /// The column of ratings.
    pub rating: String,
}

impl Default for RatingColumns {
    fn default() -> Self {
        Self { id: "id".to_owned(), rating: "rating".to_owned() }
    }
}

/// The column of ratings of a table: `named` if given, else the one named in the table's marker if this program wrote
/// the table, else `rating`.
///
/// # Errors
/// If the marker is damaged.
pub(crate) fn rating_column(table: &Path, named: Option<String>) -> Result<String> {
    if let Some(named) = named {
        return Ok(named);
    }
    let marker = Marker::read_for(table)?;
    let written = marker.and_then(|marker| marker.rating_column);
    Ok(written.unwrap_or_else(|| RatingColumns::default().rating))
}

/// The columns of a ratings table, in order, with the indices of the id and the rating.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RatingsHeader {
    columns: Vec<String>,
    id: usize,
    rating: usize,
}

impl RatingsHeader {
    /// A header with these columns in this order.
    ///
    /// # Errors
    /// If the id or the rating is missing, or two columns have the same name.
    pub fn new(columns: Vec<String>, names: &RatingColumns) -> Result<Self> {
        Self::locate(columns, names, None).map_err(Error::Argument)
    }

    /// The header for the ratings of a corpus with these columns. The rating comes right after the id, so that the
    /// corpus' columns keep their order when the rating is removed.
    ///
    /// # Errors
    /// If the corpus has no column of ids, or already has a column of ratings.
    pub fn for_corpus(columns: &[String], names: &RatingColumns) -> Result<Self> {
        if names.rating.is_empty() {
            return Err(Error::argument("--rating-column is empty; the column of ratings needs a name"));
        }
        if columns.contains(&names.rating) {
            return Err(Error::argument(format!(
                "the corpus already has a column `{}`; choose another name for the ratings with --rating-column NAME",
                names.rating
            )));
        }
        let id = find_id(None, columns, [&names.id, IMAGE_NAMES[0]]);
        let mut all = columns.to_vec();
        all.insert(id.map_or(all.len(), |id| id + 1), names.rating.clone());
        Self::new(all, names)
    }

    fn locate(columns: Vec<String>, names: &RatingColumns, path: Option<&Path>) -> Result<Self, String> {
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].contains(column) {
                return Err(format!("two columns are called `{column}`; rename one"));
            }
        }
        let id = find_id(path, &columns, [&names.id, IMAGE_NAMES[0]])?;
        let rating = columns.iter().position(|column| *column == names.rating);
        let rating = rating.ok_or_else(|| {
            let absent = absent(&columns, &names.rating);
            if path.is_some() {
                format!("{absent}; name the column of ratings with --rating-column NAME")
            } else {
                absent
            }
        })?;
        if id == rating {
            return Err(format!("one column, `{}`, cannot be both the id and the rating", columns[id]));
        }
        Ok(Self { columns, id, rating })
    }

    fn located(path: &Path, columns: Vec<String>, names: &RatingColumns) -> Result<Self> {
        Self::locate(columns, names, Some(path)).map_err(|message| table_error(path, None, message))
    }

    /// All columns, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Index of the id among all columns.
    pub(crate) fn id_index(&self) -> usize {
        self.id
    }

    /// Index of the rating among all columns.
    pub(crate) fn rating_index(&self) -> usize {
        self.rating
    }

    /// The columns other than id and rating, in order.
    pub fn carried(&self) -> impl Iterator<Item = &str> {
        self.columns
            .iter()
            .enumerate()
            .filter(|&(index, _)| index != self.id && index != self.rating)
            .map(|(_, column)| column.as_str())
    }

    /// Number of carried columns.
    pub(crate) fn carried_count(&self) -> usize {
        self.columns.len() - 2
    }
}

/// One row of a ratings table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RatingRow {
    /// The id, unique in the table and not empty.
    pub id: String,
    /// The rating; higher is better.
    pub rating: f64,
    /// The carried fields, in the order of [`RatingsHeader::carried`].
    pub carried: Vec<String>,
}

pub(crate) fn table_error(path: &Path, line: Option<u64>, message: impl Into<String>) -> Error {
    Error::Table { path: path.to_path_buf(), line, message: message.into() }
}

/// File format of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    /// Comma-separated text with a header, extension `.csv`.
    Csv,
    /// Apache Parquet, extension `.parquet`.
    Parquet,
}

impl TableKind {
    /// The format for a file's extension, ignoring case.
    ///
    /// # Errors
    /// If the extension is neither `.csv` nor `.parquet`.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("");
        match ending.to_ascii_lowercase().as_str() {
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            _ => Err(table_error(path, None, "the name must end in .csv or .parquet")),
        }
    }
}

/// Input format of a ratings table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Text,
    Parquet,
}

impl Input {
    /// The input format of `path`: Parquet for a folder, else by the extension, unless the file's content is
    /// evidently something else.
    fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Parquet);
        }
        let start = beginning(path).unwrap_or_default();
        let refuse = |message: String| Err(table_error(path, None, message));
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("").to_ascii_lowercase();
        match (ending.as_str(), is_parquet(&start), foreign(&start)) {
            ("parquet", true, _) | ("parquet", false, None) => Ok(Self::Parquet),
            (_, true, _) => {
                refuse("the file is a Parquet file; rename it so that it ends in .parquet".to_owned())
            }
            (_, false, Some(message)) => refuse(message),
            ("tsv" | "tab", ..) => Ok(Self::Text),
            _ => TableKind::of(path).map(|_| Self::Text),
        }
    }
}

/// Bytes read to detect a file's format.
const BEGINNING: u64 = 1 << 16;

/// The first bytes of a file.
fn beginning(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BEGINNING).read_to_end(&mut bytes)?;
    Ok(bytes)
}

enum WriterKind {
    Csv(Box<comma_separated::CsvWriter>),
    Parquet(Box<parquet_file::ParquetWriter>),
}

/// Writes a ratings table row by row in constant memory. The file is created atomically by [`finish`](Self::finish).
pub struct RatingsWriter {
    path: PathBuf,
    header: RatingsHeader,
    kind: WriterKind,
    rows: u64,
}

impl RatingsWriter {
    /// Starts a table at `path`, whose extension selects CSV or Parquet.
    ///
    /// # Errors
    /// If the extension is unknown or the folder is not writable.
    pub fn create(path: &Path, header: RatingsHeader) -> Result<Self> {
        let kind = match TableKind::of(path)? {
            TableKind::Csv => WriterKind::Csv(Box::new(comma_separated::CsvWriter::create(path, &header)?)),
            TableKind::Parquet => {
                WriterKind::Parquet(Box::new(parquet_file::ParquetWriter::create(path, &header)?))
            }
        };
        Ok(Self { path: path.to_path_buf(), header, kind, rows: 0 })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If the id is empty, the rating is not finite, the number of carried fields differs from the header, or the
    /// disk is full.
    pub fn write(&mut self, row: &RatingRow) -> Result<()> {
        if row.id.is_empty() {
            return Err(table_error(&self.path, None, format!("row {} has an empty id", self.rows + 1)));
        }
        if !row.rating.is_finite() {
            return Err(table_error(
                &self.path,
                None,
                format!("the rating of id `{}` is {}, not a finite number", row.id, row.rating),
            ));
        }
        if row.carried.len() != self.header.carried_count() {
            return Err(table_error(
                &self.path,
                None,
                format!(
                    "id `{}` has {} carried fields, but the header has {}",
                    row.id,
                    row.carried.len(),
                    self.header.carried_count()
                ),
            ));
        }
        self.rows += 1;
        match &mut self.kind {
            WriterKind::Csv(writer) => writer.write(&self.header, row),
            WriterKind::Parquet(writer) => writer.write(&self.header, row),
        }
    }

    /// Number of rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Completes the file and renames it to its final name.
    ///
    /// # Errors
    /// If the disk is full or the rename fails.
    pub fn finish(self) -> Result<()> {
        match self.kind {
            WriterKind::Csv(writer) => writer.finish(),
            WriterKind::Parquet(writer) => writer.finish(),
        }
    }
}

enum ReaderKind {
    Csv(Box<comma_separated::CsvRatings>),
    Parquet(Box<parquet_read::ParquetRatings>),
}

/// Reads a ratings table row by row in constant memory.
///
/// Iterating yields owned rows; [`read`](Self::read) reuses one row without allocating.
pub struct RatingsReader {
    kind: ReaderKind,
    done: bool,
}

impl RatingsReader {
    /// Opens a table: delimited text or Parquet by its extension, or a folder of Parquet files.
    ///
    /// # Errors
    /// If the extension is unknown, the file cannot be read, or a column is missing (the message lists the columns).
    pub fn open(path: &Path, names: &RatingColumns) -> Result<Self> {
        Self::open_with(path, names, RatingsOptions::default())
    }

    /// Like [`open`](Self::open), but skips the rows that `options` selects.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_with(path: &Path, names: &RatingColumns, options: RatingsOptions) -> Result<Self> {
        use {comma_separated::CsvRatings, parquet_read::ParquetRatings};
        expect_settled(path)?;
        let kind = match Input::of(path)? {
            Input::Text => ReaderKind::Csv(Box::new(CsvRatings::open(path, names, options)?)),
            Input::Parquet => ReaderKind::Parquet(Box::new(ParquetRatings::open(path, names, options)?)),
        };
        Ok(Self { kind, done: false })
    }

    /// The columns.
    pub fn header(&self) -> &RatingsHeader {
        match &self.kind {
            ReaderKind::Csv(reader) => reader.header(),
            ReaderKind::Parquet(reader) => reader.header(),
        }
    }

    /// Reads the next row into `row`. Returns `false` at the end of the table.
    ///
    /// # Errors
    /// If the row has too few or too many fields, an empty id, a rating that is not a finite value, text that is not
    /// UTF-8, or an unclosed quote.
    pub fn read(&mut self, row: &mut RatingRow) -> Result<bool> {
        match &mut self.kind {
            ReaderKind::Csv(reader) => reader.read(row),
            ReaderKind::Parquet(reader) => reader.read(row),
        }
    }

    /// Skips the next `rows` rows without parsing ids and ratings. Returns the number of skipped rows, which is
    /// smaller at the end of the table.
    ///
    /// # Errors
    /// See [`read`](Self::read); fields are not parsed.
    pub(crate) fn pass_over(&mut self, rows: u64) -> Result<u64> {
        match &mut self.kind {
            ReaderKind::Csv(reader) => reader.pass_over(rows),
            ReaderKind::Parquet(reader) => reader.pass_over(rows),
        }
    }
}

impl Iterator for RatingsReader {
    type Item = Result<RatingRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut row = RatingRow::default();
        match self.read(&mut row) {
            Ok(true) => Some(Ok(row)),
            Ok(false) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }
}

/// The ids and ratings of a whole table, without the carried columns: per row 8 bytes for the rating, 8 for the
/// offset of the id, and the id itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RatingsTable {
    /// Ids, in table order.
    pub ids: Ids,
    /// Ratings, in table order.
    pub ratings: Vec<f64>,
}

impl RatingsTable {
    /// Reads the ids and ratings of `path` and checks that ids are unique.
    ///
    /// # Errors
    /// See [`RatingsReader::read`]; also if the table has no rows, an id occurs twice, or there are more than
    /// 4,294,967,294 rows.
    pub fn read(path: &Path, names: &RatingColumns) -> Result<Self> {
        Ok(Self::read_indexed(path, names, RatingsOptions::default())?.0)
    }

    /// Like [`read`](Self::read), but skips the rows that `options` selects. Also returns the index of ids built by
    /// the duplicate check, and the number of skipped rows.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_indexed(
        path: &Path,
        names: &RatingColumns,
        options: RatingsOptions,
    ) -> Result<(Self, IdIndex, LeftOut)> {
        let input = Input::of(path)?;
        let (table, left_out) = match input {
            Input::Text => comma_separated::read_ids_and_ratings(path, names, options)?,
            Input::Parquet => parquet_read::read_ids_and_ratings(path, names, options)?,
        };
        if table.ratings.is_empty() {
            let message = match left_out.total() {
                0 => "the table has a header but no rows".to_owned(),
                count => format!("no rows are left: all {count} are malformed or have no rating"),
            };
            return Err(table_error(path, None, message));
        }
        if table.ratings.len() >= u32::MAX as usize {
            return Err(table_error(path, None, "the table has more than 4,294,967,294 rows; split it"));
        }
        let index = IdIndex::build(&table.ids).map_err(|(first, second)| {
            let id = table.ids.get(first as usize);
            let (position, line) = match input {
                Input::Text => {
                    let line = |row| comma_separated::line_of_row(path, names, options, row);
                    (format!("in line {} and here", line(first).unwrap_or(0)), line(second))
                }
                Input::Parquet => (format!("in rows {} and {}", first + 1, second + 1), None),
            };
            table_error(path, line, format!("the id `{id}` occurs twice, {position}; ids must be unique"))
        })?;
        Ok((table, index, left_out))
    }
}
