//! Images in the cells of a Parquet file: `FILE.parquet/COLUMN/ROW`, rows counted from 1.
//!
//! A column chunk is read page by page, so a row group is never in memory as a whole. The rows of its pages are found
//! from the page headers alone. The pages read last are kept, because images are mostly read in the order of rows.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use parquet::{
    basic::Type as PhysicalType,
    column::reader::ColumnReaderImpl,
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
};

use super::slice::Range;
use crate::data::{
    location::Location,
    store::{Readable, open_parquet},
};

/// Upper bound on the total size of the kept pages; the last one is kept whatever its size.
const MOST_KEPT_BYTES: usize = 96 << 20;

/// The first row of each page of a column chunk, within its row group.
type Pages = Arc<Vec<usize>>;

/// Identifies a page: the id of its file, the leaf column, the row group, and the index of the page in the column
/// chunk.
type PageKey = (u64, usize, usize, usize);

/// The values of a page.
struct Page {
    first: usize,
    values: Vec<Option<ByteArray>>,
    bytes: usize,
}

/// The pages read last, the newest at the end.
static KEPT: Mutex<VecDeque<(PageKey, Arc<Page>)>> = Mutex::new(VecDeque::new());

/// An open Parquet file whose cells are read.
pub(super) struct Cells {
    /// Distinguishes the files whose pages are kept.
    id: u64,
    folder: PathBuf,
    file: SerializedFileReader<File>,
    /// Indices of the columns of bytes, by their names.
    leaves: HashMap<String, usize>,
    /// The first row of each row group, followed by the number of rows.
    groups: Vec<u64>,
    /// The pages of the column chunks seen so far. The lock also ensures that only one thread reads at a time.
    pages: Mutex<HashMap<(usize, usize), Pages>>,
}

/// A failure to read a Parquet file, as an I/O error.
fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => *source,
            Err(source) => io::Error::other(format!("cannot read this Parquet file: {source}")),
        },
        error => {
            io::Error::new(io::ErrorKind::InvalidData, format!("cannot read this Parquet file: {error}"))
        }
    }
}

impl Cells {
    /// Opens a file and reads its footer.
    pub(super) fn open(path: &Path, id: u64) -> io::Result<Self> {
        let file = open_parquet(path).map_err(failed)?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let leaves = schema.columns().iter().enumerate();
        let leaves = leaves
            .filter(|(_, column)| {
                column.physical_type() == PhysicalType::BYTE_ARRAY && column.max_rep_level() == 0
            })
            .map(|(leaf, column)| (column.path().string(), leaf))
            .collect();
        let mut groups = vec![0_u64];
        for group in file.metadata().row_groups() {
            let before = groups.last().copied().unwrap_or(0);
            groups.push(before.saturating_add(u64::try_from(group.num_rows()).unwrap_or(0)));
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { id, folder, file, leaves, groups, pages: Mutex::default() })
    }

    /// The column and the row, counted from 0, of a path within the file.
    fn locate(&self, within: &str) -> Option<(usize, u64)> {
        let (column, row) = within.rsplit_once('/')?;
        let row: u64 = row.parse().ok().filter(|row| (1..=self.rows()).contains(row))?;
        Some((*self.leaves.get(column)?, row - 1))
    }

    fn rows(&self) -> u64 {
        self.groups.last().copied().unwrap_or(0)
    }

    /// Checks that there is such a cell.
    pub(super) fn look(&self, within: &str) -> io::Result<(usize, u64)> {
        self.locate(within).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "there is no such column of bytes, or no such row, in the file",
            )
        })
    }

    /// Opens a cell. If it is null and the field `path` of the same struct is not, opens the file at that path.
    pub(super) fn cell(&self, within: &str, from: u64) -> io::Result<Box<dyn Readable>> {
        let (leaf, row) = self.look(within)?;
        if let Some(value) = self.value(leaf, row)? {
            return Ok(Box::new(Cell { range: Range { length: value.len() as u64, at: from }, value }));
        }
        let column = within.rsplit_once('/').map_or("", |(column, _)| column);
        let paths = column.strip_suffix("bytes").filter(|group| group.ends_with('.'));
        let paths = paths.and_then(|group| self.leaves.get(&format!("{group}path")));
        let path = paths.map(|&leaf| self.value(leaf, row)).transpose()?.flatten();
        match path.as_ref().and_then(|path| std::str::from_utf8(path.data()).ok()) {
            Some(path) if !path.is_empty() => {
                let path = self.folder.join(path);
                // It must be a file, not another cell, which could be this one.
                if !path.is_file() {
                    let message = format!("the image is null, and there is no file {}", path.display());
                    return Err(io::Error::new(io::ErrorKind::NotFound, message));
                }
                Location::from(path).open(from)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the image is null")),
        }
    }

    /// The value of a column in a row, counted from 0.
    fn value(&self, leaf: usize, row: u64) -> io::Result<Option<ByteArray>> {
        let group = self.groups.partition_point(|&first| first <= row) - 1;
        let row = usize::try_from(row - self.groups[group]).unwrap_or(usize::MAX);
        let page = self.page(leaf, group, row)?;
        page.values.get(row - page.first).cloned().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the column ends before its row group does")
        })
    }

    /// The page with a row of a row group.
    fn page(&self, leaf: usize, group: usize, row: usize) -> io::Result<Arc<Page>> {
        // The file handle has a single cursor, and threads that need the same page wait for it here.
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let firsts = match pages.get(&(leaf, group)) {
            Some(firsts) => Arc::clone(firsts),
            None => {
                let firsts = Arc::new(self.page_rows(leaf, group).map_err(failed)?);
                pages.insert((leaf, group), Arc::clone(&firsts));
                firsts
            }
        };
        let number = firsts.partition_point(|&first| first <= row).saturating_sub(1);
        let key = (self.id, leaf, group, number);
        {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|(known, _)| *known == key)
                && let Some(found) = kept.remove(at)
            {
                let page = Arc::clone(&found.1);
                kept.push_back(found);
                return Ok(page);
            }
        }
        let first = firsts.get(number).copied().unwrap_or(0);
        let end = firsts.get(number + 1).copied();
        let page = Arc::new(self.read(leaf, group, first, end).map_err(failed)?);
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, Arc::clone(&page)));
        while kept.len() > 1 && kept.iter().map(|(_, page)| page.bytes).sum::<usize>() > MOST_KEPT_BYTES {
            kept.pop_front();
        }
        Ok(page)
    }

    /// The first row of each page of a column chunk, from the headers of the pages.
    fn page_rows(&self, leaf: usize, group: usize) -> Result<Vec<usize>, ParquetError> {
        let mut pages = self.file.get_row_group(group)?.get_column_page_reader(leaf)?;
        let (mut firsts, mut row) = (Vec::new(), 0_usize);
        while let Some(about) = pages.peek_next_page()? {
            if !about.is_dict {
                firsts.push(row);
                row = row.saturating_add(about.num_rows.or(about.num_levels).unwrap_or(0));
            }
            pages.skip_next_page()?;
        }
        Ok(firsts)
    }

    /// Reads the rows from `first` to `end` of a column chunk, one page; for the last page, `end` is `None`.
    fn read(
        &self,
        leaf: usize,
        group: usize,
        first: usize,
        end: Option<usize>,
    ) -> Result<Page, ParquetError> {
        let group = self.file.get_row_group(group)?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let count = end.unwrap_or(rows).saturating_sub(first);
        let column = self.file.metadata().file_metadata().schema_descr().column(leaf);
        let most = column.max_def_level();
        let mut reader = ColumnReaderImpl::<ByteArrayType>::new(column, group.get_column_page_reader(leaf)?);
        reader.skip_records(first)?;
        let (mut values, mut levels, mut done) = (Vec::new(), Vec::new(), 0);
        while done < count {
            let (read, _, _) = reader.read_records(count - done, Some(&mut levels), None, &mut values)?;
            if read == 0 {
                break;
            }
            done += read;
        }
        let bytes = values.iter().map(ByteArray::len).sum();
        let mut values = values.into_iter();
        let values = match most {
            0 => values.map(Some).collect(),
            _ => levels.iter().map(|&level| if level == most { values.next() } else { None }).collect(),
        };
        Ok(Page { first, values, bytes })
    }
}

/// The bytes of a cell.
pub(super) struct Cell {
    value: ByteArray,
    range: Range,
}

impl Read for Cell {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(self.range.at).unwrap_or(usize::MAX);
        let rest = self.value.data().get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.range.at += count as u64;
        Ok(count)
    }
}

impl Seek for Cell {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.range.seek(to)
    }
}
