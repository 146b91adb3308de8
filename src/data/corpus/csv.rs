//! A corpus in one delimited text file whose rows refer to images.

use std::{path::Path, sync::Arc};

use super::{
    ColumnNames, Record,
    columns::{Columns, ID_NAMES},
    delimited::{DelimitedTable, Malformed, Read},
    reader::{CorpusReader, Cursor, Origin, Schema},
};
use crate::{
    data::{image::ImageRef, location::Location},
    error::{Error, Result},
    jobs::marker::expect_settled,
};

/// Reads a corpus from delimited text.
///
/// If the table has no column of ids, the corpus gets one in front of the table's columns, with the image paths as
/// written.
pub(super) struct CsvReader {
    table: DelimitedTable,
    file: Arc<Location>,
    shards: [Location; 1],
    schema: Schema,
    columns: Columns,
    next_row: u64,
    /// An error found after records that are still to be returned.
    failed: Option<Error>,
}

impl CsvReader {
    /// Opens the table at `path` and reads its header. A UTF-8 byte order mark is accepted.
    ///
    /// # Errors
    /// If the file is missing, empty, not delimited UTF-8 text, has no data rows, or lacks one of the columns.
    pub(super) fn open(path: &Path, names: &ColumnNames) -> Result<Self> {
        expect_settled(path)?;
        let mut table = DelimitedTable::open(path)?;
        if table.header().is_empty() {
            return Err(table.refuse(format!(
                "the file is empty; it needs a header with the columns `{}`, `{}` and `{}`, and one row per image",
                names.id, names.image, names.caption
            )));
        }
        let columns =
            Columns::find(path, table.header(), names).map_err(|message| table.refuse_header(message))?;
        if !table.has_more()? {
            return Err(table.refuse("the table has a header but no rows"));
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
        let file = table.location().clone();
        let shards = [file.clone()];
        Ok(Self { table, file: Arc::new(file), shards, schema, columns, next_row: 0, failed: None })
    }

    /// The next record; `None` at the end.
    fn record(&mut self, skip_malformed: bool) -> Result<Option<Record>> {
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
        let record = match read {
            Read::End => return Ok(None),
            Read::Row => self.usable(),
            Read::Malformed(row) if skip_malformed => self.malformed(row),
            Read::Malformed(row) => return Err(self.table.refuse_row(row)),
        };
        self.next_row += 1;
        Ok(Some(record))
    }

    /// The id of the current row.
    fn id(&self) -> &str {
        self.table.field(self.columns.id.unwrap_or(self.columns.image))
    }

    /// The current row as a record.
    fn usable(&self) -> Record {
        let Columns { id, image, caption } = self.columns;
        let field = |column: usize| self.table.field(column);
        let added = id.is_none().then(|| field(image));
        Record {
            row: self.next_row,
            origin: Origin::new(&self.file, self.table.line()),
            id: self.id().to_owned(),
            image: ImageRef::from(self.file.beside(field(image))),
            caption: field(caption).to_owned(),
            fields: added.into_iter().chain(self.table.fields()).map(str::to_owned).collect(),
            malformed: None,
        }
    }

    fn malformed(&self, row: Malformed) -> Record {
        // The error may be on a later line than the start of the row.
        let line = self.table.line();
        let Malformed { line: at, message } = row;
        Record {
            row: self.next_row,
            origin: Origin::new(&self.file, line),
            // The row may have no id, and messages identify a record by it.
            id: format!("(line {line})"),
            image: ImageRef::default(),
            caption: String::new(),
            fields: vec![String::new(); self.schema.columns.len()],
            malformed: Some(if at == line { message } else { format!("line {at}: {message}") }),
        }
    }
}

impl CorpusReader for CsvReader {
    fn location(&self) -> &Location {
        &self.file
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn shards(&self) -> &[Location] {
        &self.shards
    }

    fn read(&mut self, most: usize, skip_malformed: bool) -> Result<Vec<Record>> {
        self.failed.take().map_or(Ok(()), Err)?;
        let mut records = Vec::new();
        while records.len() < most {
            match self.record(skip_malformed) {
                Ok(Some(record)) => records.push(record),
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

    fn cursor(&self) -> Cursor {
        let (line, byte) = self.table.next_position();
        Cursor::new(self.next_row, 0, [line, byte])
    }

    fn seek(&mut self, to: Cursor) -> Result<()> {
        let (bytes, [line, byte]) = (self.table.bytes_total(), to.at());
        if byte > bytes || to.shard() > 0 {
            return Err(self.table.refuse(format!(
                "the file has {bytes} bytes, fewer than the {byte} that were already read; it has changed since"
            )));
        }
        self.table.seek(line, byte)?;
        self.next_row = to.row();
        self.failed = None;
        Ok(())
    }

    fn refuse_schema(&self, message: String) -> Error {
        self.table.refuse_header(message)
    }
}
