//! Writes a zip archive the way PyTorch does: uncompressed, data aligned to 64 bytes, checksums after the data.

use std::{io::Write, path::Path};

use crate::{
    error::{Error, Result},
    files::AtomicFile,
};

/// Alignment of an entry's data in PyTorch's archives, so that it can be mapped.
const ALIGNMENT: u64 = 64;
/// Sizes and offsets from here on need 64 bits.
const WIDE: u64 = 0xffff_ffff;
/// Flags: the checksum follows the bytes, and names are UTF-8.
const FLAGS: u16 = 0x0808;
/// A constant date, 1 January 1980, so that the same content produces the same file.
const DATE: u16 = 0x21;

struct Entry {
    name: String,
    size: u64,
    checksum: u32,
    header: u64,
}

/// Writes an archive.
pub(super) struct ArchiveWriter {
    file: AtomicFile,
    at: u64,
    entries: Vec<Entry>,
}

impl ArchiveWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: AtomicFile::create(path)?, at: 0, entries: Vec::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", self.file.path()))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds an entry of `size` bytes, which `fill` writes in chunks.
    pub(super) fn add(
        &mut self,
        name: &str,
        size: u64,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let header = self.at;
        let wide = size >= WIDE;
        self.write(&local_header(name, wide, header))?;
        let start = self.at;
        let mut checksum = crc32fast::Hasher::new();
        fill(&mut |bytes| {
            checksum.update(bytes);
            self.write(bytes)
        })?;
        let checksum = checksum.finalize();
        if self.at - start != size {
            return Err(Error::Checkpoint {
                path: self.file.path().to_path_buf(),
                message: format!("{name}: expected {size} bytes, got {}", self.at - start),
            });
        }
        let mut descriptor = Record::new(0x0807_4b50).u32(checksum);
        descriptor =
            if wide { descriptor.u64(size).u64(size) } else { descriptor.u32(size as u32).u32(size as u32) };
        self.write(&descriptor.0)?;
        self.entries.push(Entry { name: name.to_owned(), size, checksum, header });
        Ok(())
    }

    /// Writes the central directory and renames the file to its final name.
    pub(super) fn finish(mut self) -> Result<()> {
        let start = self.at;
        for entry in std::mem::take(&mut self.entries) {
            self.write(&central(&entry))?;
            self.entries.push(entry);
        }
        let (size, count) = (self.at - start, self.entries.len() as u64);
        if start >= WIDE || size >= WIDE || count >= 0xffff {
            let record = self.at;
            let wide = Record::new(0x0606_4b50).u64(44).u16(45).u16(45).u32(0).u32(0);
            self.write(&wide.u64(count).u64(count).u64(size).u64(start).0)?;
            self.write(&Record::new(0x0706_4b50).u32(0).u64(record).u32(1).0)?;
        }
        let count = count.min(0xffff) as u16;
        let end = Record::new(0x0605_4b50).u16(0).u16(0).u16(count).u16(count);
        self.write(&end.u32(size.min(WIDE) as u32).u32(start.min(WIDE) as u32).u16(0).0)?;
        self.file.finish()
    }
}

/// A sequence of little-endian fields.
struct Record(Vec<u8>);

impl Record {
    fn new(signature: u32) -> Self {
        Self(signature.to_le_bytes().to_vec())
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// The local header of an entry, padded so that its data is aligned.
fn local_header(name: &str, wide: bool, at: u64) -> Vec<u8> {
    let version = if wide { 45 } else { 20 };
    let own = if wide { 20 } else { 0 };
    // The padding is a separate field (PyTorch's "FB") of at least four bytes.
    let unpadded = at + 30 + name.len() as u64 + own + 4;
    let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
    let (size, extra) = (if wide { u32::MAX } else { 0 }, (own + 4 + padding) as u16);
    let record = Record::new(0x0403_4b50).u16(version).u16(FLAGS).u16(0).u16(0).u16(DATE).u32(0);
    let mut record = record.u32(size).u32(size).u16(name.len() as u16).u16(extra);
    record.0.extend_from_slice(name.as_bytes());
    if wide {
        record = record.u16(1).u16(16).u64(0).u64(0);
    }
    let mut record = record.u16(u16::from_le_bytes(*b"FB")).u16(padding as u16);
    record.0.extend(std::iter::repeat_n(b'Z', padding as usize));
    record.0
}

/// An entry's record in the central directory.
fn central(entry: &Entry) -> Vec<u8> {
    let mut wide = Vec::new();
    if entry.size >= WIDE {
        wide.extend([entry.size, entry.size]);
    }
    if entry.header >= WIDE {
        wide.push(entry.header);
    }
    let version = if wide.is_empty() { 20 } else { 45 };
    let extra = if wide.is_empty() { 0 } else { 4 + 8 * wide.len() as u16 };
    let size = entry.size.min(WIDE) as u32;
    let record = Record::new(0x0201_4b50).u16(version).u16(version).u16(FLAGS).u16(0).u16(0).u16(DATE);
    let record = record.u32(entry.checksum).u32(size).u32(size).u16(entry.name.len() as u16).u16(extra);
    let mut record = record.u16(0).u16(0).u16(0).u32(0).u32(entry.header.min(WIDE) as u32);
    record.0.extend_from_slice(entry.name.as_bytes());
    if extra > 0 {
        record = record.u16(1).u16(extra - 4);
        record = wide.into_iter().fold(record, Record::u64);
    }
    record.0
}
