//! Ratings tables as Parquet, through the column readers and writers of the `parquet` crate (no Arrow).

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::{Compression, ConvertedType, LogicalType, Repetition, Type as PhysicalType},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnDescriptor, ColumnPath, Type},
};
use rayon::prelude::*;

use super::{ColumnNames, RatingRow, RatingsHeader, RatingsTable, table_error};
use crate::{
    error::{Error, Result},
    files::WholeFile,
    select::ids::Ids,
};

/// A row group is written when it holds this many rows or [`GROUP_BYTES`] of text.
pub(super) const GROUP_ROWS: usize = 1 << 17;
pub(super) const GROUP_BYTES: usize = 32 << 20;
/// Rows decoded at a time when reading.
const BATCH_ROWS: usize = 1 << 13;

pub(super) fn parquet_error(action: &'static str, path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::Io { action, path: path.to_path_buf(), source: *source },
            Err(source) => table_error(path, None, format!("cannot {action} this Parquet file: {source}.")),
        },
        error => table_error(path, None, format!("cannot {action} this Parquet file: {error}.")),
    }
}

/// Gathers rows into row groups and writes them.
pub(super) struct ParquetWriter {
    path: PathBuf,
    writer: SerializedFileWriter<WholeFile>,
    rating: usize,
    ratings: Vec<f64>,
    /// One vector a column; the rating's stays empty.
    texts: Vec<Vec<ByteArray>>,
    bytes: usize,
}

impl ParquetWriter {
    pub(super) fn create(path: &Path, header: &RatingsHeader) -> Result<Self> {
        let fields = header.columns().iter().enumerate().map(|(index, name)| {
            let column = if index == header.rating_index() {
                Type::primitive_type_builder(name, PhysicalType::DOUBLE)
            } else {
                Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
                    .with_logical_type(Some(LogicalType::String))
            };
            column.with_repetition(Repetition::REQUIRED).build().map(Arc::new)
        });
        let schema = fields
            .collect::<std::result::Result<Vec<_>, _>>()
            .and_then(|fields| Type::group_type_builder("ratings").with_fields(fields).build())
            .map_err(|error| parquet_error("write", path, error))?;
        let id = ColumnPath::new(vec![header.columns()[header.id_index()].clone()]);
        let rating = ColumnPath::new(vec![header.columns()[header.rating_index()].clone()]);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::None)
            // Hardly any id or rating occurs twice: a dictionary would only cost time.
            .set_column_dictionary_enabled(id, false)
            .set_column_dictionary_enabled(rating, false)
            .build();
        let writer =
            SerializedFileWriter::new(WholeFile::create(path)?, Arc::new(schema), Arc::new(properties))
                .map_err(|error| parquet_error("write", path, error))?;
        Ok(Self {
            path: path.to_path_buf(),
            writer,
            rating: header.rating_index(),
            ratings: Vec::new(),
            texts: vec![Vec::new(); header.columns().len()],
            bytes: 0,
        })
    }

    pub(super) fn write(&mut self, header: &RatingsHeader, row: &RatingRow) -> Result<()> {
        self.ratings.push(row.rating);
        let mut carried = row.carried.iter();
        for (index, column) in self.texts.iter_mut().enumerate() {
            if index == self.rating {
                continue;
            }
            let text = if index == header.id_index() { &row.id } else { carried.next().unwrap_or(&row.id) };
            self.bytes += text.len();
            column.push(ByteArray::from(text.as_str()));
        }
        if self.ratings.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            Self::write_group(&mut self.writer, self.rating, &mut self.ratings, &mut self.texts)
                .map_err(|error| parquet_error("write", &self.path, error))?;
            self.bytes = 0;
        }
        Ok(())
    }

    /// Writes the gathered rows as a row group and empties the buffers.
    fn write_group(
        writer: &mut SerializedFileWriter<WholeFile>,
        rating: usize,
        ratings: &mut Vec<f64>,
        texts: &mut [Vec<ByteArray>],
    ) -> std::result::Result<(), ParquetError> {
        let mut group = writer.next_row_group()?;
        for (index, texts) in texts.iter_mut().enumerate() {
            let Some(mut column) = group.next_column()? else { break };
            if index == rating {
                column.typed::<DoubleType>().write_batch(ratings, None, None)?;
            } else {
                column.typed::<ByteArrayType>().write_batch(texts, None, None)?;
                texts.clear();
            }
            column.close()?;
        }
        group.close()?;
        ratings.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let failed = |error| parquet_error("write", &self.path, error);
        if !self.ratings.is_empty() {
            Self::write_group(&mut self.writer, self.rating, &mut self.ratings, &mut self.texts)
                .map_err(failed)?;
        }
        // Writes the footer and gives the file back.
        self.writer.into_inner().map_err(failed)?.finish()
    }
}

/// Reads the values of one column chunk in batches, as text or as numbers.
struct Column {
    reader: ColumnReader,
    is_unsigned: bool,
    max_level: i16,
    levels: Vec<i16>,
}

impl Column {
    /// Reads `rows` values and gives each, or `None` where there is none, to `take`.
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

    /// Appends `rows` values to `texts`; missing ones as empty text. `Err(row)` inside tells which is not UTF-8.
    fn texts(
        &mut self,
        rows: usize,
        texts: &mut Ids,
    ) -> std::result::Result<std::result::Result<(), usize>, ParquetError> {
        use std::fmt::Write as _;
        let (level, levels) = (self.max_level, &mut self.levels);
        let mut scratch = String::new();
        let mut not_text = None;
        macro_rules! numbers {
            ($reader:expr, $convert:expr) => {
                Self::values($reader, level, levels, rows, |value| {
                    scratch.clear();
                    if let Some(&value) = value {
                        // Writing into a string cannot fail.
                        let _infallible = write!(scratch, "{}", $convert(value));
                    }
                    texts.push(&scratch);
                })?
            };
        }
        let begin = texts.len();
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => {
                Self::values(reader, level, levels, rows, |value| {
                    let text = value.map_or(Ok(""), |value| std::str::from_utf8(value.data()));
                    if text.is_err() && not_text.is_none() {
                        not_text = Some(texts.len() - begin);
                    }
                    texts.push(text.unwrap_or(""));
                })?;
            }
            ColumnReader::BoolColumnReader(reader) => numbers!(reader, |value: bool| value),
            ColumnReader::Int32ColumnReader(reader) if self.is_unsigned => {
                numbers!(reader, |value: i32| value.cast_unsigned());
            }
            ColumnReader::Int32ColumnReader(reader) => numbers!(reader, |value: i32| value),
            ColumnReader::Int64ColumnReader(reader) if self.is_unsigned => {
                numbers!(reader, |value: i64| value.cast_unsigned());
            }
            ColumnReader::Int64ColumnReader(reader) => numbers!(reader, |value: i64| value),
            ColumnReader::FloatColumnReader(reader) => numbers!(reader, |value: f32| value),
            ColumnReader::DoubleColumnReader(reader) => numbers!(reader, |value: f64| value),
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
                return Err(ParquetError::NYI("a column of a kind that is not read".to_owned()));
            }
        }
        Ok(not_text.map_or(Ok(()), Err))
    }

    /// Appends `rows` ratings; a missing one becomes NaN, which the caller refuses like any other NaN.
    fn ratings(&mut self, rows: usize, ratings: &mut Vec<f64>) -> std::result::Result<(), ParquetError> {
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

/// An open file and what its columns are.
struct Source {
    path: PathBuf,
    file: SerializedFileReader<File>,
    header: RatingsHeader,
}

impl Source {
    fn open(path: &Path, names: &ColumnNames) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let file = SerializedFileReader::new(file).map_err(|error| parquet_error("read", path, error))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let columns: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let header = RatingsHeader::located(path, columns, names)?;
        for (index, column) in schema.columns().iter().enumerate() {
            let readable = if index == header.rating_index() { is_number(column) } else { is_text(column) };
            if !readable {
                let wanted = if index == header.rating_index() { "DOUBLE or FLOAT" } else { "UTF8 text" };
                return Err(table_error(
                    path,
                    None,
                    format!(
                        "the column `{}` is of a kind that is not read ({}); store it as {wanted}.",
                        column.path().string(),
                        describe(column)
                    ),
                ));
            }
        }
        Ok(Self { path: path.to_path_buf(), file, header })
    }

    fn groups(&self) -> usize {
        self.file.num_row_groups()
    }

    fn group_rows(&self, group: usize) -> Result<usize> {
        usize::try_from(self.file.metadata().row_group(group).num_rows())
            .map_err(|_| table_error(&self.path, None, "a row group claims a negative number of rows."))
    }

    fn column(&self, group: usize, index: usize) -> Result<Column> {
        let error = |error| parquet_error("read", &self.path, error);
        let descriptor = self.file.metadata().file_metadata().schema_descr().column(index);
        let reader =
            self.file.get_row_group(group).and_then(|group| group.get_column_reader(index)).map_err(error)?;
        Ok(Column {
            reader,
            is_unsigned: is_unsigned(&descriptor),
            max_level: descriptor.max_def_level(),
            levels: Vec::new(),
        })
    }

    /// Refuses an empty id or a rating that is not finite; `row` counts from 0.
    fn check(&self, row: u64, id: &str, rating: f64) -> Result<()> {
        if id.is_empty() {
            return Err(table_error(&self.path, None, format!("row {} has an empty id.", row + 1)));
        }
        if !rating.is_finite() {
            let message = if rating.is_nan() {
                format!("the rating in row {} is missing or not a number.", row + 1)
            } else {
                format!("the rating `{rating}` in row {} is not a finite number.", row + 1)
            };
            return Err(table_error(&self.path, None, message));
        }
        Ok(())
    }

    fn not_text(&self, row: u64, column: usize) -> Error {
        let name = &self.header.columns()[column];
        table_error(&self.path, None, format!("the column `{name}` is not UTF-8 in row {}.", row + 1))
    }
}

fn is_flat(column: &ColumnDescriptor) -> bool {
    column.max_rep_level() == 0 && column.path().parts().len() == 1
}

fn is_whole_number(column: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    let physical = matches!(column.physical_type(), PhysicalType::INT32 | PhysicalType::INT64);
    let logical = match column.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::Integer(_)),
        None => matches!(
            column.converted_type(),
            C::NONE
                | C::INT_8
                | C::INT_16
                | C::INT_32
                | C::INT_64
                | C::UINT_8
                | C::UINT_16
                | C::UINT_32
                | C::UINT_64
        ),
    };
    physical && logical
}

fn is_unsigned(column: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    match column.logical_type_ref() {
        Some(LogicalType::Integer(integer)) => !integer.is_signed,
        Some(_) => false,
        None => matches!(column.converted_type(), C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64),
    }
}

fn is_number(column: &ColumnDescriptor) -> bool {
    let float = matches!(column.physical_type(), PhysicalType::FLOAT | PhysicalType::DOUBLE);
    is_flat(column) && (float || (is_whole_number(column) && !is_unsigned(column)))
}

/// Whether the values can be given as text without changing what they say.
fn is_text(column: &ColumnDescriptor) -> bool {
    let readable = match column.physical_type() {
        PhysicalType::BYTE_ARRAY => match column.logical_type_ref() {
            Some(logical) => matches!(logical, LogicalType::String | LogicalType::Enum | LogicalType::Json),
            None => matches!(
                column.converted_type(),
                ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
            ),
        },
        PhysicalType::BOOLEAN | PhysicalType::FLOAT | PhysicalType::DOUBLE => true,
        PhysicalType::INT32 | PhysicalType::INT64 => is_whole_number(column),
        PhysicalType::INT96 | PhysicalType::FIXED_LEN_BYTE_ARRAY => false,
    };
    is_flat(column) && readable
}

fn describe(column: &ColumnDescriptor) -> String {
    if !is_flat(column) {
        return "nested or repeated".to_owned();
    }
    match column.logical_type_ref() {
        Some(logical) => format!("{} {logical:?}", column.physical_type()),
        None => format!("{} {}", column.physical_type(), column.converted_type()),
    }
}

/// Reads rows in batches.
pub(super) struct ParquetRatings {
    source: Source,
    group: usize,
    columns: Vec<Column>,
    left_in_group: usize,
    /// One buffer a column; the rating's stays empty.
    texts: Vec<Ids>,
    ratings: Vec<f64>,
    at: usize,
    /// The row in the table, counted from 0, that `at` stands for.
    row: u64,
}

impl ParquetRatings {
    pub(super) fn open(path: &Path, names: &ColumnNames) -> Result<Self> {
        let source = Source::open(path, names)?;
        let texts = vec![Ids::default(); source.header.columns().len()];
        Ok(Self {
            source,
            group: 0,
            columns: Vec::new(),
            left_in_group: 0,
            texts,
            ratings: Vec::new(),
            at: 0,
            row: 0,
        })
    }

    pub(super) fn header(&self) -> &RatingsHeader {
        &self.source.header
    }

    /// Makes sure that `at` stands for a row; `false` at the end of the table.
    fn fill(&mut self) -> Result<bool> {
        while self.at == self.ratings.len() {
            while self.left_in_group == 0 {
                if self.group == self.source.groups() {
                    return Ok(false);
                }
                self.left_in_group = self.source.group_rows(self.group)?;
                self.columns = (0..self.texts.len())
                    .map(|index| self.source.column(self.group, index))
                    .collect::<Result<_>>()?;
                self.group += 1;
            }
            let rows = self.left_in_group.min(BATCH_ROWS);
            self.left_in_group -= rows;
            self.at = 0;
            self.ratings.clear();
            for (index, (column, texts)) in self.columns.iter_mut().zip(&mut self.texts).enumerate() {
                let error = |error| parquet_error("read", &self.source.path, error);
                if index == self.source.header.rating_index() {
                    column.ratings(rows, &mut self.ratings).map_err(error)?;
                } else {
                    texts.clear();
                    if let Err(place) = column.texts(rows, texts).map_err(error)? {
                        return Err(self.source.not_text(self.row + place as u64, index));
                    }
                }
            }
        }
        Ok(true)
    }

    pub(super) fn read(&mut self, row: &mut RatingRow) -> Result<bool> {
        if !self.fill()? {
            return Ok(false);
        }
        let header = &self.source.header;
        let id = self.texts[header.id_index()].get(self.at);
        let rating = self.ratings[self.at];
        self.source.check(self.row, id, rating)?;
        row.id.clear();
        row.id.push_str(id);
        row.rating = rating;
        row.carried.resize_with(header.carried_count(), String::new);
        let columns = self.texts.iter().enumerate();
        let carried =
            columns.filter(|(index, _)| *index != header.id_index() && *index != header.rating_index());
        for ((_, texts), slot) in carried.zip(&mut row.carried) {
            slot.clear();
            slot.push_str(texts.get(self.at));
        }
        self.at += 1;
        self.row += 1;
        Ok(true)
    }

    pub(super) fn pass_over(&mut self, rows: u64) -> Result<u64> {
        let mut skipped = 0;
        while skipped < rows && self.fill()? {
            let here =
                usize::try_from(rows - skipped).unwrap_or(usize::MAX).min(self.ratings.len() - self.at);
            self.at += here;
            self.row += here as u64;
            skipped += here as u64;
        }
        Ok(skipped)
    }
}

/// Reads the two columns of all row groups, groups side by side.
pub(super) fn read_ids_and_ratings(path: &Path, names: &ColumnNames) -> Result<RatingsTable> {
    let source = Source::open(path, names)?;
    let mut first_row = 0u64;
    let mut groups = Vec::with_capacity(source.groups());
    for group in 0..source.groups() {
        groups.push((group, first_row));
        first_row += source.group_rows(group)? as u64;
    }
    let share = groups.len().div_ceil(rayon::current_num_threads()).max(1);
    // Every thread opens the file for itself: a file's handle has one place, which the threads would fight over.
    let parts: Vec<Result<RatingsTable>> =
        groups.par_chunks(share).map(|groups| read_groups(path, names, groups)).collect();
    let mut parts = parts.into_iter();
    let mut table = parts.next().unwrap_or(Ok(RatingsTable { ids: Ids::default(), ratings: Vec::new() }))?;
    for part in parts {
        let part = part?;
        table.ids.append(&part.ids);
        table.ratings.extend_from_slice(&part.ratings);
    }
    Ok(table)
}

fn read_groups(path: &Path, names: &ColumnNames, groups: &[(usize, u64)]) -> Result<RatingsTable> {
    let source = Source::open(path, names)?;
    let error = |error| parquet_error("read", path, error);
    let (mut ids, mut ratings) = (Ids::default(), Vec::new());
    for &(group, first_row) in groups {
        let begin = ids.len();
        let rows = source.group_rows(group)?;
        let mut id_column = source.column(group, source.header.id_index())?;
        let mut rating_column = source.column(group, source.header.rating_index())?;
        for done in (0..rows).step_by(BATCH_ROWS) {
            let batch = (rows - done).min(BATCH_ROWS);
            if let Err(place) = id_column.texts(batch, &mut ids).map_err(error)? {
                return Err(source.not_text(first_row + (done + place) as u64, source.header.id_index()));
            }
            rating_column.ratings(batch, &mut ratings).map_err(error)?;
        }
        for (place, &rating) in ratings[begin..].iter().enumerate() {
            source.check(first_row + place as u64, ids.get(begin + place), rating)?;
        }
    }
    Ok(RatingsTable { ids, ratings })
}
