//! Ratings tables and corpora as comma-separated text (RFC 4180, UTF-8, a header in the first line).

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{ColumnNames, RatingRow, RatingsHeader, RatingsTable, table_error};
use crate::{
    error::{Error, Result},
    files::WholeFile,
    select::ids::Ids,
};

/// A CSV file read record by record, with the place of each record in the file.
pub struct CsvTable {
    path: PathBuf,
    reader: csv::Reader<File>,
    columns: Vec<String>,
    record: csv::StringRecord,
    header_end: u64,
    begin: u64,
    line: Option<u64>,
}

impl CsvTable {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, or its header is not UTF-8.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let mut reader = csv::ReaderBuilder::new().buffer_capacity(1 << 20).from_reader(file);
        let columns: Vec<String> = match reader.headers() {
            Ok(header) => header.iter().map(str::to_owned).collect(),
            Err(error) => return Err(csv_error(path, error)),
        };
        if columns.is_empty() {
            return Err(table_error(path, None, "the file is empty; its first line must name the columns."));
        }
        let header_end = reader.position().byte();
        let record = csv::StringRecord::new();
        Ok(Self { path: path.to_path_buf(), reader, columns, record, header_end, begin: 0, line: None })
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Where the header ends in the file, in bytes, its line break included.
    pub fn header_end(&self) -> u64 {
        self.header_end
    }

    /// Reads the next record; `false` at the end of the file.
    ///
    /// # Errors
    /// If the record has another number of fields than the header, is not UTF-8, or a quote never closes.
    pub fn read(&mut self) -> Result<bool> {
        let begin = self.reader.position().byte();
        let outcome = self.reader.read_record(&mut self.record);
        if !matches!(outcome, Ok(false)) {
            self.begin = begin;
            self.line = self.record.position().map(csv::Position::line);
        }
        // An open quote swallows all that follows it, so only the last record can hold one.
        match outcome {
            Ok(true) => Ok(true),
            Ok(false) => self.check_quotes().map(|()| false),
            Err(error) => {
                let length = std::fs::metadata(&self.path).map_err(Error::io("read", &self.path))?.len();
                if self.reader.position().byte() == length {
                    self.check_quotes()?;
                }
                Err(csv_error(&self.path, error))
            }
        }
    }

    /// The fields of the record that was read last.
    pub fn record(&self) -> &csv::StringRecord {
        &self.record
    }

    /// Where the record that was read last stands in the file, in bytes, possibly with line breaks around it.
    pub fn byte_range(&self) -> std::ops::Range<u64> {
        self.begin..self.reader.position().byte()
    }

    /// The line in which the record that was read last begins, counted from 1 with the header.
    pub fn line(&self) -> Option<u64> {
        self.line
    }

    fn check_quotes(&self) -> Result<()> {
        let mut file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        file.seek(SeekFrom::Start(self.begin)).map_err(Error::io("read", &self.path))?;
        let mut state = Field::Start;
        for byte in BufReader::new(file).bytes() {
            let byte = byte.map_err(Error::io("read", &self.path))?;
            state = match (state, byte) {
                (Field::Start | Field::Plain | Field::Closed, b',' | b'\n' | b'\r') => Field::Start,
                (Field::Start | Field::Closed, b'"') => Field::Quoted,
                (Field::Quoted, b'"') => Field::Closed,
                (Field::Quoted, _) => Field::Quoted,
                (Field::Start | Field::Plain | Field::Closed, _) => Field::Plain,
            };
        }
        if state == Field::Quoted {
            let message = "the last record opens a quote that never closes; close it or double it.";
            return Err(table_error(&self.path, self.line(), message));
        }
        Ok(())
    }
}

/// Where in a field the scan for open quotes is. A doubled quote closes and opens again.
#[derive(Clone, Copy, PartialEq)]
enum Field {
    Start,
    Plain,
    Quoted,
    Closed,
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Io { action: "read", path: path.to_path_buf(), source },
        csv::ErrorKind::Utf8 { .. } => {
            table_error(path, line, "the text is not UTF-8; convert the file to UTF-8.")
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => table_error(
            path,
            line,
            format!(
                "the row has {len} fields, but the header has {expected_len}; quote fields that hold commas."
            ),
        ),
        kind => table_error(path, line, format!("the row cannot be read as CSV ({kind:?}).")),
    }
}

/// The line of row `row` (counted from 0 below the header). Reads the file again: for messages only.
pub(super) fn line_of_row(path: &Path, row: u32) -> Option<u64> {
    let mut table = CsvTable::open(path).ok()?;
    for _ in 0..=row {
        table.read().ok().filter(|&read| read)?;
    }
    table.line()
}

/// Parses a rating; the message on failure lacks only the place.
pub(super) fn parse_rating(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rating) if rating.is_finite() => Ok(rating),
        Ok(_) => Err(format!("the rating `{text}` is not a finite number.")),
        Err(_) => Err(format!("the rating `{text}` is not a number.")),
    }
}

pub(super) struct CsvRatings {
    table: CsvTable,
    header: RatingsHeader,
}

impl CsvRatings {
    pub(super) fn open(path: &Path, names: &ColumnNames) -> Result<Self> {
        let table = CsvTable::open(path)?;
        let header = RatingsHeader::located(path, table.columns.clone(), names)?;
        Ok(Self { table, header })
    }

    pub(super) fn header(&self) -> &RatingsHeader {
        &self.header
    }

    /// Id and rating of the record that was read last.
    fn id_and_rating(&self) -> Result<(&str, f64)> {
        let record = self.table.record();
        let id = record.get(self.header.id).unwrap_or("");
        if id.is_empty() {
            return Err(table_error(
                &self.table.path,
                self.table.line(),
                "the id is empty; every row needs one.",
            ));
        }
        let rating = parse_rating(record.get(self.header.rating).unwrap_or(""))
            .map_err(|message| table_error(&self.table.path, self.table.line(), message))?;
        Ok((id, rating))
    }

    pub(super) fn read(&mut self, row: &mut RatingRow) -> Result<bool> {
        if !self.table.read()? {
            return Ok(false);
        }
        let (id, rating) = self.id_and_rating()?;
        row.id.clear();
        row.id.push_str(id);
        row.rating = rating;
        row.carried.resize_with(self.header.carried_count(), String::new);
        let fields = self.table.record().iter().enumerate();
        let carried = fields.filter(|(index, _)| *index != self.header.id && *index != self.header.rating);
        for ((_, field), slot) in carried.zip(&mut row.carried) {
            slot.clear();
            slot.push_str(field);
        }
        Ok(true)
    }

    pub(super) fn pass_over(&mut self, rows: u64) -> Result<u64> {
        for skipped in 0..rows {
            if !self.table.read()? {
                return Ok(skipped);
            }
        }
        Ok(rows)
    }
}

pub(super) fn read_ids_and_ratings(path: &Path, names: &ColumnNames) -> Result<RatingsTable> {
    let mut reader = CsvRatings::open(path, names)?;
    let (mut ids, mut ratings) = (Ids::default(), Vec::new());
    while reader.table.read()? {
        let (id, rating) = reader.id_and_rating()?;
        ids.push(id);
        ratings.push(rating);
    }
    Ok(RatingsTable { ids, ratings })
}

pub(super) struct CsvWriter {
    writer: csv::Writer<WholeFile>,
    path: PathBuf,
    rating: String,
}

impl CsvWriter {
    pub(super) fn create(path: &Path, header: &RatingsHeader) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(WholeFile::create(path)?);
        writer.write_record(header.columns()).map_err(|error| csv_error(path, error))?;
        Ok(Self { writer, path: path.to_path_buf(), rating: String::new() })
    }

    pub(super) fn write(&mut self, header: &RatingsHeader, row: &RatingRow) -> Result<()> {
        use std::fmt::Write as _;
        self.rating.clear();
        // The shortest decimal that reads back as the same number. Writing into a string cannot fail.
        let _infallible = write!(self.rating, "{}", row.rating);
        let mut carried = row.carried.iter();
        let fields = (0..header.columns().len()).map(|index| {
            if index == header.id {
                row.id.as_str()
            } else if index == header.rating {
                self.rating.as_str()
            } else {
                carried.next().map_or("", String::as_str)
            }
        });
        self.writer.write_record(fields).map_err(|error| write_error(&self.path, error))
    }

    pub(super) fn finish(self) -> Result<()> {
        finish_csv(self.writer, &self.path)
    }
}

/// What a failed write to `path` was.
pub(crate) fn write_error(path: &Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Io { action: "write", path: path.to_path_buf(), source },
        kind => table_error(path, None, format!("a row cannot be written as CSV ({kind:?}).")),
    }
}

/// Completes a table and gives the file its name.
pub(super) fn finish_csv(writer: csv::Writer<WholeFile>, path: &Path) -> Result<()> {
    match writer.into_inner() {
        Ok(file) => file.finish(),
        Err(error) => {
            Err(Error::Io { action: "write", path: path.to_path_buf(), source: error.into_error() })
        }
    }
}
