//! The corpus table: a CSV with an id, a picture's path and a caption in each row, streamed in constant memory.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::rows::{RowError, RowReader};
use crate::{
    error::{Error, Result},
    jobs::marker::expect_settled,
};

/// What the released code puts in place of an empty caption (`dataset/datasets_csv.py`); for
/// [`Corpus::with_empty_caption`].
pub const RELEASED_EMPTY_CAPTION: &str = "empty caption";

/// Bytes read from the disk at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// The names of the three columns that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnNames {
    /// The column of the ids.
    pub id: String,
    /// The column of the pictures' paths.
    pub image: String,
    /// The column of the captions. While it is `caption` and there is none, `cogvlm_caption` is taken.
    pub caption: String,
}

impl Default for ColumnNames {
    /// The released names: `id`, `image_save_path`, `caption`.
    fn default() -> Self {
        Self { id: "id".to_owned(), image: "image_save_path".to_owned(), caption: "caption".to_owned() }
    }
}

/// One row of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The data row, counted from 0.
    pub row: u64,
    /// The line of the file on which the row begins, counted from 1 with the header.
    pub line: u64,
    /// The id, as it is written.
    pub id: String,
    /// The picture; a relative path is resolved against the folder of the table.
    pub image: PathBuf,
    /// The caption, or the text set for empty captions.
    pub caption: String,
    /// All columns in the order of the header, as they are written.
    pub fields: Vec<String>,
}

/// A place between two rows, to go on from later with [`Corpus::seek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Data rows before it.
    pub row: u64,
    /// The line there, counted from 1.
    pub line: u64,
    /// Bytes before it.
    pub byte: u64,
}

/// A corpus being read; an iterator over its [`Record`]s, which ends after the first error.
#[derive(Debug)]
pub struct Corpus {
    path: PathBuf,
    folder: PathBuf,
    header: Vec<String>,
    columns: [usize; 3],
    bytes_total: u64,
    rows: RowReader<BufReader<File>>,
    next_row: u64,
    empty_caption: String,
    seen: Option<HashSet<u64, BuildHasherDefault<AlreadyHashed>>>,
    ended: bool,
}

impl Corpus {
    /// Opens the table at `path` and reads its header. A UTF-8 byte order mark is accepted.
    ///
    /// # Errors
    /// If the file is missing, empty, not UTF-8 CSV, has no data row, or lacks one of the columns.
    pub fn open(path: impl AsRef<Path>, names: &ColumnNames) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        expect_settled(&path)?;
        let (mut rows, bytes_total) = open_rows(&path)?;
        if !rows.read().map_err(|error| at(&path, error))? {
            let message = format!(
                "the file is empty; it needs a header with the columns `{}`, `{}` and `{}`, and a row for each picture",
                names.id, names.image, names.caption
            );
            return Err(Error::Table { path, line: None, message });
        }
        let line = rows.row_line();
        let fields = rows.fields().map_err(|error| at(&path, error))?;
        let header: Vec<String> = fields.into_iter().map(str::to_owned).collect();
        let find = |name: &str| {
            find_column(&header, name).map_err(|message| Error::Table {
                path: path.clone(),
                line: Some(line),
                message,
            })
        };
        let caption = if names.caption == "caption"
            && !header.iter().any(|column| column == "caption")
            && header.iter().any(|column| column == "cogvlm_caption")
        {
            "cogvlm_caption"
        } else {
            &names.caption
        };
        let columns = [find(&names.id)?, find(&names.image)?, find(caption)?];
        if !rows.has_more().map_err(|error| at(&path, error))? {
            let message = "there is a header but no row of data".to_owned();
            return Err(Error::Table { path, line: None, message });
        }
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self {
            path,
            folder,
            header,
            columns,
            bytes_total,
            rows,
            next_row: 0,
            empty_caption: String::new(),
            seen: None,
            ended: false,
        })
    }

    /// Sets what stands in [`Record::caption`] for an empty caption: the empty string unless set,
    /// [`RELEASED_EMPTY_CAPTION`] to do as the released code does. [`Record::fields`] is left as written.
    #[must_use]
    pub fn with_empty_caption(mut self, text: &str) -> Self {
        text.clone_into(&mut self.empty_caption);
        self
    }

    /// Makes an id that came before an error. Takes 8 to 16 bytes a row; hits are confirmed by reading the file
    /// again, so different ids are never taken for one. Only rows read or skipped from here on are compared.
    #[must_use]
    pub fn refusing_duplicates(mut self) -> Self {
        self.seen = Some(HashSet::default());
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all columns, in order.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// Where in [`header`](Self::header) the id, the picture's path and the caption are.
    pub fn columns(&self) -> [usize; 3] {
        self.columns
    }

    /// The size of the file in bytes; with [`Position::byte`] the share that has been read.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Where the next record is looked for.
    pub fn position(&self) -> Position {
        let (line, byte) = self.rows.next_position();
        Position { row: self.next_row, line, byte }
    }

    /// Goes to a position that [`position`](Self::position) gave for this file, at no cost.
    ///
    /// # Errors
    /// If the file is shorter than that, or seeking fails.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.byte > self.bytes_total {
            return Err(Error::Table {
                path: self.path.clone(),
                line: None,
                message: format!(
                    "the file has {} bytes, fewer than the {} already read before; it was changed in between",
                    self.bytes_total, position.byte
                ),
            });
        }
        let mut file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        file.seek(SeekFrom::Start(position.byte)).map_err(Error::io("read", &self.path))?;
        self.rows =
            RowReader::new(BufReader::with_capacity(BUFFER_BYTES, file), position.line, position.byte);
        self.next_row = position.row;
        self.ended = false;
        Ok(())
    }

    /// Passes over up to `count` rows without making records of them (ids are still compared when duplicates are
    /// refused); how many rows there were to pass over.
    ///
    /// # Errors
    /// As for reading them.
    pub fn skip_rows(&mut self, count: u64) -> Result<u64> {
        let mut skipped = 0;
        while skipped < count && self.read_row()? {
            skipped += 1;
        }
        Ok(skipped)
    }

    /// Reads every remaining record, refusing duplicate ids.
    ///
    /// # Errors
    /// The first error of any row.
    pub fn read_all(self) -> Result<Vec<Record>> {
        self.refusing_duplicates().collect()
    }

    fn refuse(&self, line: u64, message: String) -> Error {
        Error::Table { path: self.path.clone(), line: Some(line), message }
    }

    /// Reads and checks one row, which stays in `self.rows`; `false` at the end and after an error.
    fn read_row(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let read = self.read_checked_row();
        self.ended = !matches!(read, Ok(true));
        read
    }

    fn read_checked_row(&mut self) -> Result<bool> {
        if !self.rows.read().map_err(|error| at(&self.path, error))? {
            return Ok(false);
        }
        let line = self.rows.row_line();
        if self.rows.field_count() != self.header.len() {
            return Err(self.refuse(
                line,
                format!(
                    "the row has {} fields and the header {}; put a field that holds a comma, a quote or a line end \
                     in quotes",
                    self.rows.field_count(),
                    self.header.len()
                ),
            ));
        }
        let fields = self.rows.fields().map_err(|error| at(&self.path, error))?;
        let id = fields[self.columns[0]];
        if id.is_empty() {
            let column = &self.header[self.columns[0]];
            return Err(self.refuse(line, format!("the id (column `{column}`) is empty")));
        }
        if let Some(seen) = &mut self.seen {
            let mut hasher = DefaultHasher::new();
            id.hash(&mut hasher);
            if !seen.insert(hasher.finish())
                && let Some(earlier) = earlier_line(&self.path, self.columns[0], id, line)?
            {
                return Err(self.refuse(
                    line,
                    format!("the id `{id}` is already on line {earlier}; every row needs an id of its own"),
                ));
            }
        }
        self.next_row += 1;
        Ok(true)
    }

    fn record(&self) -> Result<Record> {
        let fields = self.rows.fields().map_err(|error| at(&self.path, error))?;
        let [id, image, caption] = self.columns.map(|column| fields[column]);
        Ok(Record {
            row: self.next_row - 1,
            line: self.rows.row_line(),
            id: id.to_owned(),
            image: self.folder.join(image),
            caption: if caption.is_empty() { self.empty_caption.clone() } else { caption.to_owned() },
            fields: fields.into_iter().map(str::to_owned).collect(),
        })
    }
}

impl Iterator for Corpus {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read_row() {
            Ok(false) => None,
            Ok(true) => Some(self.record()),
            Err(error) => Some(Err(error)),
        }
    }
}

/// The rows of the file, behind a byte order mark if there is one, and the size of the file in bytes.
fn open_rows(path: &Path) -> Result<(RowReader<BufReader<File>>, u64)> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let bytes_total = file.metadata().map_err(Error::io("read", path))?.len();
    let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = input.fill_buf().map_err(Error::io("read", path))?;
    if let Some(message) = foreign_form(start) {
        return Err(Error::Table { path: path.to_path_buf(), line: None, message });
    }
    let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    input.consume(mark);
    Ok((RowReader::new(input, 1, mark as u64), bytes_total))
}

/// The line of the first row before line `before` whose id is `id`.
fn earlier_line(path: &Path, id_column: usize, id: &str, before: u64) -> Result<Option<u64>> {
    let (mut rows, _) = open_rows(path)?;
    let mut is_header = true;
    while rows.read().map_err(|error| at(path, error))? && rows.row_line() < before {
        if !is_header && rows.fields().map_err(|error| at(path, error))?.get(id_column) == Some(&id) {
            return Ok(Some(rows.row_line()));
        }
        is_header = false;
    }
    Ok(None)
}

fn at(path: &Path, error: RowError) -> Error {
    match error {
        RowError::Io(source) => Error::Io { action: "read", path: path.to_path_buf(), source },
        RowError::Malformed { line, message } => {
            Error::Table { path: path.to_path_buf(), line: Some(line), message }
        }
    }
}

/// What a file is that is plainly not UTF-8 CSV, with the cure.
fn foreign_form(start: &[u8]) -> Option<String> {
    let form = match start {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "UTF-16 text; save it as UTF-8",
        [b'P', b'A', b'R', b'1', ..] => "a Parquet file; convert it to CSV",
        [0x1F, 0x8B, ..] => "compressed with gzip; unpack it",
        [b'P', b'K', 3, 4, ..] => "a zip archive or a spreadsheet; save it as CSV",
        _ => return None,
    };
    Some(format!("the file is {form}"))
}

fn find_column(header: &[String], name: &str) -> Result<usize, String> {
    let mut places = header.iter().enumerate().filter(|(_, column)| *column == name).map(|(index, _)| index);
    match (places.next(), places.next()) {
        (Some(index), None) => return Ok(index),
        (Some(first), Some(second)) => {
            return Err(format!(
                "the column `{name}` is there twice (columns {} and {}); rename one",
                first + 1,
                second + 1
            ));
        }
        (None, _) => {}
    }
    let columns: Vec<String> = header.iter().map(|column| format!("`{column}`")).collect();
    let mut message = format!("there is no column `{name}`; the columns are {}", columns.join(", "));
    let wanted = name.to_lowercase();
    let nearest = header
        .iter()
        .map(|column| (strsim::jaro_winkler(&wanted, column.trim().to_lowercase().as_str()), column))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    if let Some((_, column)) = nearest {
        message.push_str(&format!("; did you mean `{column}`?"));
    } else if let [only] = header
        && let Some(separator) = only.chars().find(|c| matches!(c, ';' | '\t' | '|'))
    {
        message.push_str(&format!("; fields must be separated by commas, not by {separator:?}"));
    }
    Err(message)
}

/// Passes on a key that is a hash already.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
