//! Reads the files of a corpus one after another and turns their rows into records.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ColumnNames, Record,
    columns::{Columns, ID_NAMES},
    delimited::{Malformed, Read},
    files::CorpusFiles,
    format::CorpusFormat,
    reader::{Cursor, Schema, TableReader},
    rows::MAX_ROW_BYTES,
};
use crate::{
    data::{
        image::ImageRef,
        location::{Location, not_local, path_text},
    },
    error::{Error, Result},
    files::folder_of,
    jobs::marker::expect_settled,
};

/// Upper bound on the text of records that are read together, except for the last one.
const MOST_TEXT_BYTES: usize = 64 << 20;

/// Upper bound on the text of a row, with room for an output table, which adds a rating and may make a path longer.
const MOST_ROW_BYTES: usize = MAX_ROW_BYTES - (1 << 16);

/// Reads a corpus of one or several files.
///
/// If the corpus has no column of ids, one is added before the other columns, with the image paths as written.
pub(super) struct CorpusReader {
    /// The path of the corpus, as named by the user.
    path: PathBuf,
    names: ColumnNames,
    files: CorpusFiles,
    table: Box<dyn TableReader>,
    /// Index of the file being read.
    shard: usize,
    file: Arc<Location>,
    /// The location whose folder contains relative image paths: the file, or a name in the folder that is read as a
    /// file.
    base: Location,
    /// The folder of the file relative to that of the corpus, with a trailing `/`; empty if they are the same.
    prefix: String,
    schema: Schema,
    columns: Columns,
    next_row: u64,
    /// The last value of the image column that had to be rewritten.
    image: String,
    /// An error to report after the records that were read before it.
    failed: Option<Error>,
}

impl CorpusReader {
    /// Opens the corpus at `path` in the given format, or else in the format that is detected.
    ///
    /// # Errors
    /// If a file is missing or in another format, there are no rows, or one of the columns is missing.
    pub(super) fn open(path: &Path, names: &ColumnNames, format: Option<CorpusFormat>) -> Result<Self> {
        let files = CorpusFiles::of(path, format)?;
        for file in &files.files {
            expect_settled(file.as_path())?;
        }
        let mut table = files.format.open(&files.files[0], names, None)?;
        if table.header().is_empty() {
            let message = format!(
                "the file is empty; it needs a header with the columns `{}`, `{}` and `{}`, and one row per image",
                names.id, names.image, names.caption
            );
            return Err(Error::Table { path: files.files[0].as_path().to_path_buf(), line: None, message });
        }
        let columns = Columns::find(path, table.header(), &table.names(names))
            .map_err(|message| table.refuse_header(message))?;
        table.expect_text(&columns.all());
        let mut more = table.has_more()?;
        for file in &files.files[1..] {
            more = more || files.format.open(file, names, Some(table.header()))?.has_more()?;
        }
        if !more {
            return Err(files.format.refuse_empty(&files.files[0], files.files.len()));
        }
        let added = columns.id.is_none().then(|| ID_NAMES[0].to_owned());
        let shift = usize::from(added.is_some());
        let schema = Schema {
            columns: added.into_iter().chain(table.header().iter().cloned()).collect(),
            id: columns.id.unwrap_or(0),
            image: columns.image + shift,
            caption: columns.caption + shift,
            ids_are_paths: columns.id.is_none(),
        };
        let file = Arc::new(files.files[0].clone());
        let base = files.format.base(&file);
        let prefix = prefix_of(&base, &files.folder)?;
        files.tell(path);
        Ok(Self {
            path: path.to_path_buf(),
            names: names.clone(),
            files,
            table,
            shard: 0,
            file,
            base,
            prefix,
            schema,
            columns,
            next_row: 0,
            image: String::new(),
            failed: None,
        })
    }

    /// The path of the corpus, as named by the user.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its files.
    pub(super) fn files(&self) -> &CorpusFiles {
        &self.files
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Reads until there are `most` records: fewer at the end of a shard or if their text is long, and none at the end
    /// of the corpus. `records` are records of this shard that were read before. A malformed record is an error or,
    /// with `skip_malformed`, a record with the reason. After an error, nothing more is returned.
    ///
    /// # Errors
    /// If reading fails, or a record is malformed.
    pub(super) fn read(
        &mut self,
        mut records: Vec<Record>,
        most: usize,
        skip_malformed: bool,
    ) -> Result<Vec<Record>> {
        self.failed.take().map_or(Ok(()), Err)?;
        let mut bytes: usize = records.iter().map(text_bytes).sum();
        while records.len() < most && bytes < MOST_TEXT_BYTES {
            match self.record(skip_malformed) {
                Ok(Some(record)) => {
                    bytes += text_bytes(&record);
                    records.push(record);
                }
                Ok(None) if records.is_empty() && self.shard + 1 < self.files.files.len() => {
                    self.open_shard(self.shard + 1)?;
                }
                Ok(None) => break,
                Err(error) if records.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(records)
    }

    /// The position of the next record.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor::new(self.next_row, self.shard, self.table.position())
    }

    /// Seeks to a position returned by [`cursor`](Self::cursor) for this corpus, without reading what comes before.
    ///
    /// # Errors
    /// If the position is invalid because the corpus has changed, or reading fails.
    pub(super) fn seek(&mut self, to: Cursor) -> Result<()> {
        if to.shard() >= self.files.files.len() {
            return Err(self.refuse_schema(format!(
                "the corpus has {} files, fewer than were already read; it has changed since",
                self.files.files.len()
            )));
        }
        if to.shard() != self.shard {
            self.open_shard(to.shard())?;
        }
        self.table.seek(to.at())?;
        self.next_row = to.row();
        self.failed = None;
        Ok(())
    }

    /// An error about the columns, with the location of the header.
    pub(super) fn refuse_schema(&self, message: String) -> Error {
        self.table.refuse_header(message)
    }

    fn open_shard(&mut self, shard: usize) -> Result<()> {
        let file = &self.files.files[shard];
        let header = &self.schema.columns[usize::from(self.schema.ids_are_paths)..];
        self.table = self.files.format.open(file, &self.names, Some(header))?;
        self.table.expect_text(&self.columns.all());
        self.base = self.files.format.base(file);
        self.prefix = prefix_of(&self.base, &self.files.folder)?;
        self.file = Arc::new(file.clone());
        self.shard = shard;
        Ok(())
    }

    /// The next record of this shard; `None` at its end.
    fn record(&mut self, skip_malformed: bool) -> Result<Option<Record>> {
        let Columns { id, image, .. } = self.columns;
        let read = match self.table.read()? {
            Read::Row if self.table.field(id.unwrap_or(image)).is_empty() => {
                let column = &self.table.header()[id.unwrap_or(image)];
                let what = if id.is_some() { "the id" } else { "the image's path" };
                Read::Malformed(Malformed {
                    line: self.table.number(),
                    message: format!("{what} (column `{column}`) is empty"),
                })
            }
            read => read,
        };
        let record = match read {
            Read::End => return Ok(None),
            Read::Row => match self.usable() {
                record if row_bytes(&record) <= MOST_ROW_BYTES => record,
                // A table that contains this row could not be read again.
                _ => {
                    let message = "the text of its columns is longer than 16 MiB".to_owned();
                    let row = Malformed { line: self.table.number(), message };
                    match skip_malformed {
                        true => self.malformed(row),
                        false => return Err(self.table.refuse_row(row)),
                    }
                }
            },
            Read::Malformed(row) if skip_malformed => self.malformed(row),
            Read::Malformed(row) => return Err(self.table.refuse_row(row)),
        };
        self.next_row += 1;
        Ok(Some(record))
    }

    /// The current row as a record.
    fn usable(&mut self) -> Record {
        let Columns { id, image, caption } = self.columns;
        let written = self.table.field(image);
        let moved = !self.prefix.is_empty()
            && !written.is_empty()
            && not_local(written).is_none()
            && Path::new(written).is_relative();
        if moved {
            self.image = format!("{}{written}", self.prefix);
        }
        let table = &self.table;
        let field = |column: usize| if moved && column == image { &self.image } else { table.field(column) };
        let added = id.is_none().then(|| field(image));
        let columns = (0..table.header().len()).map(field);
        Record {
            row: self.next_row,
            origin: table.origin(&self.file),
            id: field(id.unwrap_or(image)).to_owned(),
            image: ImageRef::from(self.base.sibling(written)),
            caption: field(caption).to_owned(),
            fields: added.into_iter().chain(columns).map(str::to_owned).collect(),
            malformed: None,
        }
    }

    fn malformed(&self, row: Malformed) -> Record {
        // The error may be on a later line than the start of the row.
        let (number, unit) = (self.table.number(), self.table.unit());
        let Malformed { line: at, message } = row;
        Record {
            row: self.next_row,
            origin: self.table.origin(&self.file),
            // The row may have no id, and messages identify a record by it.
            id: format!("({unit} {number})"),
            image: ImageRef::default(),
            caption: String::new(),
            fields: vec![String::new(); self.schema.columns.len()],
            malformed: Some(if at == number { message } else { format!("{unit} {at}: {message}") }),
        }
    }
}

/// Length of the columns' text of a record.
fn row_bytes(record: &Record) -> usize {
    record.fields.iter().map(String::len).sum()
}

/// Length of the text of a record.
fn text_bytes(record: &Record) -> usize {
    record.caption.len() + record.fields.iter().map(String::len).sum::<usize>()
}

/// The prefix that makes relative paths in a file start at `folder`.
fn prefix_of(file: &Location, folder: &Path) -> Result<String> {
    let own = folder_of(file.as_path());
    match own.strip_prefix(folder) {
        Ok(below) if !below.as_os_str().is_empty() => Ok(format!("{}/", path_text(below.to_path_buf())?)),
        _ => Ok(String::new()),
    }
}
