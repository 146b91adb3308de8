//! The formats of corpora, and how each is opened.

use std::{fmt, io::Read as _, str::FromStr};

use super::{
    ColumnNames,
    delimited::DelimitedTable,
    file_kind::{is_json_lines, is_parquet},
    folder::ImageFolder,
    jsonl::JsonLines,
    parquet::ParquetTable,
    read_error::read_error,
    reader::TableReader,
    webdataset::WebDataset,
};
use crate::{
    data::{
        location::Location,
        store::{
            Kind,
            container::tar::{BLOCK, is_header},
        },
    },
    error::{Error, Result},
};

/// Bytes from which the format of a file is detected.
const SNIFFED_BYTES: u64 = 1 << 12;

/// How a corpus is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorpusFormat {
    /// Delimited text with a header.
    Csv,
    /// JSON Lines.
    JsonLines,
    /// Parquet, of paths or of images.
    Parquet,
    /// Tar archives of images and captions.
    WebDataset,
    /// A folder of images, with a table that lists them or a text file for each.
    ImageFolder,
}

impl CorpusFormat {
    /// All formats.
    pub const ALL: [Self; 5] =
        [Self::Csv, Self::JsonLines, Self::Parquet, Self::WebDataset, Self::ImageFolder];

    /// The values of the key `data_format`: empty for detection, then all formats.
    pub(crate) const KEYS: [&'static str; 6] = ["", "csv", "jsonl", "parquet", "webdataset", "imagefolder"];

    /// The name, as in `--format`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Parquet => "parquet",
            Self::WebDataset => "webdataset",
            Self::ImageFolder => "imagefolder",
        }
    }

    /// Describes a corpus of `files` files in this format, for messages.
    pub(super) fn describe(self, files: usize) -> String {
        let one = match self {
            Self::Csv => "delimited text",
            Self::JsonLines => "JSON Lines",
            Self::Parquet => "Parquet",
            Self::WebDataset => "WebDataset",
            Self::ImageFolder => "a folder of images with captions in text files",
        };
        if files == 1 { one.to_owned() } else { format!("{files} files of {one}") }
    }

    /// The location whose folder contains the relative image paths of a file.
    pub(super) fn base(self, file: &Location) -> Location {
        match self {
            // The file is the folder itself, so any name in the folder will do.
            Self::ImageFolder => Location::from(file.as_path().join("captions")),
            _ => file.clone(),
        }
    }

    /// Whether images are in the corpus itself rather than in files that it names.
    pub(super) fn contains_images(self) -> bool {
        matches!(self, Self::WebDataset | Self::Parquet | Self::ImageFolder)
    }

    /// Detects the format of a file from its first bytes, after decompression.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn of_file(at: &Location) -> Result<Self> {
        // Opening a named pipe blocks; the reader refuses what is not a regular file.
        if !matches!(at.kind(), Ok(Kind::File(_))) {
            return Ok(Self::Csv);
        }
        let mut start = Vec::new();
        at.open_decompressed(0, 0)
            .and_then(|input| input.take(SNIFFED_BYTES).read_to_end(&mut start))
            .map_err(read_error(at))?;
        Ok(match &start[..] {
            start if is_json_lines(start) => Self::JsonLines,
            start if is_parquet(start) => Self::Parquet,
            start if start.first_chunk().is_some_and(is_header) => Self::WebDataset,
            // An archive without members.
            start if start.first_chunk() == Some(&[0; BLOCK]) => Self::WebDataset,
            _ => Self::Csv,
        })
    }

    /// Returns this format, unless the file is clearly in another one.
    ///
    /// # Errors
    /// If the file cannot be read or is in another format.
    pub(super) fn expect(self, at: &Location) -> Result<Self> {
        let found = Self::of_file(at)?;
        let refuse = |message: String| Error::Table { path: at.as_path().to_path_buf(), line: None, message };
        match (self, found) {
            (Self::ImageFolder, _) => Err(refuse(
                "is not a folder, so it cannot be read as imagefolder; leave out --format".to_owned(),
            )),
            // A file in no other format may be delimited text; the reader then reports what is wrong with it.
            (_, Self::Csv) | (Self::WebDataset, _) => Ok(self),
            _ if found == self => Ok(self),
            _ => Err(refuse(format!(
                "is {} by its content, so it cannot be read as {self}; leave out --format",
                found.describe(1)
            ))),
        }
    }

    /// Opens a file in this format. With `header`, it must have these columns.
    ///
    /// # Errors
    /// If the file is missing, is in another format or has other columns.
    pub(super) fn open(
        self,
        at: &Location,
        names: &ColumnNames,
        header: Option<&[String]>,
    ) -> Result<Box<dyn TableReader>> {
        let table: Box<dyn TableReader> = match self {
            Self::Csv => Box::new(DelimitedTable::open(at.clone())?),
            Self::JsonLines => Box::new(JsonLines::open(at, header)?),
            Self::Parquet => Box::new(ParquetTable::open(at, names, header.is_none())?),
            Self::ImageFolder => Box::new(ImageFolder::open(at)?),
            Self::WebDataset => Box::new(WebDataset::open(at, names, header)?),
        };
        match header.and_then(|header| difference(header, table.header())) {
            None => Ok(table),
            Some(difference) => Err(table.refuse_header(format!(
                "its columns differ from those of the first file of the corpus: {difference}; all files of a corpus \
                 must have the same columns"
            ))),
        }
    }

    /// The error about a corpus of `files` files without any row.
    pub(super) fn refuse_empty(self, first: &Location, files: usize) -> Error {
        let message = match (self, files) {
            (Self::Csv, 1) => "the table has a header but no rows".to_owned(),
            (_, 1) => "has no rows".to_owned(),
            _ => format!("is the first of {files} files without a row"),
        };
        Error::Table { path: first.as_path().to_path_buf(), line: None, message }
    }
}

/// The first difference between two headers.
fn difference(ours: &[String], theirs: &[String]) -> Option<String> {
    if ours == theirs {
        return None;
    }
    if let Some(name) = ours.iter().find(|name| !theirs.contains(name)) {
        return Some(format!("`{name}` is missing"));
    }
    match theirs.iter().find(|name| !ours.contains(name)) {
        Some(name) => Some(format!("`{name}` is added")),
        None => Some("they are in a different order".to_owned()),
    }
}

impl fmt::Display for CorpusFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for CorpusFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|format| format.name()).collect();
            Error::argument(format!("unknown corpus format `{name}`; expected one of {}", names.join(", ")))
        })
    }
}
