//! Ratings tables as delimited text (see [`DelimitedTable`]). They are written as comma-separated UTF-8 text (RFC
//! 4180).

use std::path::{Path, PathBuf};

use super::{
    LeftOut, RatingColumns, RatingRow, RatingsHeader, RatingsOptions, RatingsTable, left_out::Verdict,
    table_error,
};
use crate::{
    data::corpus::delimited::{DelimitedTable, Malformed, Read},
    error::{Error, Result},
    files::AtomicFile,
    select::ids::Ids,
};

/// Texts that mean a missing rating, ignoring case: those that pandas reads as missing.
const MISSING: [&str; 7] = ["", "nan", "na", "n/a", "null", "none", "<na>"];

/// The line of row `row` (counted from 0 below the header) among the kept rows. Reads the file again, so it is for
/// error messages only.
pub(super) fn line_of_row(
    path: &Path,
    names: &RatingColumns,
    options: RatingsOptions,
    row: u32,
) -> Option<u64> {
    let mut ratings = CsvRatings::open(path, names, options).ok()?;
    for _ in 0..=row {
        ratings.next().ok()??;
    }
    Some(ratings.table.line())
}

/// Parses a rating.
fn parse_rating(text: &str) -> Result<f64, Verdict> {
    match text.parse::<f64>() {
        Ok(rating) if rating.is_finite() => Ok(rating),
        _ if MISSING.iter().any(|missing| text.trim().eq_ignore_ascii_case(missing)) => {
            let what = if text.is_empty() {
                "is missing".to_owned()
            } else {
                format!("`{text}` is not a finite number")
            };
            Err(Verdict::Missing(format!("the rating {what}; pass --drop-nan to skip such rows")))
        }
        Ok(_) => Err(Verdict::Malformed(format!("the rating `{text}` is not a finite number"))),
        Err(_) if text.replacen(',', ".", 1).parse::<f64>().is_ok() => Err(Verdict::Malformed(format!(
            "the rating `{text}` is not a number; write it with a decimal point"
        ))),
        Err(_) => Err(Verdict::Malformed(format!("the rating `{text}` is not a number"))),
    }
}

pub(super) struct CsvRatings {
    table: DelimitedTable,
    header: RatingsHeader,
    options: RatingsOptions,
    left_out: LeftOut,
}

impl CsvRatings {
    pub(super) fn open(path: &Path, names: &RatingColumns, options: RatingsOptions) -> Result<Self> {
        let table = DelimitedTable::open(path)?;
        if table.header().is_empty() {
            return Err(table.refuse("the file is empty; its first line must name the columns"));
        }
        let header = RatingsHeader::located(path, table.header().to_vec(), names)?;
        Ok(Self { table, header, options, left_out: LeftOut::default() })
    }

    pub(super) fn header(&self) -> &RatingsHeader {
        &self.header
    }

    /// Advances to the next row that is kept and returns its rating.
    fn next(&mut self) -> Result<Option<f64>> {
        loop {
            let (line, verdict) = match self.table.read()? {
                Read::End => return Ok(None),
                Read::Malformed(Malformed { line, message }) => (line, Verdict::Malformed(message)),
                Read::Row => {
                    let verdict = if self.id().is_empty() {
                        Verdict::Malformed("the id is empty; every row needs one".to_owned())
                    } else {
                        match parse_rating(self.table.field(self.header.rating)) {
                            Ok(rating) => return Ok(Some(rating)),
                            Err(verdict) => verdict,
                        }
                    };
                    (self.table.line(), verdict)
                }
            };
            let counted = self.left_out.count(verdict, self.options, Some(line));
            counted.map_err(|message| self.table.refuse_row(Malformed { line, message }))?;
        }
    }

    fn id(&self) -> &str {
        self.table.field(self.header.id)
    }

    pub(super) fn read(&mut self, row: &mut RatingRow) -> Result<bool> {
        let Some(rating) = self.next()? else { return Ok(false) };
        row.id.clear();
        row.id.push_str(self.id());
        row.rating = rating;
        row.carried.resize_with(self.header.carried_count(), String::new);
        let fields = self.table.fields().enumerate();
        let carried = fields.filter(|(index, _)| *index != self.header.id && *index != self.header.rating);
        for ((_, field), slot) in carried.zip(&mut row.carried) {
            slot.clear();
            slot.push_str(field);
        }
        Ok(true)
    }

    pub(super) fn pass_over(&mut self, rows: u64) -> Result<u64> {
        for skipped in 0..rows {
            let read = if self.options == RatingsOptions::default() {
                match self.table.read()? {
                    Read::Malformed(row) => return Err(self.table.refuse_row(row)),
                    read => read == Read::Row,
                }
            } else {
                self.next()?.is_some()
            };
            if !read {
                return Ok(skipped);
            }
        }
        Ok(rows)
    }
}

pub(super) fn read_ids_and_ratings(
    path: &Path,
    names: &RatingColumns,
    options: RatingsOptions,
) -> Result<(RatingsTable, LeftOut)> {
    let mut reader = CsvRatings::open(path, names, options)?;
    let (mut ids, mut ratings) = (Ids::default(), Vec::new());
    while let Some(rating) = reader.next()? {
        ids.push(reader.id());
        ratings.push(rating);
    }
    Ok((RatingsTable { ids, ratings }, reader.left_out))
}

pub(super) struct CsvWriter {
    writer: csv::Writer<AtomicFile>,
    path: PathBuf,
    rating: String,
}

impl CsvWriter {
    pub(super) fn create(path: &Path, header: &RatingsHeader) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(AtomicFile::create(path)?);
        writer.write_record(header.columns()).map_err(|error| write_error(path, error))?;
        Ok(Self { writer, path: path.to_path_buf(), rating: String::new() })
    }

    pub(super) fn write(&mut self, header: &RatingsHeader, row: &RatingRow) -> Result<()> {
        use std::fmt::Write as _;
        self.rating.clear();
        // The shortest decimal that parses back to the same value. Writing to a string cannot fail.
        let _infallible = write!(self.rating, "{}", row.rating);
        let mut carried = row.carried.iter();
        let fields = (0..header.columns().len()).map(|index| {
            if index == header.id {
                row.id.as_str()
            } else if index == header.rating {
                self.rating.as_str()
            } else {
                carried.next().map_or("", String::as_str)
            }
        });
        self.writer.write_record(fields).map_err(|error| write_error(&self.path, error))
    }

    pub(super) fn finish(self) -> Result<()> {
        finish_csv(self.writer, &self.path)
    }
}

/// Converts an error of writing CSV to `path`.
pub(crate) fn write_error(path: &Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Io { action: "write", path: path.to_path_buf(), source },
        kind => table_error(path, None, format!("a row cannot be written as CSV ({kind:?})")),
    }
}

/// Flushes a table and renames the file to its final name.
pub(super) fn finish_csv(writer: csv::Writer<AtomicFile>, path: &Path) -> Result<()> {
    match writer.into_inner() {
        Ok(file) => file.finish(),
        Err(error) => {
            Err(Error::Io { action: "write", path: path.to_path_buf(), source: error.into_error() })
        }
    }
}
