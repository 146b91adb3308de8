//! Parquet files as tables: their columns, and column values in batches, as text or as numbers.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::DataType,
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    schema::types::ColumnDescriptor,
};

use super::{RatingColumns, RatingsHeader, parquet_file::parquet_error, parquet_text::Kind, table_error};
use crate::{
    error::{Error, Result},
    select::ids::Ids,
};

/// Rows decoded per batch.
pub(super) const BATCH_ROWS: usize = 1 << 13;

/// Reads the values of a column chunk in batches.
pub(super) struct Column {
    reader: ColumnReader,
    kind: Kind,
    max_level: i16,
    levels: Vec<i16>,
}

impl Column {
    /// Reads `rows` values and passes each to `take`, `None` for a null.
    fn values<T: DataType>(
        reader: &mut ColumnReaderImpl<T>,
        max_level: i16,
        levels: &mut Vec<i16>,
        rows: usize,
        mut take: impl FnMut(Option<&T::T>),
    ) -> std::result::Result<(), ParquetError> {
        let mut values = Vec::with_capacity(rows);
        levels.clear();
        let mut done = 0;
        while done < rows {
            let (read, _, _) = reader.read_records(rows - done, Some(levels), None, &mut values)?;
            if read == 0 {
                return Err(ParquetError::EOF("a column ends before its row group does".to_owned()));
            }
            done += read;
        }
        if max_level == 0 {
            values.iter().for_each(|value| take(Some(value)));
        } else {
            let mut values = values.iter();
            levels.iter().for_each(|&level| take(if level == max_level { values.next() } else { None }));
        }
        Ok(())
    }

    /// Appends `rows` values to `texts`, nulls as empty text. The inner `Err(row)` is the index of a value that is
    /// not UTF-8.
    pub(super) fn texts(
        &mut self,
        rows: usize,
        texts: &mut Ids,
    ) -> std::result::Result<std::result::Result<(), usize>, ParquetError> {
        use std::fmt::Write as _;
        let (level, levels, kind) = (self.max_level, &mut self.levels, self.kind);
        let mut scratch = String::new();
        let mut unreadable = false;
        // Formats each value with `$write`.
        macro_rules! written {
            ($reader:expr, |$text:ident, $value:ident| $write:expr) => {
                Self::values($reader, level, levels, rows, |value| {
                    scratch.clear();
                    if let Some($value) = value {
                        let $text = &mut scratch;
                        unreadable |= $write.is_err();
                    }
                    texts.push(&scratch);
                })?
            };
        }
        let begin = texts.len();
        let mut not_text = None;
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) if matches!(kind, Kind::Text | Kind::Bytes) => {
                Self::values(reader, level, levels, rows, |value| {
                    let text = value.map_or(Ok(""), |value| std::str::from_utf8(value.data()));
                    if text.is_err() && not_text.is_none() {
                        not_text = Some(texts.len() - begin);
                    }
                    texts.push(text.unwrap_or(""));
                })?;
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                written!(reader, |text, value| kind.write_bytes(text, value.data()));
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                written!(reader, |text, value| kind.write_bytes(text, value.data()));
            }
            ColumnReader::BoolColumnReader(reader) => written!(reader, |text, value| write!(text, "{value}")),
            ColumnReader::Int32ColumnReader(reader) if kind == Kind::Unsigned => {
                written!(reader, |text, value| write!(text, "{}", value.cast_unsigned()));
            }
            ColumnReader::Int32ColumnReader(reader) => {
                written!(reader, |text, value| kind.write_integer(text, i64::from(*value)));
            }
            ColumnReader::Int64ColumnReader(reader) if kind == Kind::Unsigned => {
                written!(reader, |text, value| write!(text, "{}", value.cast_unsigned()));
            }
            ColumnReader::Int64ColumnReader(reader) => {
                written!(reader, |text, value| kind.write_integer(text, *value));
            }
            ColumnReader::Int96ColumnReader(reader) => {
                written!(reader, |text, value| Kind::write_int96(text, value.data()));
            }
            ColumnReader::FloatColumnReader(reader) => {
                written!(reader, |text, value| write!(text, "{value}"))
            }
            ColumnReader::DoubleColumnReader(reader) => {
                written!(reader, |text, value| write!(text, "{value}"));
            }
        }
        if unreadable {
            return Err(ParquetError::NYI("a value that does not have its column's type".to_owned()));
        }
        Ok(not_text.map_or(Ok(()), Err))
    }

    /// Appends `rows` ratings, nulls as NaN.
    pub(super) fn ratings(
        &mut self,
        rows: usize,
        ratings: &mut Vec<f64>,
    ) -> std::result::Result<(), ParquetError> {
        let (level, levels) = (self.max_level, &mut self.levels);
        match &mut self.reader {
            ColumnReader::FloatColumnReader(reader) => Self::values(reader, level, levels, rows, |value| {
                ratings.push(value.map_or(f64::NAN, |&value| f64::from(value)));
            }),
            ColumnReader::DoubleColumnReader(reader) => Self::values(reader, level, levels, rows, |value| {
                ratings.push(value.copied().unwrap_or(f64::NAN));
            }),
            ColumnReader::Int32ColumnReader(reader) => Self::values(reader, level, levels, rows, |value| {
                ratings.push(value.map_or(f64::NAN, |&value| f64::from(value)));
            }),
            #[expect(clippy::cast_precision_loss, reason = "a rating is a floating-point number")]
            ColumnReader::Int64ColumnReader(reader) => Self::values(reader, level, levels, rows, |value| {
                ratings.push(value.map_or(f64::NAN, |&value| value as f64));
            }),
            _ => Err(ParquetError::NYI("a rating that is not a number".to_owned())),
        }
    }
}

/// A carried column.
struct Carried {
    /// Its index among the file's leaf columns.
    leaf: usize,
    kind: Kind,
}

/// An open file and its columns.
pub(super) struct Source {
    pub(super) path: PathBuf,
    file: SerializedFileReader<File>,
    pub(super) header: RatingsHeader,
    /// One per column of the header.
    columns: Vec<Carried>,
    /// Names of the columns that are not text and not carried.
    pub(super) left_out: Vec<String>,
}

impl Source {
    /// Opens a file. `carry` is whether columns besides the id and the rating are needed: binary columns are then
    /// scanned, as only text is carried.
    pub(super) fn open(path: &Path, names: &RatingColumns, carry: bool) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let file = SerializedFileReader::new(file).map_err(|error| parquet_error("read", path, error))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let (mut carried, mut columns, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (leaf, column) in schema.columns().iter().enumerate() {
            let name = column.path().parts()[0].clone();
            // The id and the rating are checked below, by name.
            let needed = column.path().parts().len() == 1 && (name == names.id || name == names.rating);
            match Kind::of(column) {
                Some(Kind::Bytes) if carry && !needed && !is_text(path, &file, leaf)? => left_out.push(name),
                Some(kind) => {
                    columns.push(name);
                    carried.push(Carried { leaf, kind });
                }
                None if needed => return Err(unreadable(path, column, name == names.rating)),
                None => left_out.push(name),
            }
        }
        left_out.dedup();
        let header = RatingsHeader::located(path, columns, names)?;
        let source = Self { path: path.to_path_buf(), file, header, columns: carried, left_out };
        let (id, rating) = (source.header.id_index(), source.header.rating_index());
        if !source.columns[id].kind.is_id() {
            return Err(unreadable(path, &schema.column(source.columns[id].leaf), false));
        }
        if !source.columns[rating].kind.is_rating() {
            return Err(unreadable(path, &schema.column(source.columns[rating].leaf), true));
        }
        Ok(source)
    }

    /// Checks that another file has the same columns as this one.
    pub(super) fn expect_columns(&self, other: &Self) -> Result<()> {
        let refuse = |message: String| {
            let first = self.path.file_name().unwrap_or_default().display();
            Err(table_error(
                &other.path,
                None,
                format!("its columns differ from those of {first}: {message}"),
            ))
        };
        let (ours, theirs) = (self.header.columns(), other.header.columns());
        if let Some(name) = ours.iter().find(|name| !theirs.contains(name)) {
            return refuse(format!("`{name}` is missing"));
        }
        if let Some(name) = theirs.iter().find(|name| !ours.contains(name)) {
            return refuse(format!("`{name}` is added"));
        }
        if ours != theirs {
            return refuse("they are in a different order".to_owned());
        }
        for ((name, our), their) in ours.iter().zip(&self.columns).zip(&other.columns) {
            // A file with only nulls in a column may not record the column's type.
            if our.kind != their.kind && ![our.kind, their.kind].contains(&Kind::Null) {
                return refuse(format!("`{name}` has a different type"));
            }
        }
        if self.left_out != other.left_out {
            return refuse("their lists or structs differ".to_owned());
        }
        Ok(())
    }

    pub(super) fn groups(&self) -> usize {
        self.file.num_row_groups()
    }

    pub(super) fn group_rows(&self, group: usize) -> Result<usize> {
        usize::try_from(self.file.metadata().row_group(group).num_rows())
            .map_err(|_| table_error(&self.path, None, "a row group claims a negative number of rows"))
    }

    /// The values of a header column in a row group.
    pub(super) fn column(&self, group: usize, index: usize) -> Result<Column> {
        let Carried { leaf, kind } = self.columns[index];
        column(&self.file, group, leaf, kind).map_err(|error| parquet_error("read", &self.path, error))
    }

    pub(super) fn not_text(&self, row: u64, column: usize) -> Error {
        let name = &self.header.columns()[column];
        table_error(&self.path, None, format!("the column `{name}` is not UTF-8 in row {}", row + 1))
    }
}

fn column(
    file: &SerializedFileReader<File>,
    group: usize,
    leaf: usize,
    kind: Kind,
) -> std::result::Result<Column, ParquetError> {
    let descriptor = file.metadata().file_metadata().schema_descr().column(leaf);
    let reader = file.get_row_group(group)?.get_column_reader(leaf)?;
    Ok(Column { reader, kind, max_level: descriptor.max_def_level(), levels: Vec::new() })
}

/// Whether all values of a binary column are UTF-8.
fn is_text(path: &Path, file: &SerializedFileReader<File>, leaf: usize) -> Result<bool> {
    let failed = |error| parquet_error("read", path, error);
    let mut texts = Ids::default();
    for group in 0..file.num_row_groups() {
        let mut column = column(file, group, leaf, Kind::Bytes).map_err(failed)?;
        let mut left = usize::try_from(file.metadata().row_group(group).num_rows()).unwrap_or(0);
        while left > 0 {
            let rows = left.min(BATCH_ROWS);
            texts.clear();
            if column.texts(rows, &mut texts).map_err(failed)?.is_err() {
                return Ok(false);
            }
            left -= rows;
        }
    }
    Ok(true)
}

/// The error for an id or a rating whose type cannot be read.
fn unreadable(path: &Path, column: &ColumnDescriptor, rating: bool) -> Error {
    let expected = if rating { "DOUBLE or FLOAT" } else { "UTF8 text" };
    let name = column.path().string();
    let kind = describe(column);
    table_error(
        path,
        None,
        format!("the column `{name}` has an unsupported type ({kind}); store it as {expected}"),
    )
}

fn describe(column: &ColumnDescriptor) -> String {
    if column.max_rep_level() > 0 || column.path().parts().len() > 1 {
        return "nested or repeated".to_owned();
    }
    match column.logical_type_ref() {
        Some(logical) => format!("{} {logical:?}", column.physical_type()),
        None => format!("{} {}", column.physical_type(), column.converted_type()),
    }
}
