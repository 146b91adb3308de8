//! Writes ratings tables as Parquet, through the column writers of the `parquet` crate (without Arrow).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as PhysicalType},
    data_type::{ByteArray, ByteArrayType, DoubleType},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnPath, Type},
};

use super::{RatingRow, RatingsHeader};
use crate::{data::corpus::parquet::parquet_error, error::Result, files::AtomicFile};

/// A row group is written when it has this many rows or [`GROUP_BYTES`] of text.
pub(super) const GROUP_ROWS: usize = 1 << 17;
pub(super) const GROUP_BYTES: usize = 32 << 20;

/// Buffers rows and writes them in row groups.
pub(super) struct ParquetWriter {
    path: PathBuf,
    writer: SerializedFileWriter<AtomicFile>,
    rating: usize,
    ratings: Vec<f64>,
    /// One vector per column; the rating's stays empty.
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
            // Ids and ratings hardly ever repeat, so a dictionary would only cost time.
            .set_column_dictionary_enabled(id, false)
            .set_column_dictionary_enabled(rating, false)
            .build();
        let writer =
            SerializedFileWriter::new(AtomicFile::create(path)?, Arc::new(schema), Arc::new(properties))
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

    /// Writes the buffered rows as a row group and clears the buffers.
    fn write_group(
        writer: &mut SerializedFileWriter<AtomicFile>,
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
        // Writes the footer and returns the file.
        self.writer.into_inner().map_err(failed)?.finish()
    }
}
