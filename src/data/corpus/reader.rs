//! The interface between corpus formats and the code that reads them: [`CorpusReader`] and its types.

use std::{cmp::Ordering, fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    data::location::Location,
    error::{Error, Result},
};

/// Reads one corpus format. The order of records is deterministic.
pub trait CorpusReader: Send {
    /// The location of the corpus.
    fn location(&self) -> &Location;

    /// The columns.
    fn schema(&self) -> &Schema;

    /// The files of the corpus, in reading order. A batch never spans two files.
    fn shards(&self) -> &[Location];

    /// Reads up to `most` records: fewer at the end of a shard, none at the end of the corpus. A malformed record is
    /// an error or, with `skip_malformed`, a record that says so. After an error, nothing more is returned.
    ///
    /// # Errors
    /// If reading fails, or a record is malformed.
    fn read(&mut self, most: usize, skip_malformed: bool) -> Result<Vec<Record>>;

    /// The position of the next record.
    fn cursor(&self) -> Cursor;

    /// Seeks to a position returned by [`cursor`](Self::cursor) for this corpus, without reading what comes before.
    ///
    /// # Errors
    /// If the position is invalid because the corpus has changed, or reading fails.
    fn seek(&mut self, to: Cursor) -> Result<()>;

    /// An error about the schema, with its location.
    fn refuse_schema(&self, message: String) -> Error;
}

/// The columns of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Column names, in order.
    pub columns: Vec<String>,
    /// Index of the column of ids.
    pub id: usize,
    /// Index of the column of images or image paths.
    pub image: usize,
    /// Index of the column of captions.
    pub caption: usize,
    /// Whether the corpus has no ids, so that image paths, as written, are the ids.
    pub ids_are_paths: bool,
}

/// A position between two records. Its contents are private to the reader that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Cursor {
    /// Number of records before it in the corpus.
    row: u64,
    /// Index of the shard.
    shard: usize,
    /// Position in the shard, in the reader's own units.
    at: [u64; 2],
}

impl Cursor {
    /// A position with `row` records before it.
    pub(super) fn new(row: u64, shard: usize, at: [u64; 2]) -> Self {
        Self { row, shard, at }
    }

    /// Number of records before it.
    pub(super) fn row(self) -> u64 {
        self.row
    }

    /// Position in its shard.
    pub(super) fn at(self) -> [u64; 2] {
        self.at
    }

    /// Index of its shard.
    pub(super) fn shard(self) -> usize {
        self.shard
    }

    /// Whether it comes after `other` in the same corpus; `None` is the start.
    pub(crate) fn is_after(self, other: Option<Self>) -> bool {
        self.row > other.map_or(0, |other| other.row)
    }
}

/// The serialized form of a cursor.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Cursor {
        row: u64,
        shard: usize,
        at: [u64; 2],
    },
    /// The format of token caches of version 2 and older.
    Delimited {
        row: u64,
        line: u64,
        byte: u64,
    },
}

impl From<Stored> for Cursor {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Cursor { row, shard, at } => Self { row, shard, at },
            Stored::Delimited { row, line, byte } => Self { row, shard: 0, at: [line, byte] },
        }
    }
}

/// The origin of a record, for messages: a file and a line. Displayed as `FILE:LINE`, with the file name only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    file: Arc<Location>,
    line: u64,
}

impl Origin {
    /// From a line of a table, counted from 1 including the header, or the index of a file in a folder, counted from
    /// 1.
    pub(crate) fn new(file: &Arc<Location>, line: u64) -> Self {
        Self { file: Arc::clone(file), line }
    }

    /// An error about this record.
    pub(crate) fn refuse(&self, message: String) -> Error {
        Error::Table { path: self.file.as_path().to_path_buf(), line: Some(self.line), message }
    }

    /// Describes this location in a message that starts with the location `from`.
    pub(super) fn relative_to(&self, from: &Self) -> String {
        match self.file == from.file {
            true => format!("on line {}", self.line),
            false => format!("in {}, line {}", self.file, self.line),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.name(), self.line)
    }
}

impl PartialOrd for Origin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Origin {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.file, self.line).cmp(&(&other.file, other.line))
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, line) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` is not FILE:LINE"))?;
        let line = line.parse().map_err(|_| format!("`{text}` is not FILE:LINE"))?;
        Ok(Self { file: Arc::new(Location::from(Path::new(file))), line })
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stored {
            Text(String),
            /// The format of token caches of version 2 and older: a line.
            Line(u64),
        }
        match Stored::deserialize(deserializer)? {
            Stored::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Stored::Line(line) => Ok(Self { file: Arc::new(Location::from(Path::new(""))), line }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_and_origins_of_earlier_versions_are_read() {
        let cursor = Cursor::new(512, 3, [514, 20_480]);
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(text, r#"{"row":512,"shard":3,"at":[514,20480]}"#);
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
        let earlier: Cursor = serde_json::from_str(r#"{"row":512,"line":514,"byte":20480}"#).unwrap();
        assert_eq!(earlier, Cursor::new(512, 0, [514, 20_480]));
        assert!(earlier.is_after(None) && !earlier.is_after(Some(cursor)));

        let origin = Origin::new(&Arc::new(Location::from(Path::new("data/a:b.csv"))), 12);
        let text = serde_json::to_string(&origin).unwrap();
        assert_eq!(text, r#""a:b.csv:12""#);
        let read: Origin = serde_json::from_str(&text).unwrap();
        assert_eq!(read.to_string(), "a:b.csv:12");
        assert_eq!(serde_json::from_str::<Origin>("12").unwrap().to_string(), ":12");
        assert!(serde_json::from_str::<Origin>(r#""a.csv""#).is_err());
    }
}
