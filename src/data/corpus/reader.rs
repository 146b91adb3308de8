//! The seam between corpora and everything that reads them: [`CorpusReader`], and what it gives.

use std::{cmp::Ordering, fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    data::location::Location,
    error::{Error, Result},
};

/// A form that corpora have. Its records come in an order that is always the same.
pub trait CorpusReader: Send {
    /// Where the corpus lies.
    fn location(&self) -> &Location;

    /// The columns.
    fn schema(&self) -> &Schema;

    /// The files that it consists of, in the order in which they are read. A batch never reaches over the end of one.
    fn shards(&self) -> &[Location];

    /// Reads up to `most` records; fewer at the end of a shard, none at the end of the corpus. A malformed record is an error, unless
    /// `skip_malformed`: then it is a record that says so. After an error there is nothing more.
    ///
    /// # Errors
    /// If reading fails, or a record is malformed.
    fn read(&mut self, most: usize, skip_malformed: bool) -> Result<Vec<Record>>;

    /// The place of the next record.
    fn cursor(&self) -> Cursor;

    /// Goes to a place that [`cursor`](Self::cursor) gave for this corpus, without reading what is before it.
    ///
    /// # Errors
    /// If there is no such place, so that the corpus was changed; or reading fails.
    fn seek(&mut self, to: Cursor) -> Result<()>;

    /// What is wrong with the schema, as an error that names where it stands.
    fn refuse_schema(&self, message: String) -> Error;
}

/// The columns of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Their names, in order.
    pub columns: Vec<String>,
    /// Which holds the ids.
    pub id: usize,
    /// Which holds the images, or their paths.
    pub image: usize,
    /// Which holds the captions.
    pub caption: usize,
    /// Whether there are no ids, so that the images' paths, as they are written, serve as ids.
    pub ids_are_paths: bool,
}

/// A place between two records. Only the reader that made it knows what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Cursor {
    /// Records before it, in the whole corpus.
    row: u64,
    /// The shard, counted from 0.
    shard: usize,
    /// The place in the shard, as the reader counts.
    at: [u64; 2],
}

impl Cursor {
    /// A place before which there are `row` records.
    pub(super) fn new(row: u64, shard: usize, at: [u64; 2]) -> Self {
        Self { row, shard, at }
    }

    /// Records before it.
    pub(super) fn row(self) -> u64 {
        self.row
    }

    /// The place in its shard.
    pub(super) fn at(self) -> [u64; 2] {
        self.at
    }

    /// The shard.
    pub(super) fn shard(self) -> usize {
        self.shard
    }

    /// Whether it is after another one of the same corpus; `None` is the beginning.
    pub(crate) fn is_after(self, other: Option<Self>) -> bool {
        self.row > other.map_or(0, |other| other.row)
    }
}

/// A cursor on disk.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Cursor {
        row: u64,
        shard: usize,
        at: [u64; 2],
    },
    /// As token caches of form 2 and older have it.
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

/// Where a record comes from, for people: a file, and a line in it. As text `FILE:LINE`, with the file's name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    file: Arc<Location>,
    line: u64,
}

impl Origin {
    /// A line of a table, counted from 1 with the header; or what has this number in a folder, counted from 1.
    pub(crate) fn new(file: &Arc<Location>, line: u64) -> Self {
        Self { file: Arc::clone(file), line }
    }

    /// An error about what stands here.
    pub(crate) fn refuse(&self, message: String) -> Error {
        Error::Table { path: self.file.as_path().to_path_buf(), line: Some(self.line), message }
    }

    /// How this place is named in a message that begins with the place `from`.
    pub(super) fn seen_from(&self, from: &Self) -> String {
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
            /// As token caches of form 2 and older have it: a line.
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
