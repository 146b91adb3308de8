//! The corpus: records of an id, an image and a caption, streamed in constant memory in any supported format.
//!
//! All other code reads a [`Corpus`]. A format is an implementation of `TableReader`, which reads one file, and a line
//! in [`format`](mod@format); the files of a corpus are read one after another.

pub mod columns;
mod csv;
pub mod delimited;
pub mod file_kind;
pub(crate) mod files;
mod folder;
pub mod format;
mod jsonl;
pub mod moved_paths;
pub(crate) mod parquet;
mod pattern;
mod read_error;
pub mod reader;
pub mod rows;
mod shards;
mod webdataset;

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    fmt,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use columns::ColumnNames;
pub use format::CorpusFormat;
pub use reader::{Cursor, Origin, Schema};
use shards::CorpusReader;
use webdataset::PATH;

use super::{image::ImageRef, location::Location, store::container::container_of};
use crate::{
    error::{Error, Result},
    files::hexadecimal,
};

/// The text that the upstream code substitutes for an empty caption (`dataset/datasets_csv.py`); see
/// [`Corpus::with_empty_caption`].
pub const RELEASED_EMPTY_CAPTION: &str = "empty caption";

/// Number of records that the iterator reads in advance.
const AHEAD: usize = 256;

/// One record of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index in the corpus, counted from 0.
    pub row: u64,
    /// Its location in the input.
    pub origin: Origin,
    /// The id, as written.
    pub id: String,
    /// The image.
    pub image: ImageRef,
    /// The caption, or the text substituted for an empty one.
    pub caption: String,
    /// All columns in schema order, as written.
    pub fields: Vec<String>,
    /// Why the record is malformed, if such records are skipped; see [`Corpus::skipping_malformed`]. All fields
    /// except the location are then empty, and the id names the location.
    pub malformed: Option<String>,
}

impl Record {
    /// Fails if the record is malformed.
    ///
    /// # Errors
    /// If [`malformed`](Self::malformed) is set.
    pub fn check(&self) -> Result<()> {
        match &self.malformed {
            None => Ok(()),
            Some(message) => Err(Error::invalid(format!("the row is malformed: {message}"))),
        }
    }
}

/// The local folders and archives that contain the records' images, without duplicates. An output must not be or
/// contain one of them.
pub(crate) fn image_folders(records: &[Record]) -> Vec<PathBuf> {
    let folders: BTreeSet<&Path> =
        records.iter().filter_map(|record| record.image.local()?.parent()).collect();
    // The folder of a member is within its archive, and the archive is what must not be replaced.
    let file = |folder: &Path| container_of(folder).unwrap_or(folder).to_path_buf();
    folders.into_iter().map(file).collect()
}

/// Consecutive records of one shard; see [`Corpus::batch`].
#[derive(Clone, Debug)]
pub struct RecordBatch {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next batch starts; `None` at the end of the corpus.
    pub next: Option<Cursor>,
}

/// An open corpus: an iterator over its [`Record`]s that ends after the first error.
pub struct Corpus {
    reader: CorpusReader,
    names: ColumnNames,
    format: Option<CorpusFormat>,
    ahead: VecDeque<Record>,
    /// The record after the last batch, and its position.
    peeked: Option<(Cursor, Record)>,
    empty_caption: String,
    id_hashes: Option<HashSet<u64, BuildHasherDefault<AlreadyHashed>>>,
    skip_malformed: bool,
    ended: bool,
}

impl Corpus {
    /// Opens the corpus at `path`, detects its format and reads its schema. The path is that of a file or a folder, a
    /// brace list or a wildcard pattern.
    ///
    /// # Errors
    /// If it does not exist, has an unsupported format, has no records, or lacks one of the columns.
    pub fn open(path: impl AsRef<Path>, names: &ColumnNames) -> Result<Self> {
        Self::open_as(path, names, None)
    }

    /// Like [`open`](Self::open), but in the given format, if there is one.
    ///
    /// # Errors
    /// See [`open`](Self::open); also if it is in another format.
    pub fn open_as(
        path: impl AsRef<Path>,
        names: &ColumnNames,
        format: Option<CorpusFormat>,
    ) -> Result<Self> {
        Ok(Self {
            reader: CorpusReader::open(path.as_ref(), names, format)?,
            names: names.clone(),
            format,
            ahead: VecDeque::new(),
            peeked: None,
            empty_caption: String::new(),
            id_hashes: None,
            skip_malformed: false,
            ended: false,
        })
    }

    /// With `true`, a malformed record is not an error but a [`Record`] with [`malformed`](Record::malformed) set,
    /// whose image cannot be read. It is counted and reported like any other unusable record.
    #[must_use]
    pub fn skipping_malformed(mut self, skip: bool) -> Self {
        self.skip_malformed = skip;
        self
    }

    /// Sets the text that replaces an empty caption in [`Record::caption`]: the empty string by default,
    /// [`RELEASED_EMPTY_CAPTION`] for upstream behavior. [`Record::fields`] is not affected.
    #[must_use]
    pub fn with_empty_caption(mut self, text: &str) -> Self {
        text.clone_into(&mut self.empty_caption);
        self
    }

    /// Makes a duplicate id an error. Takes 8 to 16 bytes per record; hash collisions are resolved by reading the
    /// corpus again, so distinct ids are never reported. Only records read after this call are compared.
    #[must_use]
    pub fn refusing_duplicates(mut self) -> Self {
        self.id_hashes = Some(HashSet::default());
        self
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// The folder that relative image paths in [`Record::fields`] start at.
    pub fn folder(&self) -> &Path {
        &self.reader.files().folder
    }

    fn reopen(&self) -> Result<CorpusReader> {
        CorpusReader::open(self.path(), &self.names, self.format)
    }

    /// Its columns.
    pub fn schema(&self) -> &Schema {
        self.reader.schema()
    }

    /// An error about the schema, with its location.
    pub fn refuse_schema(&self, message: impl Into<String>) -> Error {
        self.reader.refuse_schema(message.into())
    }

    /// Identifies the contents: the SHA-256 of the file in hexadecimal or, for several files, the SHA-256 over theirs.
    /// For a corpus that contains its images, it is the SHA-256 over its records only: images are identified one by one
    /// when they are read.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<String> {
        if self.reader.files().format.contains_images() {
            return self.identity_of_records();
        }
        let digest = |shard: &Location| shard.digest().map_err(Error::io("read", shard.as_path()));
        match &self.reader.files().files[..] {
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

    fn identity_of_records(&self) -> Result<String> {
        let mut all = Sha256::new();
        let mut reader = self.reopen()?;
        loop {
            let records = reader.read(Vec::new(), AHEAD, true)?;
            if records.is_empty() {
                return Ok(hexadecimal(&all.finalize()));
            }
            for Record { fields, malformed, .. } in &records {
                for text in fields.iter().chain(malformed) {
                    all.update((text.len() as u64).to_le_bytes());
                    all.update(text);
                }
            }
        }
    }

    /// Reads a batch that starts at the cursor of an earlier batch, or at the first record: `most` records, fewer at
    /// the end of a shard or if their text is long (64 MiB). A batch never spans two shards.
    ///
    /// # Errors
    /// If the corpus has changed so that the cursor is invalid, a record is malformed, or reading fails.
    pub fn batch(&mut self, from: Option<Cursor>, most: usize) -> Result<RecordBatch> {
        self.ahead.clear();
        let mut records = Vec::new();
        match (from, self.peeked.take()) {
            // Compressed data cannot be sought in, so a batch that follows the last one continues from there.
            (Some(cursor), Some((at, record))) if cursor == at && most > 0 => records.push(record),
            (Some(cursor), _) => self.reader.seek(cursor)?,
            (None, _) => self.reader = self.reopen()?,
        }
        let mut records = self.reader.read(records, most, self.skip_malformed)?;
        records.iter_mut().for_each(|record| self.fill_caption(record));
        let next = self.reader.cursor();
        let peeked = self.reader.read(Vec::new(), 1, self.skip_malformed)?.pop();
        self.peeked = peeked.map(|record| (next, record));
        Ok(RecordBatch { records, next: self.peeked.is_some().then_some(next) })
    }

    /// Reads all remaining records; a duplicate id is an error. Includes malformed ones if they are skipped.
    ///
    /// # Errors
    /// If a record is malformed (unless those are skipped) or an id occurs twice, or reading fails.
    pub fn read_all(self) -> Result<Vec<Record>> {
        self.refusing_duplicates().collect()
    }

    /// Reads all remaining records like [`read_all`](Self::read_all) and counts them.
    ///
    /// # Errors
    /// See [`read_all`](Self::read_all).
    pub fn count_records(self) -> Result<u64> {
        self.refusing_duplicates().try_fold(0, |count, record| record.map(|_| count + 1))
    }

    /// Like [`read_all`](Self::read_all), but returns usable and malformed records separately and warns about the
    /// latter.
    ///
    /// # Errors
    /// See [`read_all`](Self::read_all).
    pub fn read_usable(self) -> Result<(Vec<Record>, Vec<Record>)> {
        let path = self.path().to_path_buf();
        let (usable, malformed): (Vec<_>, Vec<_>) =
            self.read_all()?.into_iter().partition(|record| record.malformed.is_none());
        if let Some((first, message)) =
            malformed.first().and_then(|first| Some((first, first.malformed.as_ref()?)))
        {
            let rows = if malformed.len() == 1 { "malformed row was" } else { "malformed rows were" };
            tracing::warn!(
                "{}: {} {rows} skipped; the first is {}: {message}",
                path.display(),
                malformed.len(),
                first.origin.relative_to(&first.origin)
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
            let records = self.reader.read(Vec::new(), AHEAD, self.skip_malformed)?;
            self.ahead.extend(records);
        }
        let Some(mut record) = self.ahead.pop_front() else { return Ok(None) };
        self.fill_caption(&mut record);
        if record.malformed.is_none() {
            self.refuse_duplicate(&record)?;
        }
        Ok(Some(record))
    }

    fn refuse_duplicate(&mut self, record: &Record) -> Result<()> {
        let Some(id_hashes) = &mut self.id_hashes else { return Ok(()) };
        let mut hasher = DefaultHasher::new();
        record.id.hash(&mut hasher);
        if id_hashes.insert(hasher.finish()) {
            return Ok(());
        }
        let Some(earlier) = self.earlier(record)? else { return Ok(()) };
        let (id, location) = (&record.id, earlier.relative_to(&record.origin));
        let of_keys = self.reader.files().format == CorpusFormat::WebDataset;
        Err(record.origin.refuse(match self.schema().ids_are_paths {
            false if of_keys => format!(
                "the id `{id}` is already {location}; ids must be unique, and keys may repeat between shards: take the \
                 image's path as the id with --set columns.id={PATH}, or --id-column {PATH} if the command has it"
            ),
            false => format!("the id `{id}` is already {location}; ids must be unique"),
            true => format!(
                "the image `{id}` is already {location}; without a column of ids, each image may occur only once: \
                 add a column of ids"
            ),
        }))
    }

    /// The location of the first earlier record with the same id.
    fn earlier(&self, record: &Record) -> Result<Option<Origin>> {
        let mut reader = self.reopen()?;
        loop {
            let records = reader.read(Vec::new(), AHEAD, true)?;
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

/// A hasher for keys that are hashes already.
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
