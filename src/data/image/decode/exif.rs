//! The orientation of an image, from EXIF data or, if that has none, from XMP, read like Pillow.

use image::metadata::Orientation;

/// Tag of the orientation in the first directory of EXIF data.
const ORIENTATION: u16 = 274;

/// The orientation in EXIF data or, if that has no such tag, in XMP. Values outside 1 to 8 are ignored.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let found = exif.and_then(in_exif).or_else(|| in_xmp(xmp?));
    found.unwrap_or(Orientation::NoTransforms)
}

fn of_value(value: u8) -> Orientation {
    Orientation::from_exif(value).unwrap_or(Orientation::NoTransforms)
}

/// The orientation in EXIF data, with or without the prefix `Exif\0\0`; `None` if there is no such tag.
fn in_exif(mut exif: &[u8]) -> Option<Orientation> {
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    in_tiff(exif)
}

/// The orientation in the first directory of a TIFF file (EXIF data has the same format); `None` if there is no such
/// tag.
pub(super) fn in_tiff(bytes: &[u8]) -> Option<Orientation> {
    let directory = Directory::first(bytes)?;
    // If a tag occurs more than once, the last entry counts.
    directory
        .entries()
        .filter(|entry| entry.tag == ORIENTATION)
        .filter_map(|entry| entry.orientation())
        .last()
}

/// The digit after the first `tiff:Orientation="` or `tiff:Orientation>`.
fn in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(at) = rest.windows(NAME.len()).position(|window| window == NAME) {
        rest = &rest[at + NAME.len()..];
        if let Some([digit @ b'0'..=b'9', ..]) = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))
        {
            return Some(of_value(digit - b'0'));
        }
    }
    None
}

/// A directory of a TIFF file.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// Whether offsets and counts have 64 bits (BigTIFF).
    big: bool,
    start: usize,
    count: usize,
}

impl<'a> Directory<'a> {
    /// The first directory; `None` if this is not a TIFF file or it is truncated.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let (big_endian, big) = match bytes.get(..4)? {
            b"II*\0" => (false, false),
            b"MM\0*" | b"MM*\0" => (true, false),
            b"II+\0" => (false, true),
            b"MM\0+" => (true, true),
            _ => return None,
        };
        let mut directory = Self { bytes, big_endian, big, start: 0, count: 0 };
        let (at, length) = if big { (8, 8) } else { (4, 4) };
        let offset = usize::try_from(directory.number(at, length)?).ok()?;
        let length = if big { 8 } else { 2 };
        directory.count = usize::try_from(directory.number(offset, length)?).ok()?;
        directory.start = offset.checked_add(length)?;
        Some(directory)
    }

    /// Reads an unsigned integer of `length` bytes.
    fn number(&self, at: usize, length: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
    }

    /// The entries that are within the file.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'_, 'a>> {
        let size = if self.big { 20 } else { 12 };
        (0..self.count).map_while(move |index| {
            let at = self.start.checked_add(index.checked_mul(size)?)?;
            let count = if self.big { self.number(at + 4, 8)? } else { self.number(at + 4, 4)? };
            let value = at + if self.big { 12 } else { 8 };
            self.bytes.get(at..at.checked_add(size)?)?;
            Some(Entry {
                directory: self,
                tag: u16::try_from(self.number(at, 2)?).ok()?,
                kind: u16::try_from(self.number(at + 2, 2)?).ok()?,
                count,
                value,
            })
        })
    }
}

/// One entry of a directory.
pub(super) struct Entry<'d, 'a> {
    directory: &'d Directory<'a>,
    /// The tag.
    pub(super) tag: u16,
    /// The type of its values.
    kind: u16,
    count: u64,
    /// Offset of its values, or of the pointer to them.
    value: usize,
}

impl Entry<'_, '_> {
    /// The offset of the values and the size of one value in bytes.
    pub(super) fn location(&self) -> Option<(usize, usize)> {
        let unit = match self.kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => return None,
        };
        let inline = if self.directory.big { 8 } else { 4 };
        let length = usize::try_from(self.count).ok()?.checked_mul(unit)?;
        if length == 0 {
            return None;
        }
        let at = if length > inline {
            usize::try_from(self.directory.number(self.value, inline)?).ok()?
        } else {
            self.value
        };
        self.directory.bytes.get(at..at.checked_add(length)?)?;
        Some((at, unit))
    }

    /// The first value, if it is an unsigned integer.
    pub(super) fn unsigned(&self) -> Option<u64> {
        let (at, unit) = self.location()?;
        matches!(self.kind, 1 | 3 | 4 | 13 | 16).then(|| self.directory.number(at, unit))?
    }

    /// All values, if they are unsigned integers.
    pub(super) fn unsigned_list(&self) -> Option<Vec<u64>> {
        let (at, unit) = self.location()?;
        let count = usize::try_from(self.count).ok()?;
        if !matches!(self.kind, 1 | 3 | 4 | 13 | 16) {
            return None;
        }
        (0..count).map(|index| self.directory.number(at + index * unit, unit)).collect()
    }

    /// The first value as an orientation. Pillow compares it to integers whatever its type, except bytes and text,
    /// which are ignored.
    fn orientation(&self) -> Option<Orientation> {
        let (at, unit) = self.location()?;
        let bits = self.directory.number(at, unit)?;
        let half = |at: usize| self.directory.number(at, 4);
        let value = match self.kind {
            // Signed values from 1 to 8 have the same bits as unsigned ones.
            3 | 4 | 6 | 8 | 9 | 13 | 16 => u8::try_from(bits).unwrap_or(0),
            5 | 10 => {
                let (above, below) = (half(at)?, half(at + 4)?);
                let exact = below != 0 && above.is_multiple_of(below);
                if exact { u8::try_from(above / below).unwrap_or(0) } else { 0 }
            }
            11 => integral_float(f64::from(f32::from_bits(u32::try_from(bits).ok()?))),
            12 => integral_float(f64::from_bits(bits)),
            _ => 0,
        };
        Some(of_value(value))
    }
}

fn integral_float(value: f64) -> u8 {
    (1..=8).find(|integer| f64::from(*integer) == value).unwrap_or(0)
}
