//! The corpus: records of an id, an image and a caption, streamed in constant memory from whatever form it has.
//!
//! [`Corpus`] is what everybody reads. A form of corpora is one [`CorpusReader`], and one line in [`reader_of`].

pub mod columns;
mod csv;
pub mod delimited;
pub mod file_kind;
pub mod moved_paths;
pub mod reader;
pub mod rows;

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    fmt,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use columns::ColumnNames;
pub use reader::{CorpusReader, Cursor, Origin, Schema};

use super::{image::ImageRef, location::Location};
use crate::{
    error::{Error, Result},
    files::hexadecimal,
};

/// What the released code puts in place of an empty caption (`dataset/datasets_csv.py`); for
/// [`Corpus::with_empty_caption`].
pub const RELEASED_EMPTY_CAPTION: &str = "empty caption";

/// Records read ahead by the iterator.
const AHEAD: usize = 256;

/// One record of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number in the corpus, counted from 0.
    pub row: u64,
    /// Where it stands.
    pub origin: Origin,
    /// The id, as it is written.
    pub id: String,
    /// The image.
    pub image: ImageRef,
    /// The caption, or the text set for empty captions.
    pub caption: String,
    /// All columns in the order of the schema, as they are written.
    pub fields: Vec<String>,
    /// Why the record cannot be used; only where such records are skipped, see [`Corpus::skipping_malformed`]. All else but its place
    /// is then empty, and the id names the place.
    pub malformed: Option<String>,
}

impl Record {
    /// Refuses a malformed record.
    ///
    /// # Errors
    /// If it is one.
    pub fn check(&self) -> Result<()> {
        match &self.malformed {
            None => Ok(()),
            Some(message) => Err(Error::invalid(format!("the row is malformed: {message}"))),
        }
    }
}

/// The folders of this machine whose images records name, each once. An output must not be one of them, nor hold one.
pub(crate) fn image_folders(records: &[Record]) -> Vec<PathBuf> {
    let folders: BTreeSet<&Path> =
        records.iter().filter_map(|record| record.image.local()?.parent()).collect();
    folders.into_iter().map(Path::to_path_buf).collect()
}

/// Consecutive records of one shard; see [`Corpus::batch`].
#[derive(Clone, Debug)]
pub struct Batch {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next batch begins; `None` at the end of the corpus.
    pub next: Option<Cursor>,
}

/// A corpus being read; an iterator over its [`Record`]s, which ends after the first error.
pub struct Corpus {
    reader: Box<dyn CorpusReader>,
    names: ColumnNames,
    ahead: VecDeque<Record>,
    empty_caption: String,
    seen: Option<HashSet<u64, BuildHasherDefault<AlreadyHashed>>>,
    skip_malformed: bool,
    ended: bool,
}

/// Opens the corpus at `path` in the form that it has.
fn reader_of(path: &Path, names: &ColumnNames) -> Result<Box<dyn CorpusReader>> {
    Ok(Box::new(csv::CsvReader::open(path, names)?))
}

impl Corpus {
    /// Opens the corpus at `path` and reads its schema.
    ///
    /// # Errors
    /// If there is none, it has no form that is read, no record, or lacks one of the columns.
    pub fn open(path: impl AsRef<Path>, names: &ColumnNames) -> Result<Self> {
        Ok(Self {
            reader: reader_of(path.as_ref(), names)?,
            names: names.clone(),
            ahead: VecDeque::new(),
            empty_caption: String::new(),
            seen: None,
            skip_malformed: false,
            ended: false,
        })
    }

    /// With `true`, a record that is malformed is no error: it is a [`Record`] that says so, and that fails wherever its image is
    /// wanted. So it is counted and reported as any record that cannot be used.
    #[must_use]
    pub fn skipping_malformed(mut self, skip: bool) -> Self {
        self.skip_malformed = skip;
        self
    }

    /// Sets what stands in [`Record::caption`] for an empty caption: the empty string unless set,
    /// [`RELEASED_EMPTY_CAPTION`] to do as the released code does. [`Record::fields`] is left as written.
    #[must_use]
    pub fn with_empty_caption(mut self, text: &str) -> Self {
        text.clone_into(&mut self.empty_caption);
        self
    }

    /// Makes an id that came before an error. Takes 8 to 16 bytes per record; hits are confirmed by reading the corpus
    /// again, so different ids are never taken for one. Only records read from here on are compared.
    #[must_use]
    pub fn refusing_duplicates(mut self) -> Self {
        self.seen = Some(HashSet::default());
        self
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.reader.location().as_path()
    }

    /// Its columns.
    pub fn schema(&self) -> &Schema {
        self.reader.schema()
    }

    /// What is wrong with the schema, as an error that names where it stands.
    pub fn refuse_schema(&self, message: impl Into<String>) -> Error {
        self.reader.refuse_schema(message.into())
    }

    /// What the corpus is known by: the SHA-256 of its file, or over those of its shards where it has several, in hexadecimal.
    ///
    /// # Errors
    /// If a shard cannot be read.
    pub fn identity(&self) -> Result<String> {
        let digest = |shard: &Location| shard.digest().map_err(Error::io("read", shard.as_path()));
        match self.reader.shards() {
            [only] => Ok(hexadecimal(&digest(only)?)),
            shards => {
                let mut all = Sha256::new();
                for shard in shards {
                    all.update(digest(shard)?);
                }
                Ok(hexadecimal(&all.finalize()))
            }
        }
    }

    /// Reads a batch that begins at a place that an earlier batch named, or at the first record: `most` records, fewer at the end of a
    /// shard. Work is cut here, so that a part of it never belongs to two shards.
    ///
    /// # Errors
    /// If the corpus was changed so that there is no such place, a record is malformed, or reading fails.
    pub fn batch(&mut self, from: Option<Cursor>, most: usize) -> Result<Batch> {
        self.ahead.clear();
        match from {
            Some(place) => self.reader.seek(place)?,
            None => self.reader = reader_of(self.path(), &self.names)?,
        }
        let mut records = self.reader.read(most, self.skip_malformed)?;
        records.iter_mut().for_each(|record| self.fill_caption(record));
        let next = self.reader.cursor();
        let has_more = !self.reader.read(1, self.skip_malformed)?.is_empty();
        Ok(Batch { records, next: has_more.then_some(next) })
    }

    /// Reads every remaining record, refusing duplicate ids. Malformed ones are among them where they are skipped.
    ///
    /// # Errors
    /// The first error of any record.
    pub fn read_all(self) -> Result<Vec<Record>> {
        self.refusing_duplicates().collect()
    }

    /// Reads every remaining record as [`read_all`](Self::read_all) does, and counts them.
    ///
    /// # Errors
    /// The first error of any record.
    pub fn count_records(self) -> Result<u64> {
        self.refusing_duplicates().try_fold(0, |count, record| record.map(|_| count + 1))
    }

    /// As [`read_all`](Self::read_all), malformed records apart from the others, and warned of.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn read_usable(self) -> Result<(Vec<Record>, Vec<Record>)> {
        let path = self.path().to_path_buf();
        let (usable, malformed): (Vec<_>, Vec<_>) =
            self.read_all()?.into_iter().partition(|record| record.malformed.is_none());
        if let Some((first, message)) =
            malformed.first().and_then(|first| Some((first, first.malformed.as_ref()?)))
        {
            let rows = if malformed.len() == 1 { "malformed row was" } else { "malformed rows were" };
            tracing::warn!(
                "{}: {} {rows} skipped, the first {}: {message}",
                path.display(),
                malformed.len(),
                first.origin.seen_from(&first.origin)
            );
        }
        Ok((usable, malformed))
    }

    fn fill_caption(&self, record: &mut Record) {
        if record.caption.is_empty() && record.malformed.is_none() {
            record.caption.clone_from(&self.empty_caption);
        }
    }

    fn next_record(&mut self) -> Result<Option<Record>> {
        if self.ahead.is_empty() {
            self.ahead.extend(self.reader.read(AHEAD, self.skip_malformed)?);
        }
        let Some(mut record) = self.ahead.pop_front() else { return Ok(None) };
        self.fill_caption(&mut record);
        if record.malformed.is_none() {
            self.refuse_seen(&record)?;
        }
        Ok(Some(record))
    }

    fn refuse_seen(&mut self, record: &Record) -> Result<()> {
        let Some(seen) = &mut self.seen else { return Ok(()) };
        let mut hasher = DefaultHasher::new();
        record.id.hash(&mut hasher);
        if seen.insert(hasher.finish()) {
            return Ok(());
        }
        let Some(earlier) = self.earlier(record)? else { return Ok(()) };
        let (id, place) = (&record.id, earlier.seen_from(&record.origin));
        Err(record.origin.refuse(match self.schema().ids_are_paths {
            false => format!("the id `{id}` is already {place}; every row needs an id of its own"),
            true => format!(
                "the image `{id}` is already {place}; its path is its id, so it must be there once: give the table a column of ids"
            ),
        }))
    }

    /// Where the first record before this one stands that has the same id.
    fn earlier(&self, record: &Record) -> Result<Option<Origin>> {
        let mut reader = reader_of(self.path(), &self.names)?;
        loop {
            let records = reader.read(AHEAD, true)?;
            if records.is_empty() {
                return Ok(None);
            }
            for earlier in records {
                if earlier.row >= record.row {
                    return Ok(None);
                }
                if earlier.malformed.is_none() && earlier.id == record.id {
                    return Ok(Some(earlier.origin));
                }
            }
        }
    }
}

impl fmt::Debug for Corpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Corpus").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Iterator for Corpus {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_record().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Passes on a key that is a hash already.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
