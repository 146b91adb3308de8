//! The corpus table: an id, an image's path and a caption in each row of delimited text, streamed in constant memory.

pub mod columns;
pub mod delimited;
pub mod file_kind;
pub mod moved_paths;
pub mod rows;

use std::{
    collections::{BTreeSet, HashSet},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

pub use columns::ColumnNames;

use crate::{
    error::{Error, Result},
    jobs::marker::expect_settled,
};
use columns::{Columns, ID_NAMES};
use delimited::{DelimitedTable, Malformed, Read, Skipped};

/// What the released code puts in place of an empty caption (`dataset/datasets_csv.py`); for
/// [`Corpus::with_empty_caption`].
pub const RELEASED_EMPTY_CAPTION: &str = "empty caption";

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
    /// Why the row cannot be used; only where such rows are skipped, see [`Corpus::skipping_malformed`]. All else but its place is
    /// then empty, and the id names the line.
    pub malformed: Option<String>,
}

impl Record {
    /// Refuses a malformed row.
    ///
    /// # Errors
    /// If it is one.
    pub fn check(&self) -> Result<()> {
        match &self.malformed {
            None => Ok(()),
            Some(message) => Err(Error::invalid(format!("the row is malformed: {message}"))),
        }
    }
}

/// The folders of the images that records name, each once. An output must not be one of them, nor hold one.
pub(crate) fn image_folders(records: &[Record]) -> Vec<PathBuf> {
    let folders: BTreeSet<&Path> = records.iter().filter_map(|record| record.image.parent()).collect();
    folders.into_iter().map(Path::to_path_buf).collect()
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
///
/// Where the table has no column of ids, the corpus has one in front of the table's own, of the images' paths as they are written.
#[derive(Debug)]
pub struct Corpus {
    table: DelimitedTable,
    folder: PathBuf,
    header: Vec<String>,
    columns: Columns,
    next_row: u64,
    empty_caption: String,
    seen: Option<HashSet<u64, BuildHasherDefault<AlreadyHashed>>>,
    skip_malformed: bool,
    ended: bool,
}

impl Corpus {
    /// Opens the table at `path` and reads its header. A UTF-8 byte order mark is accepted.
    ///
    /// # Errors
    /// If the file is missing, empty, not delimited text in UTF-8, has no row of data, or lacks one of the columns.
    pub fn open(path: impl AsRef<Path>, names: &ColumnNames) -> Result<Self> {
        let path = path.as_ref();
        expect_settled(path)?;
        let mut table = DelimitedTable::open(path)?;
        if table.header().is_empty() {
            return Err(table.refuse(format!(
                "the file is empty; it needs a header with the columns `{}`, `{}` and `{}`, and a row for each picture",
                names.id, names.image, names.caption
            )));
        }
        let columns =
            Columns::find(path, table.header(), names).map_err(|message| table.refuse_header(message))?;
        if !table.has_more()? {
            return Err(table.refuse("there is a header but no row of data"));
        }
        let added = columns.id.is_none().then(|| ID_NAMES[0].to_owned());
        let header = added.into_iter().chain(table.header().iter().cloned()).collect();
        Ok(Self {
            folder: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            table,
            header,
            columns,
            next_row: 0,
            empty_caption: String::new(),
            seen: None,
            skip_malformed: false,
            ended: false,
        })
    }

    /// With `true`, a row that is malformed is no error: it is a [`Record`] that says so, and that fails wherever its image is
    /// wanted. So it is counted and reported as any record that cannot be used.
    #[must_use]
    pub fn skipping_malformed(mut self, skip: bool) -> Self {
        self.skip_malformed = skip;
        self
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
        self.table.path()
    }

    /// The names of all columns, in order.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// Where in [`header`](Self::header) the id, the picture's path and the caption are.
    pub fn columns(&self) -> [usize; 3] {
        let Columns { id, image, caption } = self.columns;
        match id {
            Some(id) => [id, image, caption],
            None => [0, image + 1, caption + 1],
        }
    }

    /// What is wrong with the table's header, as an error that names the file.
    pub fn refuse_header(&self, message: impl Into<String>) -> Error {
        self.table.refuse_header(message)
    }

    /// The size of the file in bytes; with [`Position::byte`] the share that has been read.
    pub fn bytes_total(&self) -> u64 {
        self.table.bytes_total()
    }

    /// Where the next record is looked for.
    pub fn position(&self) -> Position {
        let (line, byte) = self.table.next_position();
        Position { row: self.next_row, line, byte }
    }

    /// Goes to a position that [`position`](Self::position) gave for this file, at no cost.
    ///
    /// # Errors
    /// If the file is shorter than that, or seeking fails.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        let bytes_total = self.bytes_total();
        if position.byte > bytes_total {
            return Err(self.table.refuse(format!(
                "the file has {bytes_total} bytes, fewer than the {} already read before; it was changed in between",
                position.byte
            )));
        }
        self.table.seek(position.line, position.byte)?;
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
        while skipped < count && self.read_row()? != Read::End {
            skipped += 1;
        }
        Ok(skipped)
    }

    /// Reads every remaining record, refusing duplicate ids. Malformed rows are among them where they are skipped.
    ///
    /// # Errors
    /// The first error of any row.
    pub fn read_all(self) -> Result<Vec<Record>> {
        self.refusing_duplicates().collect()
    }

    /// As [`read_all`](Self::read_all), malformed rows apart from the others, and warned of.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn read_usable(self) -> Result<(Vec<Record>, Vec<Record>)> {
        let path = self.path().to_path_buf();
        let (usable, malformed): (Vec<_>, Vec<_>) =
            self.read_all()?.into_iter().partition(|record| record.malformed.is_none());
        let mut skipped = Skipped::default();
        for Record { line, malformed, .. } in &malformed {
            skipped.add(Malformed { line: *line, message: malformed.clone().unwrap_or_default() });
        }
        skipped.warn(&path);
        Ok((usable, malformed))
    }

    /// Reads and checks one row, which stays in `self.table`; the end after an error.
    fn read_row(&mut self) -> Result<Read> {
        if self.ended {
            return Ok(Read::End);
        }
        let read = self.read_checked_row();
        self.ended = matches!(read, Err(_) | Ok(Read::End));
        self.next_row += u64::from(!self.ended);
        read
    }

    fn read_checked_row(&mut self) -> Result<Read> {
        let read = match self.table.read()? {
            Read::Row if self.id().is_empty() => {
                let Columns { id, image, .. } = self.columns;
                let column = &self.table.header()[id.unwrap_or(image)];
                let what = if id.is_some() { "the id" } else { "the image's path" };
                Read::Malformed(Malformed {
                    line: self.table.line(),
                    message: format!("{what} (column `{column}`) is empty"),
                })
            }
            read => read,
        };
        match read {
            Read::Malformed(row) if !self.skip_malformed => Err(self.table.refuse_row(row)),
            Read::Row => self.refuse_seen().map(|()| Read::Row),
            read => Ok(read),
        }
    }

    /// The id of the row last read.
    fn id(&self) -> &str {
        self.table.field(self.columns.id.unwrap_or(self.columns.image))
    }

    fn refuse_seen(&mut self) -> Result<()> {
        let Some(mut seen) = self.seen.take() else { return Ok(()) };
        let mut hasher = DefaultHasher::new();
        self.id().hash(&mut hasher);
        let is_new = seen.insert(hasher.finish());
        self.seen = Some(seen);
        let earlier = if is_new { None } else { self.earlier_line()? };
        let Some(earlier) = earlier else { return Ok(()) };
        let id = self.id();
        let message = match self.columns.id {
            Some(_) => {
                format!("the id `{id}` is already on line {earlier}; every row needs an id of its own")
            }
            None => format!(
                "the image `{id}` is already on line {earlier}; its path is its id, so it must be there once: give the table a \
                 column of ids"
            ),
        };
        Err(self.table.refuse_row(Malformed { line: self.table.line(), message }))
    }

    /// The line of the first row before the one last read whose id is the same.
    fn earlier_line(&self) -> Result<Option<u64>> {
        let column = self.columns.id.unwrap_or(self.columns.image);
        let (id, before) = (self.id(), self.table.line());
        let mut table = DelimitedTable::open(self.path())?;
        loop {
            match table.read()? {
                Read::End => return Ok(None),
                Read::Row if table.line() >= before => return Ok(None),
                Read::Row if table.field(column) == id => return Ok(Some(table.line())),
                Read::Row | Read::Malformed(_) => {}
            }
        }
    }

    fn record(&self) -> Record {
        let Columns { id, image, caption } = self.columns;
        let field = |column: usize| self.table.field(column);
        let added = id.is_none().then(|| field(image));
        Record {
            row: self.next_row - 1,
            line: self.table.line(),
            id: self.id().to_owned(),
            image: self.folder.join(field(image)),
            caption: if field(caption).is_empty() {
                self.empty_caption.clone()
            } else {
                field(caption).to_owned()
            },
            fields: added.into_iter().chain(self.table.fields()).map(str::to_owned).collect(),
            malformed: None,
        }
    }

    fn malformed_record(&self, row: Malformed) -> Record {
        // What is wrong may stand on a later line than the one on which the row begins.
        let line = self.table.line();
        let Malformed { line: at, message } = row;
        Record {
            row: self.next_row - 1,
            line,
            // There may be none, and messages name a record by it.
            id: format!("(line {line})"),
            image: PathBuf::new(),
            caption: String::new(),
            fields: vec![String::new(); self.header.len()],
            malformed: Some(if at == line { message } else { format!("line {at}: {message}") }),
        }
    }
}

impl Iterator for Corpus {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read_row() {
            Ok(Read::End) => None,
            Ok(Read::Row) => Some(Ok(self.record())),
            Ok(Read::Malformed(row)) => Some(Ok(self.malformed_record(row))),
            Err(error) => Some(Err(error)),
        }
    }
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
