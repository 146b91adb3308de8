//! Values of Parquet columns in batches, as text or as numbers.

use std::fs::File;

use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::DataType,
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
};

use super::value_type::ValueType;

/// Reads the values of a column chunk in batches.
pub(crate) struct Column {
    reader: ColumnReader,
    kind: ValueType,
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

    /// Passes `rows` values to `push`, nulls as empty text. Values that are not UTF-8 are passed as empty text, too;
    /// their indices are the inner `Err(rows)`.
    pub(crate) fn texts(
        &mut self,
        rows: usize,
        mut push: impl FnMut(&str),
    ) -> std::result::Result<std::result::Result<(), Vec<usize>>, ParquetError> {
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
                    push(&scratch);
                })?
            };
        }
        let (mut at, mut not_text) = (0, Vec::new());
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader)
                if matches!(kind, ValueType::Text | ValueType::Bytes) =>
            {
                Self::values(reader, level, levels, rows, |value| {
                    let text = value.map_or(Ok(""), |value| std::str::from_utf8(value.data()));
                    if text.is_err() {
                        not_text.push(at);
                    }
                    push(text.unwrap_or(""));
                    at += 1;
                })?;
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                written!(reader, |text, value| kind.write_bytes(text, value.data()));
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                written!(reader, |text, value| kind.write_bytes(text, value.data()));
            }
            ColumnReader::BoolColumnReader(reader) => written!(reader, |text, value| write!(text, "{value}")),
            ColumnReader::Int32ColumnReader(reader) if kind == ValueType::Unsigned => {
                written!(reader, |text, value| write!(text, "{}", value.cast_unsigned()));
            }
            ColumnReader::Int32ColumnReader(reader) => {
                written!(reader, |text, value| kind.write_integer(text, i64::from(*value)));
            }
            ColumnReader::Int64ColumnReader(reader) if kind == ValueType::Unsigned => {
                written!(reader, |text, value| write!(text, "{}", value.cast_unsigned()));
            }
            ColumnReader::Int64ColumnReader(reader) => {
                written!(reader, |text, value| kind.write_integer(text, *value));
            }
            ColumnReader::Int96ColumnReader(reader) => {
                written!(reader, |text, value| ValueType::write_int96(text, value.data()));
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
        Ok(if not_text.is_empty() { Ok(()) } else { Err(not_text) })
    }

    /// Skips `rows` values; pages that are skipped as a whole are not decompressed.
    pub(crate) fn skip(&mut self, rows: usize) -> std::result::Result<(), ParquetError> {
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::BoolColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::Int32ColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::Int64ColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::Int96ColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::FloatColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::DoubleColumnReader(reader) => reader.skip_records(rows),
        }
        .map(drop)
    }

    /// Appends `rows` ratings, nulls as NaN.
    pub(crate) fn ratings(
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

/// The values of a leaf column in a row group.
pub(crate) fn column(
    file: &SerializedFileReader<File>,
    group: usize,
    leaf: usize,
    kind: ValueType,
) -> std::result::Result<Column, ParquetError> {
    let descriptor = file.metadata().file_metadata().schema_descr().column(leaf);
    let reader = file.get_row_group(group)?.get_column_reader(leaf)?;
    Ok(Column { reader, kind, max_level: descriptor.max_def_level(), levels: Vec::new() })
}
