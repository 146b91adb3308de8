//! One shard of a token cache: consecutive rows of a table, in a file of codes and, if text is stored, a file with
//! the states or token ids of those captions that no earlier shard has. Both are safetensors; a JSON file next to
//! them, written last, records their lengths and checksums.
//!
//! | tensor | contents |
//! | --- | --- |
//! | `codes` | u16 `[N, L]`, codes of the usable images; the metadata key `ids` lists their ids |
//! | `images` | u8 `[N, 16]`, lookup keys: the start of the SHA-256 of each image's path relative to the cache |
//! | `bytes`, `modified`, `digests` | u64 `[N]`, i64 `[N]` (ns), u8 `[N, 32]`: length, time and SHA-256 of each file |
//! | `captions` | u8 `[M, 16]`, lookup keys: the start of the SHA-256 of each caption |
//! | `mask` | u8 `[M, T]`: 1 for a token, 0 for padding |
//! | `states`, `pooled` | bf16 or f32 `[K, D]`, `[M, D]`: one vector per unmasked token, and one per caption |
//! | `ids` | u32 `[M, T]`: the token ids, if they are stored instead of states |

mod text;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors, tensor::Metadata, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::damaged;
use crate::{
    data::{Cursor, ImageRef, store::Stamp},
    error::{Error, Result},
    files::{
        sealed::{Unsealed, Written, unseal, write_sealed},
        write_atomic,
    },
    tokens::{records::FailedRecord, stamp::ImageState},
    weights::MappedFile,
};
pub(crate) use text::{Text, TextRows};

/// Lookup key of an image or a caption: the first 16 bytes of a SHA-256.
pub(crate) type Key = [u8; 16];

/// The key of `bytes`.
pub(crate) fn key(bytes: &[u8]) -> Key {
    let digest = Sha256::digest(bytes);
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}

/// Path of a shard's index entry, whose presence marks the shard as complete.
pub(crate) fn entry_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.json"))
}

/// Path of a shard's codes.
pub(crate) fn codes_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.codes.safetensors"))
}

/// Path of a shard's text states or ids.
pub(crate) fn text_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.text.safetensors"))
}

/// Index entry of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Index of its table.
    pub(crate) table: usize,
    /// Where its rows start; `None` for the start of the table.
    pub(crate) from: Option<Cursor>,
    /// Where the next shard's rows start; `None` if this is the table's last shard.
    pub(crate) next: Option<Cursor>,
    pub(crate) rows: u64,
    pub(crate) failed: Vec<FailedRecord>,
    /// States of the images of all rows when they were read, in order; empty in shards of format 1.
    #[serde(default)]
    pub(crate) images: Vec<ImageState>,
    pub(crate) codes: Written,
    pub(crate) text: Option<Written>,
}

impl Entry {
    /// Reads an entry. Returns `None` if it is missing, unreadable or modified since it was written. Entries of
    /// format 1 have no checksum.
    pub(crate) fn read(folder: &Path, number: usize, form: u32) -> Option<Self> {
        let bytes = fs::read(entry_path(folder, number)).ok()?;
        let text = match unseal(&bytes) {
            Unsealed::Whole(text) => text,
            Unsealed::Without if form == 1 => bytes,
            _ => return None,
        };
        serde_json::from_slice(&text).ok()
    }

    /// Writes the entry. The shard's other files must exist already.
    pub(crate) fn write(&self, folder: &Path, number: usize) -> Result<()> {
        write_sealed(&entry_path(folder, number), self)
    }

    /// Whether the shard's files match their recorded lengths and checksums.
    pub(crate) fn is_whole(&self, folder: &Path, number: usize) -> bool {
        self.codes.is_whole(&codes_path(folder, number))
            && self.text.as_ref().is_none_or(|text| text.is_whole(&text_path(folder, number)))
    }
}

/// A usable record of a shard under construction.
pub(crate) struct ShardRow {
    pub(crate) id: String,
    pub(crate) image: Key,
    pub(crate) stamp: Stamp,
    pub(crate) digest: [u8; 32],
    pub(crate) codes: Vec<u16>,
}

/// SHA-256 of an image file; `None` if its stamp has changed.
pub(crate) fn unchanged(image: &ImageRef, stamp: Stamp) -> Option<[u8; 32]> {
    let digest = image.digest().ok()?;
    (image.stamp()? == stamp).then_some(digest)
}

/// Writes the codes file of a shard.
pub(crate) fn write_codes(path: &Path, tokens: usize, rows: &[ShardRow]) -> Result<Written> {
    let count = rows.len();
    let gather = |bytes: &dyn Fn(&ShardRow) -> Vec<u8>| rows.iter().flat_map(bytes).collect::<Vec<u8>>();
    let codes = gather(&|row| row.codes.iter().flat_map(|code| code.to_le_bytes()).collect());
    let images = gather(&|row| row.image.to_vec());
    let bytes = gather(&|row| row.stamp.bytes.to_le_bytes().to_vec());
    let modified = gather(&|row| row.stamp.modified.to_le_bytes().to_vec());
    let digests = gather(&|row| row.digest.to_vec());
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let ids = serde_json::to_string(&ids).map_err(|error| Error::invalid(error.to_string()))?;
    let tensors = [
        ("codes", Dtype::U16, vec![count, tokens], codes),
        ("images", Dtype::U8, vec![count, 16], images),
        ("bytes", Dtype::U64, vec![count], bytes),
        ("modified", Dtype::I64, vec![count], modified),
        ("digests", Dtype::U8, vec![count, 32], digests),
    ];
    write(path, &tensors, HashMap::from([("ids".to_owned(), ids)]))
}

fn write(
    path: &Path,
    tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)],
    remarks: HashMap<String, String>,
) -> Result<Written> {
    let refuse = |error: safetensors::SafeTensorError| damaged(path, format!("cannot be written: {error}"));
    let views = tensors
        .iter()
        .map(|(name, kind, shape, bytes)| Ok((*name, TensorView::new(*kind, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    let bytes = safetensors::serialize(views, Some(remarks)).map_err(refuse)?;
    write_atomic(path, &bytes)?;
    Ok(Written::of(&bytes))
}

/// Rows of one tensor in a memory-mapped file.
struct Table {
    file: Arc<MappedFile>,
    start: usize,
    /// Bytes per row.
    row: usize,
    rows: usize,
}

impl Table {
    fn row(&self, at: usize) -> &[u8] {
        &self.file[self.start + at * self.row..][..self.row]
    }
}

/// A memory-mapped safetensors file of a shard.
struct Opened {
    file: Arc<MappedFile>,
    metadata: Metadata,
    data: usize,
}

impl Opened {
    fn new(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&file)
            .map_err(|error| damaged(path, format!("is not a complete safetensors file ({error})")))?;
        Ok(Self { file, metadata, data: 8 + header })
    }

    /// The tensor `name`, with `numbers` values of type `kind` per row.
    fn table(&self, name: &str, kind: Dtype, numbers: usize) -> Result<Table> {
        let refuse = |message: String| damaged(self.file.path(), message);
        let info = self.metadata.info(name).ok_or_else(|| refuse(format!("has no tensor {name}")))?;
        let fits = info.dtype == kind && info.shape.get(1).copied().unwrap_or(1) == numbers;
        let (start, end) = info.data_offsets;
        let row = numbers.checked_mul(kind.bitsize() / 8).filter(|&row| row > 0);
        match (info.shape[..].first(), row) {
            (Some(&rows), Some(row))
                if fits && info.shape.len() <= 2 && rows.checked_mul(row) == Some(end - start) =>
            {
                Ok(Table { file: Arc::clone(&self.file), start: self.data + start, row, rows })
            }
            _ => Err(refuse(format!(
                "tensor {name} is {:?} {:?}, expected rows of {numbers} of {kind:?}",
                info.dtype, info.shape
            ))),
        }
    }
}

/// The codes of a shard, memory-mapped.
pub(crate) struct Codes {
    path: PathBuf,
    vocabulary: usize,
    codes: Table,
    images: Table,
    bytes: Table,
    modified: Table,
    digests: Table,
}

/// Whether an image file still matches a stored entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The file is unchanged, or no longer exists.
    Same,
    /// The file has changed.
    Changed,
}

impl Codes {
    /// Opens a codes file.
    pub(crate) fn open(path: &Path, tokens: usize, vocabulary: usize) -> Result<Self> {
        let opened = Opened::new(path)?;
        let found = Self {
            path: path.to_path_buf(),
            vocabulary,
            codes: opened.table("codes", Dtype::U16, tokens)?,
            // Format 2 and older name this tensor `images`.
            images: opened
                .table("images", Dtype::U8, 16)
                .or_else(|_| opened.table("images", Dtype::U8, 16))?,
            bytes: opened.table("bytes", Dtype::U64, 1)?,
            modified: opened.table("modified", Dtype::I64, 1)?,
            digests: opened.table("digests", Dtype::U8, 32)?,
        };
        let rows = found.codes.rows;
        if [&found.images, &found.bytes, &found.modified, &found.digests]
            .iter()
            .any(|table| table.rows != rows)
        {
            return Err(damaged(path, "its tensors have different numbers of rows"));
        }
        Ok(found)
    }

    /// Lookup keys of the images, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        (0..self.images.rows).map(|at| Key::try_from(self.images.row(at)).unwrap_or_default())
    }

    /// The codes of row `at`.
    pub(crate) fn codes(&self, at: usize) -> Result<Vec<u16>> {
        let codes: Vec<u16> =
            self.codes.row(at).as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        match codes.iter().find(|&&code| usize::from(code) >= self.vocabulary) {
            None => Ok(codes),
            Some(code) => Err(damaged(
                &self.path,
                format!("contains the code {code}, but the vocabulary has {} codes", self.vocabulary),
            )),
        }
    }

    /// SHA-256 of the image file of row `at`.
    pub(crate) fn digest(&self, at: usize) -> [u8; 32] {
        self.digests.row(at).try_into().unwrap_or_default()
    }

    /// Whether row `at` still belongs to the file at `image`. A file with the same length and modification time
    /// counts as unchanged; one with the same length and another time, such as a copy, is hashed.
    pub(crate) fn freshness(&self, at: usize, image: &ImageRef) -> Freshness {
        let number = |table: &Table| <[u8; 8]>::try_from(table.row(at)).unwrap_or_default();
        let (bytes, modified) =
            (u64::from_le_bytes(number(&self.bytes)), i64::from_le_bytes(number(&self.modified)));
        match image.stamp() {
            None if image.exists() => Freshness::Changed,
            None => Freshness::Same,
            Some(stamp) if stamp.bytes != bytes => Freshness::Changed,
            Some(stamp) if stamp.modified == modified => Freshness::Same,
            Some(_) => match image.digest() {
                Ok(digest) if digest == *self.digests.row(at) => Freshness::Same,
                _ => Freshness::Changed,
            },
        }
    }
}
