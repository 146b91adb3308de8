//! Reader of delimited text tables: a header, and rows with the same number of fields, separated by commas, tabs or
//! semicolons.
//!
//! The separator is detected from the first lines: a first line `sep=;`, as Excel writes it, sets it. Otherwise it is
//! a tab in a file with extension `.tsv` or `.tab` whose header has one; else a comma if the header has one outside
//! quotes; else a tab, then a semicolon.
//!
//! Spreadsheets leave empty columns behind: fields beyond the last named column are accepted if they are empty. A
//! single trailing unnamed column is kept as a column; two are not, because column names must be unique.

use std::{
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
};

use super::{
    file_kind::foreign,
    read_error::read_error,
    rows::{MAX_ROW_BYTES, Row, RowError, RowReader},
};
use crate::{
    data::{
        location::Location,
        store::{Kind, Readable},
    },
    error::{Error, Result},
};

/// Size of the read buffer.
const BUFFER_BYTES: usize = 1 << 18;
/// How far back a compressed table can be read without decompressing it again: to the start of the longest row.
const WINDOW_BYTES: usize = MAX_ROW_BYTES + BUFFER_BYTES;

/// A row that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line of the error, counted from 1 including the header.
    pub line: u64,
    /// The error and a hint.
    pub message: String,
}

/// The result of reading a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The end of the file.
    End,
    /// A row; see [`DelimitedTable::row`].
    Row,
    /// A malformed row; the next one can be read.
    Malformed(Malformed),
}

/// A table, read row by row.
pub struct DelimitedTable {
    at: Location,
    header: Vec<String>,
    header_line: u64,
    header_bytes: Range<u64>,
    /// Number of columns up to the last named one.
    named: usize,
    /// Number of columns in the header, including those that are dropped.
    all: usize,
    separator: u8,
    rows: RowReader<Input>,
}

/// The input of the row reader.
type Input = BufReader<Box<dyn Readable>>;

/// The hint of every error about a row.
const SKIP_BAD_ROWS: &str = "fix it, or skip such rows (--skip-bad-rows, or --set skip_bad_rows=true)";

impl DelimitedTable {
    /// Opens a table and reads its header, which is empty if the file is. A UTF-8 byte order mark is accepted. A file
    /// compressed with gzip or zstd is decompressed as it is read; its byte offsets are those of the decompressed data.
    ///
    /// # Errors
    /// If the file cannot be read, is evidently in another format (which the message names), or has an invalid
    /// header.
    pub fn open(at: impl Into<Location>) -> Result<Self> {
        let at = at.into();
        let path = at.as_path();
        let refuse = |message| Error::Table { path: path.to_path_buf(), line: None, message };
        // Checked before opening: opening a named pipe blocks until there is a writer.
        match at.kind().map_err(Error::io("read", path))? {
            Kind::File(_) => {}
            Kind::Folder => return Err(refuse("is a folder, not a table; pass the table's file".to_owned())),
            Kind::Other | Kind::Cell(_) => {
                let message =
                    "is not a regular file, and a table is read more than once; write it to a file first";
                return Err(refuse(message.to_owned()));
            }
        }
        let mut input = Self::input(&at, 0)?;
        let start = input.fill_buf().map_err(read_error(&at))?;
        if let Some(message) = foreign(start) {
            return Err(refuse(message));
        }
        let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        let Beginning { separator, named_by } = Beginning::of(path, &start[mark..]);
        let (skipped, line) = (mark + named_by, 1 + u64::from(named_by > 0));
        input.consume(skipped);
        let rows = RowReader::new(input, separator, line, skipped as u64);
        let mut table = Self {
            at,
            header: Vec::new(),
            header_line: line,
            header_bytes: 0..0,
            named: 0,
            all: 0,
            separator,
            rows,
        };
        table.read_header()?;
        Ok(table)
    }

    fn input(at: &Location, from: u64) -> Result<Input> {
        let input = at.open_decompressed(from, WINDOW_BYTES).map_err(read_error(at))?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, input))
    }

    fn read_header(&mut self) -> Result<()> {
        match self.rows.read() {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => return Err(self.failed(error)),
        }
        self.header_line = self.rows.row_line();
        self.header_bytes = 0..self.rows.row_bytes().end;
        self.header = self.rows.row().iter().map(str::to_owned).collect();
        self.all = self.header.len();
        self.named = self.header.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        if self.named == 0 {
            return Err(self.refuse_header("the first row names no columns; it must be the header"));
        }
        let unnamed: Vec<usize> = (0..self.named).filter(|&index| self.header[index].is_empty()).collect();
        if let [first, second, ..] = unnamed[..] {
            return Err(self.refuse_header(format!(
                "columns {} and {} have no name; name or remove them",
                first + 1,
                second + 1
            )));
        }
        if unnamed.len() + self.all - self.named > 1 {
            self.header.truncate(self.named);
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.at.as_path()
    }

    /// The location of the file.
    pub fn location(&self) -> &Location {
        &self.at
    }

    /// Column names, in order; empty if the file is empty.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The separator byte.
    pub fn separator(&self) -> u8 {
        self.separator
    }

    /// The byte range before the first row: a byte order mark, a line that sets the separator, and the header with
    /// its line break.
    pub fn header_bytes(&self) -> Range<u64> {
        self.header_bytes.clone()
    }

    /// Reads the next row.
    ///
    /// # Errors
    /// If reading the file fails.
    pub fn read(&mut self) -> Result<Read> {
        let mut read = self.rows.read();
        // Spreadsheets leave rows of only separators below the last one.
        while matches!(read, Ok(true)) && self.named > 1 && self.rows.row().iter().all(str::is_empty) {
            read = self.rows.read();
        }
        match read {
            Ok(false) => Ok(Read::End),
            Ok(true) => Ok(match self.wrong_fields() {
                None => Read::Row,
                Some(message) => Read::Malformed(Malformed { line: self.rows.row_line(), message }),
            }),
            Err(RowError::Malformed { line, message, ended }) => {
                if !ended {
                    // Resume at the line after the one on which this row starts.
                    self.rows.skip_line().map_err(|error| self.failed(error))?;
                }
                Ok(Read::Malformed(Malformed { line, message }))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The error about the fields of the current row, if any.
    fn wrong_fields(&self) -> Option<String> {
        let row = self.rows.row();
        let (count, kept) = (row.len(), self.header.len());
        if count == kept && count == self.all {
            return None;
        }
        let beyond_is_empty = || (kept..count).all(|index| row.get(index).is_none_or(str::is_empty));
        if count >= self.named && beyond_is_empty() {
            return None;
        }
        if count == self.all {
            let index = (kept..count).find(|&index| row.get(index).is_some_and(|field| !field.is_empty()));
            return Some(format!(
                "field {} is in a column without a name; name or remove it",
                index.unwrap_or(kept) + 1
            ));
        }
        let separator = match self.separator {
            b'\t' => "a tab",
            b';' => "a semicolon",
            _ => "a comma",
        };
        Some(format!(
            "expected {} fields, found {count}; quote fields that contain {separator}, a quote or a line break",
            self.all
        ))
    }

    /// The current row.
    pub fn row(&self) -> Row<'_> {
        self.rows.row()
    }

    /// A field of the current row; empty if the row ends before an unnamed column.
    pub fn field(&self, column: usize) -> &str {
        self.rows.row().get(column).unwrap_or("")
    }

    /// The fields of the current row, as many as the header has names.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        (0..self.header.len()).map(|column| self.field(column))
    }

    /// The line on which the current row starts, counted from 1 including the header.
    pub fn line(&self) -> u64 {
        self.rows.row_line()
    }

    /// The byte range of the current row in the file, including its line break.
    pub fn row_bytes(&self) -> Range<u64> {
        self.rows.row_bytes()
    }

    /// The line and byte offset of the next row.
    pub fn next_position(&self) -> (u64, u64) {
        self.rows.next_position()
    }

    /// Seeks to a position returned by [`next_position`](Self::next_position).
    ///
    /// # Errors
    /// If the file has become shorter than that, or seeking fails.
    pub fn seek(&mut self, line: u64, byte: u64) -> Result<()> {
        if self.rows.next_position() == (line, byte) {
            return Ok(());
        }
        let shorter = |bytes: u64| {
            self.refuse(format!(
                "the file has {bytes} bytes, fewer than the {byte} that were already read; it has changed since"
            ))
        };
        let codec = self.at.codec().map_err(Error::io("read", self.path()))?;
        let bytes = self.at.stamp().map_or(0, |stamp| stamp.bytes);
        if codec.is_none() && byte > bytes {
            return Err(shorter(bytes));
        }
        let input = Self::input(&self.at, byte)?;
        self.rows = RowReader::new(input, self.separator, line, byte);
        Ok(())
    }

    /// Skips blank lines. Returns whether anything follows them.
    ///
    /// # Errors
    /// If reading fails.
    pub fn has_more(&mut self) -> Result<bool> {
        self.rows.has_more().map_err(|error| self.failed(error))
    }

    /// An error about the file.
    pub fn refuse(&self, message: impl Into<String>) -> Error {
        Error::Table { path: self.path().to_path_buf(), line: None, message: message.into() }
    }

    /// An error about the header.
    pub fn refuse_header(&self, message: impl Into<String>) -> Error {
        Error::Table {
            path: self.path().to_path_buf(),
            line: Some(self.header_line),
            message: message.into(),
        }
    }

    /// An error about a row.
    pub fn refuse_row(&self, row: Malformed) -> Error {
        refuse_row(self.path(), Some(row.line), row.message)
    }

    fn failed(&self, error: RowError) -> Error {
        match error {
            RowError::Io(error) => read_error(&self.at)(error),
            RowError::Malformed { line, message, .. } => self.refuse_row(Malformed { line, message }),
        }
    }
}

/// An error about a malformed row, with a hint.
pub(super) fn refuse_row(path: &Path, line: Option<u64>, message: String) -> Error {
    // A message that already has a hint gets no second one.
    let message = match message.contains("; ") {
        true => message,
        false => format!("{}; {SKIP_BAD_ROWS}", message.trim_end_matches('.')),
    };
    Error::Table { path: path.to_path_buf(), line, message }
}

/// What the first lines reveal about the format.
struct Beginning {
    separator: u8,
    /// Length in bytes of a first line that sets the separator.
    named_by: usize,
}

impl Beginning {
    fn of(path: &Path, start: &[u8]) -> Self {
        if let Some((separator, named_by)) = named_separator(start) {
            return Self { separator, named_by };
        }
        let tabs = ["tsv", "tab"].contains(&ending_of(path).as_str());
        let order = if tabs { [b'\t', b',', b';'] } else { [b',', b'\t', b';'] };
        let header = header_outside_quotes(start);
        let separator = order.into_iter().find(|separator| header.contains(separator)).unwrap_or(b',');
        Self { separator, named_by: 0 }
    }
}

/// The extension of a file in lower case, without that of its compression.
pub(super) fn ending_of(path: &Path) -> String {
    let lower = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let ending = lower(path);
    if ["gz", "zst", "gzip", "zstd"].contains(&ending.as_str()) {
        return lower(Path::new(path.file_stem().unwrap_or_default()));
    }
    ending
}

/// The separator set by a first line such as `sep=;`, and the length of that line.
fn named_separator(start: &[u8]) -> Option<(u8, usize)> {
    let rest = start.strip_prefix(b"sep=").or_else(|| start.strip_prefix(b"SEP="))?;
    let (&separator, rest) = rest.split_first()?;
    let line_break =
        [&b"\r\n"[..], b"\n", b"\r"].into_iter().find(|line_break| rest.starts_with(line_break))?;
    let known = matches!(separator, b',' | b';' | b'\t' | b'|');
    known.then_some((separator, 5 + line_break.len()))
}

/// The bytes of the first non-blank line that are outside quotes.
fn header_outside_quotes(start: &[u8]) -> Vec<u8> {
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let begin = start.iter().position(|byte| !is_break(byte)).unwrap_or(start.len());
    let mut quoted = false;
    let mut outside = Vec::new();
    for byte in &start[begin..] {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            _ if is_break(byte) => break,
            _ => outside.push(*byte),
        }
    }
    outside
}

/// Counts skipped rows and keeps the error of the first.
#[derive(Debug, Default)]
pub(crate) struct Skipped {
    count: u64,
    first: Option<Malformed>,
}

impl Skipped {
    pub(crate) fn add(&mut self, row: Malformed) {
        self.count += 1;
        self.first.get_or_insert(row);
    }

    /// Warns about the skipped rows.
    pub(crate) fn warn(&self, path: &Path) {
        if let Some(Malformed { line, message }) = &self.first {
            let (path, count) = (path.display(), self.count);
            let rows = if count == 1 { "malformed row was" } else { "malformed rows were" };
            tracing::warn!("{path}: {count} {rows} skipped; the first is on line {line}: {message}");
        }
    }
}
