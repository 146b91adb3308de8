//! The interface between the formats of corpora and the code that reads them: `TableReader` and its types.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    ColumnNames,
    delimited::{Malformed, Read},
};
use crate::{
    data::location::Location,
    error::{Error, Result},
};

/// Reads one file of a corpus row by row: the only interface between a format and the other code. The order of rows is
/// deterministic.
///
/// A row is text in named columns. The text of an image is its path relative to the folder of the file; the path of an
/// image within a container continues that of the container (see [`store`](crate::data::store)).
pub(super) trait TableReader: Send {
    /// Column names, in order.
    fn header(&self) -> &[String];

    /// The names to look for in the header when these `names` are requested.
    fn names(&self, names: &ColumnNames) -> ColumnNames {
        names.clone()
    }

    /// Declares which columns must be plain text: id, image and caption. By default every field is plain text.
    fn expect_text(&mut self, _columns: &[usize]) {}

    /// Reads the next row. After a malformed one, reading can continue.
    ///
    /// # Errors
    /// If reading the file fails.
    fn read(&mut self) -> Result<Read>;

    /// A field of the current row.
    fn field(&self, column: usize) -> &str;

    /// What rows are counted in: `line`, `row`, `sample`.
    fn unit(&self) -> &'static str;

    /// The number of the current row or malformed row, counted from 1 in that unit.
    fn number(&self) -> u64;

    /// Where the current row is, for messages.
    fn origin(&self, file: &Arc<Location>) -> Origin;

    /// The position of the next row, in the reader's own units.
    fn position(&self) -> [u64; 2];

    /// Seeks to a position returned by [`position`](Self::position) for this file.
    ///
    /// # Errors
    /// If the position is invalid because the file has changed, or reading fails.
    fn seek(&mut self, to: [u64; 2]) -> Result<()>;

    /// Whether another row follows.
    ///
    /// # Errors
    /// If reading fails.
    fn has_more(&mut self) -> Result<bool>;

    /// An error about the columns.
    fn refuse_header(&self, message: String) -> Error;

    /// An error about a malformed row.
    fn refuse_row(&self, row: Malformed) -> Error;
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

/// The origin of a record, for messages: a file, and a line, row or member in it. Displayed as `FILE:LINE`, `FILE:ROW`
/// or `FILE:MEMBER`, with the file name only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    file: Arc<Location>,
    within: Within,
}

/// A position within a file, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Within {
    /// A line of text.
    Line(u64),
    /// A row of a table without lines.
    Row(u64),
    /// A member of an archive.
    Member(String),
}

impl Origin {
    /// An origin in a line of a table, counted from 1 including the header, or in a file of a folder, counted from 1.
    pub(crate) fn new(file: &Arc<Location>, line: u64) -> Self {
        Self { file: Arc::clone(file), within: Within::Line(line) }
    }

    /// An origin in a row of a table without lines, counted from 1.
    pub(super) fn row(file: &Arc<Location>, row: u64) -> Self {
        Self { file: Arc::clone(file), within: Within::Row(row) }
    }

    /// An origin in a member of an archive.
    pub(super) fn member(file: &Arc<Location>, name: &str) -> Self {
        Self { file: Arc::clone(file), within: Within::Member(name.to_owned()) }
    }

    /// An error about this record.
    pub(crate) fn refuse(&self, message: String) -> Error {
        let (line, message) = match &self.within {
            Within::Line(line) => (Some(*line), message),
            Within::Row(row) => (None, format!("row {row}: {message}")),
            Within::Member(name) => (None, format!("{name}: {message}")),
        };
        Error::Table { path: self.file.as_path().to_path_buf(), line, message }
    }

    /// Describes this location in a message that starts with the location `from`.
    pub(super) fn relative_to(&self, from: &Self) -> String {
        let (here, within) = match &self.within {
            Within::Line(line) => ("on", format!("line {line}")),
            Within::Row(row) => ("in", format!("row {row}")),
            Within::Member(name) => ("in", name.clone()),
        };
        match self.file == from.file {
            true => format!("{here} {within}"),
            false => format!("in {}, {within}", self.file),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.name();
        match &self.within {
            Within::Line(number) | Within::Row(number) => write!(formatter, "{name}:{number}"),
            Within::Member(member) => write!(formatter, "{name}:{member}"),
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, within) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` is not FILE:LINE"))?;
        let within = match within.parse() {
            Ok(line) => Within::Line(line),
            Err(_) => Within::Member(within.to_owned()),
        };
        Ok(Self { file: Arc::new(Location::from(Path::new(file))), within })
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
            Stored::Line(line) => Ok(Self::new(&Arc::new(Location::from(Path::new(""))), line)),
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
        let file = Arc::new(Location::from(Path::new("data/0.tar")));
        for origin in [Origin::row(&file, 3), Origin::member(&file, "a/007.jpg")] {
            let text = serde_json::to_string(&origin).unwrap();
            assert_eq!(serde_json::from_str::<Origin>(&text).unwrap().to_string(), origin.to_string());
        }
        assert_eq!(Origin::member(&file, "a/007.jpg").to_string(), "0.tar:a/007.jpg");
    }
}
