//! Parquet files as tables: their columns, and column values in batches, as text or as numbers.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    schema::types::ColumnDescriptor,
};

use super::{RatingColumns, RatingsHeader, table_error};
use crate::{
    data::{
        corpus::parquet::{Column, ValueType, column, parquet_error},
        store::open_parquet,
    },
    error::{Error, Result},
    select::ids::Ids,
};

/// Rows decoded per batch.
pub(super) const BATCH_ROWS: usize = 1 << 13;

/// A carried column.
struct Carried {
    /// Its index among the file's leaf columns.
    leaf: usize,
    kind: ValueType,
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
        let file = open_parquet(path).map_err(|error| parquet_error("read", path, error))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let (mut carried, mut columns, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (leaf, column) in schema.columns().iter().enumerate() {
            let name = column.path().parts()[0].clone();
            // The id and the rating are checked below, by name.
            let needed = column.path().parts().len() == 1 && (name == names.id || name == names.rating);
            match ValueType::of(column) {
                Some(ValueType::Bytes) if carry && !needed && !is_text(path, &file, leaf)? => {
                    left_out.push(name)
                }
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
            if our.kind != their.kind && ![our.kind, their.kind].contains(&ValueType::Null) {
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

/// Whether all values of a binary column are UTF-8.
fn is_text(path: &Path, file: &SerializedFileReader<File>, leaf: usize) -> Result<bool> {
    let failed = |error| parquet_error("read", path, error);
    let mut texts = Ids::default();
    for group in 0..file.num_row_groups() {
        let mut column = column(file, group, leaf, ValueType::Bytes).map_err(failed)?;
        let mut left = usize::try_from(file.metadata().row_group(group).num_rows()).unwrap_or(0);
        while left > 0 {
            let rows = left.min(BATCH_ROWS);
            texts.clear();
            if column.texts(rows, |text| texts.push(text)).map_err(failed)?.is_err() {
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
