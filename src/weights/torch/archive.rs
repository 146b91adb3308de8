//! Reads the directory of a zip archive as PyTorch writes it: uncompressed, with 64-bit sizes where necessary.
//!
//! Our own reader takes a hundred lines, because we only need the offsets of the entries in a mapped file, and the
//! guarantee that no two entries overlap. Source: PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.

use std::{collections::HashSet, ops::Range};

/// A file in an archive.
pub(super) struct ArchiveEntry {
    pub(super) name: String,
    /// Byte range of its content.
    pub(super) data: Range<usize>,
}

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
/// Size of the end record without its comment.
const END_BYTES: usize = 22;
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// Reads little-endian integers at offsets of a file.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u16(self, at: usize) -> Option<usize> {
        self.array(at).map(|bytes| u16::from_le_bytes(bytes).into())
    }

    fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Option<usize> {
        self.array(at).and_then(|bytes| u64::from_le_bytes(bytes).try_into().ok())
    }
}

/// The central directory: start, end, and number of entries.
struct Directory {
    range: Range<usize>,
    count: usize,
}

/// All entries, in directory order.
pub(super) fn entries(file: &[u8]) -> Result<Vec<ArchiveEntry>, String> {
    let bytes = Bytes(file);
    let directory = directory(bytes)
        .ok_or("a zip archive with no table of contents: truncated or corrupt; download or save it again")?;
    let mut entries = Vec::new();
    let mut spans = Vec::new();
    let mut names = HashSet::new();
    let mut at = directory.range.start;
    for _ in 0..directory.count {
        let (entry, span, next) = entry(bytes, at, directory.range.clone())?;
        if !names.insert(entry.name.clone()) {
            return Err(format!("the zip archive has two entries called {}; refused", entry.name));
        }
        spans.push((span.start, span.end, entries.len()));
        entries.push(entry);
        at = next;
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        let [(_, end, one), (start, _, two)] = *pair else { continue };
        if end > start {
            let (one, two): (&ArchiveEntry, &ArchiveEntry) = (&entries[one], &entries[two]);
            return Err(format!("the zip archive's entries {} and {} overlap; refused", one.name, two.name));
        }
    }
    Ok(entries)
}

fn directory(bytes: Bytes<'_>) -> Option<Directory> {
    let length = bytes.0.len();
    let latest = length.checked_sub(END_BYTES)?;
    let earliest = latest.saturating_sub(usize::from(u16::MAX));
    // The comment after the record must end with the file; otherwise the signature was found within the comment.
    let is_end =
        |&at: &usize| bytes.u32(at) == Some(END) && bytes.u16(at + 20) == Some(length - at - END_BYTES);
    let end = (earliest..=latest).rev().find(is_end)?;
    let one_disk = bytes.u16(end + 4)? == 0 && bytes.u16(end + 6)? == 0;
    let (mut count, mut size, mut start, mut limit) =
        (bytes.u16(end + 10)?, bytes.u32(end + 12)? as usize, bytes.u32(end + 16)? as usize, end);
    let locator = end.checked_sub(20);
    if let Some(locator) = locator.filter(|&locator| bytes.u32(locator) == Some(END_64_LOCATOR)) {
        let record = bytes.u64(locator + 8)?;
        if record > locator || bytes.u32(record)? != END_64 {
            return None;
        }
        (count, size, start, limit) =
            (bytes.u64(record + 32)?, bytes.u64(record + 40)?, bytes.u64(record + 48)?, record);
    }
    let range = start..start.checked_add(size)?;
    let fits = one_disk && range.end <= limit && count <= size / CENTRAL_BYTES;
    fits.then_some(Directory { range, count })
}

/// The entry whose directory record is at an offset, the span of its header and content, and the offset of the next
/// record.
fn entry(
    bytes: Bytes<'_>,
    at: usize,
    directory: Range<usize>,
) -> Result<(ArchiveEntry, Range<usize>, usize), String> {
    let record = CentralRecord::read(bytes, at, directory.end)
        .ok_or("the zip archive's table of contents is corrupt; download or save it again")?;
    let name = String::from_utf8_lossy(record.name).into_owned();
    let refuse = |what: &str| format!("the zip archive's entry {name} {what}");
    if record.flags & 1 != 0 {
        return Err(refuse("is encrypted; decrypt it first"));
    }
    if record.method != 0 || record.packed != record.size {
        return Err(refuse(
            "is compressed, which PyTorch never does; unpack the archive and pack it with `zip -0`",
        ));
    }
    let data = local(bytes, &record).filter(|data| data.end <= directory.start);
    let data = data.ok_or_else(|| refuse("is not where the table of contents says; refused"))?;
    let span = record.header..data.end;
    Ok((ArchiveEntry { name, data }, span, record.next))
}

/// The byte range of an entry according to its local header, which must agree on the name.
fn local(bytes: Bytes<'_>, record: &CentralRecord<'_>) -> Option<Range<usize>> {
    let header = record.header;
    let name_at = header.checked_add(LOCAL_BYTES)?;
    if bytes.u32(header)? != LOCAL || bytes.u16(header + 8)? != 0 {
        return None;
    }
    let (name, extra) = (bytes.u16(header + 26)?, bytes.u16(header + 28)?);
    if bytes.0.get(name_at..name_at + name)? != record.name {
        return None;
    }
    let start = name_at + name + extra;
    Some(start..start.checked_add(record.size)?)
}

struct CentralRecord<'a> {
    name: &'a [u8],
    flags: usize,
    method: usize,
    packed: usize,
    size: usize,
    /// Offset of the local header.
    header: usize,
    next: usize,
}

impl<'a> CentralRecord<'a> {
    fn read(bytes: Bytes<'a>, at: usize, end: usize) -> Option<Self> {
        if bytes.u32(at)? != CENTRAL {
            return None;
        }
        let (name, extra, remark) = (bytes.u16(at + 28)?, bytes.u16(at + 30)?, bytes.u16(at + 32)?);
        let name_at = at + CENTRAL_BYTES;
        let extra_at = name_at + name;
        let next = extra_at + extra + remark;
        if next > end {
            return None;
        }
        let sizes = [bytes.u32(at + 24)?, bytes.u32(at + 20)?, bytes.u32(at + 42)?];
        let [size, packed, header] = sizes_in_64_bits(bytes, sizes, extra_at..extra_at + extra)?;
        Some(Self {
            name: bytes.0.get(name_at..extra_at)?,
            flags: bytes.u16(at + 8)?,
            method: bytes.u16(at + 10)?,
            packed,
            size,
            header,
            next,
        })
    }
}

/// Sizes and offset as 64-bit values: those that do not fit 32 bits are in the extra field, in this order.
fn sizes_in_64_bits(bytes: Bytes<'_>, sizes: [u32; 3], extra: Range<usize>) -> Option<[usize; 3]> {
    const WIDE: usize = 1;
    if !sizes.contains(&u32::MAX) {
        return Some(sizes.map(|value| value as usize));
    }
    let mut at = extra.start;
    while at + 4 <= extra.end {
        let (id, length) = (bytes.u16(at)?, bytes.u16(at + 2)?);
        let end = at + 4 + length;
        if end > extra.end {
            return None;
        }
        if id == WIDE {
            let mut from = at + 4;
            let mut wide = [0; 3];
            for (wide, sizes) in wide.iter_mut().zip(sizes) {
                *wide = sizes as usize;
                if sizes == u32::MAX {
                    if from + 8 > end {
                        return None;
                    }
                    *wide = bytes.u64(from)?;
                    from += 8;
                }
            }
            return Some(wide);
        }
        at = end;
    }
    None
}
