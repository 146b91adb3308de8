//! Reads ratings tables from Parquet: one file, or a folder of files as one table.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{
    LeftOut, RatingColumns, RatingRow, RatingsHeader, RatingsOptions, RatingsTable,
    left_out::Verdict,
    parquet_source::{BATCH_ROWS, Source},
    table_error,
};
use crate::{
    data::corpus::{
        columns::list_columns,
        parquet::{Column, parquet_error},
    },
    error::{Error, Result},
    select::ids::Ids,
};

/// The files of a table in row order: `path` itself, or all `.parquet` files in the folder `path`, sorted by name,
/// byte by byte. Names that start with `_` or `.` are metadata of the program that wrote the folder (`_SUCCESS`,
/// `_metadata`) and are skipped.
///
/// # Errors
/// If the folder cannot be read, contains other files, or has no `.parquet` file.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(['_', '.']) {
            continue;
        }
        if !name.to_ascii_lowercase().ends_with(".parquet") || file.is_dir() {
            let what = if file.is_dir() { "a folder" } else { "not a .parquet file" };
            let message = format!(
                "the folder contains `{name}`, which is {what}; a ratings table in parts must be a folder of \
                 .parquet files only"
            );
            return Err(table_error(path, None, message));
        }
        files.push(file);
    }
    if files.is_empty() {
        return Err(table_error(path, None, "the folder contains no .parquet file"));
    }
    files.sort();
    Ok(files)
}

/// Reads rows in batches.
pub(super) struct ParquetRatings {
    source: Source,
    /// The remaining files, in reverse order.
    rest: Vec<PathBuf>,
    names: RatingColumns,
    options: RatingsOptions,
    group: usize,
    columns: Vec<Column>,
    left_in_group: usize,
    /// One buffer per column; the rating's stays empty.
    texts: Vec<Ids>,
    ratings: Vec<f64>,
    at: usize,
    /// Index of the row at `at` in the file.
    row: u64,
    left_out: LeftOut,
}

impl ParquetRatings {
    pub(super) fn open(path: &Path, names: &RatingColumns, options: RatingsOptions) -> Result<Self> {
        let mut rest = files(path)?;
        rest.reverse();
        let first = rest.pop().unwrap_or_else(|| path.to_path_buf());
        let source = Source::open(&first, names, true)?;
        for file in rest.iter().rev() {
            source.expect_columns(&Source::open(file, names, true)?)?;
        }
        if !source.left_out.is_empty() {
            let columns = list_columns(&source.left_out);
            tracing::warn!(
                "{}: skipped {columns}; lists, structs and bytes are not carried over",
                path.display()
            );
        }
        let texts = vec![Ids::default(); source.header.columns().len()];
        Ok(Self {
            source,
            rest,
            names: names.clone(),
            options,
            group: 0,
            columns: Vec::new(),
            left_in_group: 0,
            texts,
            ratings: Vec::new(),
            at: 0,
            row: 0,
            left_out: LeftOut::default(),
        })
    }

    pub(super) fn header(&self) -> &RatingsHeader {
        &self.source.header
    }

    /// Ensures that `at` is a row. Returns `false` at the end of the table.
    fn fill(&mut self) -> Result<bool> {
        while self.at == self.ratings.len() {
            while self.left_in_group == 0 {
                if self.group == self.source.groups() {
                    let Some(next) = self.rest.pop() else { return Ok(false) };
                    self.source = Source::open(&next, &self.names, true)?;
                    (self.group, self.row) = (0, 0);
                    continue;
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
                    if let Err(not_text) = column.texts(rows, |text| texts.push(text)).map_err(error)? {
                        let row = not_text[0];
                        return Err(self.source.not_text(self.row + row as u64, index));
                    }
                }
            }
        }
        Ok(true)
    }

    /// Ensures that `at` is a row that is kept. Returns `false` at the end of the table.
    fn next(&mut self) -> Result<bool> {
        while self.fill()? {
            let id = self.texts[self.source.header.id_index()].get(self.at);
            if self.left_out.judge(&self.source, self.options, self.row, id, self.ratings[self.at])? {
                return Ok(true);
            }
            self.at += 1;
            self.row += 1;
        }
        Ok(false)
    }

    pub(super) fn read(&mut self, row: &mut RatingRow) -> Result<bool> {
        if !self.next()? {
            return Ok(false);
        }
        let header = &self.source.header;
        row.id.clear();
        row.id.push_str(self.texts[header.id_index()].get(self.at));
        row.rating = self.ratings[self.at];
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
        if self.options != RatingsOptions::default() {
            while skipped < rows && self.next()? {
                self.at += 1;
                self.row += 1;
                skipped += 1;
            }
            return Ok(skipped);
        }
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

impl LeftOut {
    /// Whether a row is kept. A row that is not kept is counted if `options` skips such rows, else it is an error.
    /// `row` is counted from 0.
    fn judge(
        &mut self,
        source: &Source,
        options: RatingsOptions,
        row: u64,
        id: &str,
        rating: f64,
    ) -> Result<bool> {
        let number = row + 1;
        let verdict = if id.is_empty() {
            Verdict::Malformed(format!("row {number} has an empty id"))
        } else if rating.is_nan() {
            Verdict::Missing(format!(
                "the rating in row {number} is missing or not a number; pass --drop-nan to skip such rows"
            ))
        } else if !rating.is_finite() {
            Verdict::Malformed(format!("the rating `{rating}` in row {number} is not a finite number"))
        } else {
            return Ok(true);
        };
        self.count(verdict, options, None).map_err(|message| table_error(&source.path, None, message))?;
        Ok(false)
    }
}

/// A row group: its file, its index in that file, and the index of its first row.
#[derive(Clone, Copy)]
struct Group {
    file: usize,
    number: usize,
    first_row: u64,
}

/// Reads the two columns of all row groups in parallel.
pub(super) fn read_ids_and_ratings(
    path: &Path,
    names: &RatingColumns,
    options: RatingsOptions,
) -> Result<(RatingsTable, LeftOut)> {
    let files = files(path)?;
    let mut groups = Vec::new();
    let mut first: Option<Source> = None;
    for (file, path) in files.iter().enumerate() {
        let source = Source::open(path, names, false)?;
        let mut first_row = 0;
        for number in 0..source.groups() {
            groups.push(Group { file, number, first_row });
            first_row += source.group_rows(number)? as u64;
        }
        match &first {
            Some(first) => first.expect_columns(&source)?,
            None => first = Some(source),
        }
    }
    let share = groups.len().div_ceil(rayon::current_num_threads()).max(1);
    // Every thread opens the files itself: a file handle has one cursor, which threads would contend for.
    let parts: Vec<Result<(RatingsTable, LeftOut)>> =
        groups.par_chunks(share).map(|groups| read_groups(&files, names, options, groups)).collect();
    let mut table = RatingsTable { ids: Ids::default(), ratings: Vec::new() };
    let mut left_out = LeftOut::default();
    for (index, part) in parts.into_iter().enumerate() {
        let (part, left) = part?;
        left_out.add(left);
        if index == 0 {
            table = part;
        } else {
            table.ids.append(&part.ids);
            table.ratings.extend_from_slice(&part.ratings);
        }
    }
    Ok((table, left_out))
}

fn read_groups(
    files: &[PathBuf],
    names: &RatingColumns,
    options: RatingsOptions,
    groups: &[Group],
) -> Result<(RatingsTable, LeftOut)> {
    let (mut ids, mut ratings, mut left_out) = (Ids::default(), Vec::new(), LeftOut::default());
    for groups in groups.chunk_by(|one, other| one.file == other.file) {
        let path = &files[groups[0].file];
        let source = Source::open(path, names, false)?;
        let error = |error| parquet_error("read", path, error);
        for &Group { number, first_row, .. } in groups {
            let (mut group_ids, mut group_ratings) = (Ids::default(), Vec::new());
            let rows = source.group_rows(number)?;
            let mut id_column = source.column(number, source.header.id_index())?;
            let mut rating_column = source.column(number, source.header.rating_index())?;
            for done in (0..rows).step_by(BATCH_ROWS) {
                let batch = (rows - done).min(BATCH_ROWS);
                if let Err(not_text) = id_column.texts(batch, |text| group_ids.push(text)).map_err(error)? {
                    let row = not_text[0];
                    return Err(source.not_text(first_row + (done + row) as u64, source.header.id_index()));
                }
                rating_column.ratings(batch, &mut group_ratings).map_err(error)?;
            }
            let mut kept = Vec::with_capacity(rows);
            for (index, &rating) in group_ratings.iter().enumerate() {
                let row = first_row + index as u64;
                kept.push(left_out.judge(&source, options, row, group_ids.get(index), rating)?);
            }
            if kept.iter().all(|&kept| kept) {
                ids.append(&group_ids);
                ratings.append(&mut group_ratings);
            } else {
                for index in (0..rows).filter(|&index| kept[index]) {
                    ids.push(group_ids.get(index));
                    ratings.push(group_ratings[index]);
                }
            }
        }
    }
    Ok((RatingsTable { ids, ratings }, left_out))
}
