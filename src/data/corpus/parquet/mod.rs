//! A corpus in Parquet: image paths, or embedded images.
//!
//! Columns within structs are named `STRUCT.FIELD`; a struct with a field `bytes`, as Hugging Face `datasets` writes
//! images, is a column of images under its own name. Lists are dropped, and so are bytes other than the images. Images
//! are not read here: an image's path is `FILE.parquet/COLUMN/ROW` (see
//! [`store::container`](crate::data::store::container)).

mod column;
mod value_type;

use std::{collections::HashMap, fs::File, io::Read as _, path::Path, sync::Arc};

use parquet::{
    basic::Type as PhysicalType,
    errors::ParquetError,
    file::{
        metadata::RowGroupMetaData,
        reader::{FileReader, SerializedFileReader},
    },
};

pub(crate) use column::{Column, column};
pub(crate) use value_type::ValueType;

use super::{
    ColumnNames,
    columns::{Columns, IMAGE_NAMES, list_columns, warn_once},
    delimited::{Malformed, Read, refuse_row},
    reader::{Origin, TableReader},
};
use crate::{
    data::{
        image::decode::FileFormat,
        location::Location,
        store::{Kind, container::escaped, open_parquet},
    },
    error::{Error, Result},
};

/// Rows decoded per batch.
const BATCH_ROWS: usize = 256;
/// Number of rows from which bytes are distinguished from text.
const SNIFFED_ROWS: usize = 256;

/// An error about a Parquet file.
pub(crate) fn parquet_error(action: &'static str, path: &Path, error: ParquetError) -> Error {
    let refuse = |message: String| Error::Table { path: path.to_path_buf(), line: None, message };
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::Io { action, path: path.to_path_buf(), source: *source },
            Err(source) => refuse(format!("cannot {action} this Parquet file: {source}")),
        },
        error => {
            refuse(format!("cannot {action} this Parquet file: {error}; it may be truncated; copy it again"))
        }
    }
}

/// A column of the corpus.
#[derive(Clone, Debug)]
struct Leaf {
    name: String,
    /// Its index among the file's leaf columns.
    leaf: usize,
    kind: ValueType,
    /// The name of its leaf column, if it contains images.
    images: Option<String>,
    /// The leaf column of paths that stand for missing images.
    paths: Option<usize>,
}

/// Reads rows of a Parquet file.
pub(super) struct ParquetTable {
    at: Location,
    file: SerializedFileReader<File>,
    columns: Vec<Leaf>,
    header: Vec<String>,
    /// The index of the next row group, and the readers of the current one's columns; columns of images have none.
    group: usize,
    readers: Vec<Option<Column>>,
    left_in_group: usize,
    /// The decoded rows, column by column.
    texts: Vec<Vec<String>>,
    batch: usize,
    current: usize,
    /// For each row of the batch that has a value that is not UTF-8, the column of that value.
    not_text: HashMap<usize, usize>,
    /// Number of rows read.
    row: u64,
}

impl ParquetTable {
    /// Opens a file and finds its columns.
    ///
    /// # Errors
    /// If it cannot be read, or is not a Parquet file.
    pub(super) fn open(at: &Location, names: &ColumnNames, first: bool) -> Result<Self> {
        let path = at.as_path();
        let refuse = |message: &str| Error::Table {
            path: path.to_path_buf(),
            line: None,
            message: message.to_owned(),
        };
        if !matches!(at.kind().map_err(Error::io("read", path))?, Kind::File(_)) {
            return Err(refuse("is not a regular file"));
        }
        let local = at.local().ok_or_else(|| refuse("is not a local file; copy it to this machine first"))?;
        let mut file = File::open(local).map_err(Error::io("read", path))?;
        let mut magic = [0; 4];
        match file.read_exact(&mut magic).map(|()| &magic) {
            Ok(b"PAR1") => {}
            Ok(b"PARE") => return Err(refuse("is an encrypted Parquet file; decrypt it first")),
            _ => {
                return Err(refuse(
                    "is not a Parquet file; leave out --format, or name the format that it has",
                ));
            }
        }
        let file = open_parquet(local).map_err(|error| parquet_error("read", path, error))?;
        let mut table = Self {
            at: at.clone(),
            file,
            columns: Vec::new(),
            header: Vec::new(),
            group: 0,
            readers: Vec::new(),
            left_in_group: 0,
            texts: Vec::new(),
            batch: 0,
            current: 0,
            not_text: HashMap::new(),
            row: 0,
        };
        let left_out = table.find_columns(names).map_err(|error| parquet_error("read", path, error))?;
        if first && !left_out.is_empty() {
            warn_once(format!("{at}: skipping the columns of lists and bytes: {}", list_columns(&left_out)));
        }
        table.header = table.columns.iter().map(|column| column.name.clone()).collect();
        table.texts = vec![Vec::new(); table.columns.len()];
        Ok(table)
    }

    /// Finds the columns; returns the names of those that are dropped.
    fn find_columns(&mut self, names: &ColumnNames) -> Result<Vec<String>, ParquetError> {
        let schema = self.file.metadata().file_metadata().schema_descr_ptr();
        let mut left_out = Vec::new();
        for (leaf, column) in schema.columns().iter().enumerate() {
            let (path, parts) = (column.path().string(), column.path().parts());
            let is_bytes = column.physical_type() == PhysicalType::BYTE_ARRAY;
            let in_struct = parts.len() > 1 && parts.last().is_some_and(|part| part == "bytes");
            match ValueType::of_leaf(column) {
                Some(kind) if in_struct && is_bytes => {
                    let group = parts[..parts.len() - 1].join(".");
                    let paths = format!("{group}.path");
                    let paths = schema.columns().iter().position(|other| {
                        other.path().string() == paths && ValueType::of_leaf(other).is_some()
                    });
                    self.columns.push(Leaf { name: group, leaf, kind, images: Some(path), paths });
                }
                Some(kind) => {
                    self.columns.push(Leaf { name: path, leaf, kind, images: None, paths: None });
                }
                None => left_out.push(path),
            }
        }
        // A column of bytes contains images, or text that is not declared as such.
        let header: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let chosen = Columns::locate(&header, &self.names(names)).ok().map(|(chosen, _)| chosen);
        if let Some(image) = chosen.map(|chosen| chosen.image)
            && self.columns[image].kind == ValueType::Bytes
            && self.columns[image].images.is_none()
            && !self.is_text(image)?
        {
            self.columns[image].images = Some(self.columns[image].name.clone());
        }
        let kept = |index: usize| chosen.is_none_or(|chosen| chosen.all().contains(&index));
        let columns = std::mem::take(&mut self.columns).into_iter().enumerate();
        for (index, column) in columns {
            let is_bytes = column.kind == ValueType::Bytes || column.images.is_some();
            if is_bytes && !kept(index) { left_out.push(column.name) } else { self.columns.push(column) }
        }
        left_out.dedup();
        Ok(left_out)
    }

    /// Whether the first values of a column of bytes are text and none of them is an image.
    fn is_text(&self, index: usize) -> Result<bool, ParquetError> {
        let Leaf { leaf, kind, .. } = self.columns[index];
        let mut has_text = false;
        for group in 0..self.file.num_row_groups() {
            let rows = usize::try_from(self.file.metadata().row_group(group).num_rows()).unwrap_or(0);
            let mut values = column(&self.file, group, leaf, kind)?;
            for _ in 0..rows.min(SNIFFED_ROWS) {
                let mut start = None;
                let is_text = values.texts(1, |text| start = Some(text.to_owned()))?.is_ok();
                match start {
                    _ if !is_text => return Ok(false),
                    Some(text) if FileFormat::of(text.as_bytes()).is_ok() => return Ok(false),
                    Some(text) => has_text |= !text.is_empty(),
                    None => {}
                }
            }
            if has_text {
                break;
            }
        }
        Ok(has_text)
    }

    /// Decodes the next batch; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        while self.left_in_group == 0 {
            if self.group == self.file.num_row_groups() {
                return Ok(false);
            }
            self.open_group(self.group)?;
        }
        let rows = self.left_in_group.min(BATCH_ROWS);
        self.not_text.clear();
        for (index, values) in self.readers.iter_mut().enumerate() {
            let texts = &mut self.texts[index];
            texts.clear();
            let Some(values) = values else { continue };
            let read = values.texts(rows, |text| texts.push(text.to_owned()));
            if let Err(rows) = read.map_err(|error| parquet_error("read", self.at.as_path(), error))? {
                self.not_text.extend(rows.into_iter().map(|row| (row, index)));
            }
        }
        self.left_in_group -= rows;
        (self.batch, self.current) = (rows, 0);
        Ok(true)
    }

    /// Opens the readers of a row group.
    fn open_group(&mut self, group: usize) -> Result<()> {
        let about = self.file.metadata().row_group(group);
        self.left_in_group = usize::try_from(about.num_rows())
            .map_err(|_| self.refuse_header("a row group claims a negative number of rows".to_owned()))?;
        let open = |found: &Leaf| match found.images {
            Some(_) if !is_null(about, found.leaf) => Ok(None),
            Some(_) => found.paths.map(|leaf| column(&self.file, group, leaf, ValueType::Text)).transpose(),
            None => column(&self.file, group, found.leaf, found.kind).map(Some),
        };
        let readers = self.columns.iter().map(open).collect::<Result<_, _>>();
        self.readers = readers.map_err(|error| parquet_error("read", self.at.as_path(), error))?;
        self.group = group + 1;
        Ok(())
    }

    /// Sets the path of the image in the current row.
    fn locate_images(&mut self) {
        let file = self.at.name();
        for (index, column) in self.columns.iter().enumerate() {
            if let (Some(images), None) = (&column.images, &self.readers[index]) {
                let images = escaped(images.as_bytes()).replace('/', "%2F");
                let texts = &mut self.texts[index];
                texts.resize(self.batch, String::new());
                texts[self.current] = format!("{file}/{images}/{}", self.row);
            }
        }
    }
}

/// Whether all values of a column chunk are null.
fn is_null(group: &RowGroupMetaData, leaf: usize) -> bool {
    let nulls = group.column(leaf).statistics().and_then(|statistics| statistics.null_count_opt());
    nulls.is_some_and(|nulls| i64::try_from(nulls).is_ok_and(|nulls| nulls == group.num_rows()))
}

impl TableReader for ParquetTable {
    fn header(&self) -> &[String] {
        &self.header
    }

    /// Images in the file itself take precedence over paths.
    fn names(&self, names: &ColumnNames) -> ColumnNames {
        let is_usual = |column: &&Leaf| {
            let name = &column.name;
            column.images.is_some() && IMAGE_NAMES.iter().any(|usual| usual.eq_ignore_ascii_case(name))
        };
        let exact = self.columns.iter().any(|column| column.name == names.image);
        match self.columns.iter().find(is_usual) {
            Some(column) if !exact && names.image == IMAGE_NAMES[0] => {
                ColumnNames { image: column.name.clone(), ..names.clone() }
            }
            _ => names.clone(),
        }
    }

    fn read(&mut self) -> Result<Read> {
        self.current += 1;
        if self.current >= self.batch && !self.fill()? {
            return Ok(Read::End);
        }
        self.row += 1;
        self.locate_images();
        Ok(match self.not_text.get(&self.current) {
            None => Read::Row,
            Some(&column) => Read::Malformed(Malformed {
                line: self.row,
                message: format!("the value of the column `{}` is not UTF-8", self.header[column]),
            }),
        })
    }

    fn field(&self, column: usize) -> &str {
        self.texts.get(column).and_then(|texts| texts.get(self.current)).map_or("", String::as_str)
    }

    fn unit(&self) -> &'static str {
        "row"
    }

    fn number(&self) -> u64 {
        self.row
    }

    fn origin(&self, file: &Arc<Location>) -> Origin {
        Origin::row(file, self.row)
    }

    fn position(&self) -> [u64; 2] {
        [self.row, 0]
    }

    fn seek(&mut self, to: [u64; 2]) -> Result<()> {
        let [row, _] = to;
        if row == self.row && self.batch > 0 {
            return Ok(());
        }
        let mut before = 0;
        (self.batch, self.current, self.left_in_group, self.group) = (0, 0, 0, 0);
        for group in 0..self.file.num_row_groups() {
            let rows = u64::try_from(self.file.metadata().row_group(group).num_rows()).unwrap_or(0);
            if row < before + rows {
                self.open_group(group)?;
                let skipped = usize::try_from(row - before).unwrap_or(usize::MAX);
                for values in self.readers.iter_mut().flatten() {
                    values.skip(skipped).map_err(|error| parquet_error("read", self.at.as_path(), error))?;
                }
                self.left_in_group -= skipped;
                self.row = row;
                return Ok(());
            }
            before += rows;
        }
        if row > before {
            return Err(self.refuse_header(format!(
                "the file has {before} rows, fewer than the {row} that were already read; it has changed since"
            )));
        }
        self.group = self.file.num_row_groups();
        self.row = row;
        Ok(())
    }

    fn has_more(&mut self) -> Result<bool> {
        let rows = self.file.metadata().file_metadata().num_rows();
        Ok(u64::try_from(rows).unwrap_or(0) > self.row)
    }

    fn refuse_header(&self, message: String) -> Error {
        Error::Table { path: self.at.as_path().to_path_buf(), line: None, message }
    }

    fn refuse_row(&self, row: Malformed) -> Error {
        refuse_row(self.at.as_path(), None, format!("row {}: {}", row.line, row.message))
    }
}
