//! PNG, with checksums and truncation checked as strictly as in Pillow.

use std::io::{Read, Write};

use flate2::{Compression, Decompress, FlushDecompress, Status, bufread::ZlibDecoder, write::ZlibEncoder};
use image::{ImageFormat, metadata::Orientation};

use super::{DecodeOptions, Decoded, READ_TRUNCATED, check_pixels, decode_with_image, exif};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1A\n";

/// Maximum size of a decompressed text chunk, as in Pillow.
const TEXT_BYTES: u64 = 1 << 20;

/// Decodes a PNG, or the first frame of an animation.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    // Checked before the decoder allocates a row.
    if let Some(header) = Header::of(bytes) {
        check_pixels(header.width, header.height, options.max_pixels)?;
    }
    let decode = |bytes: &[u8]| decode_with_image(bytes, ImageFormat::Png, options.max_pixels);
    let decoded = match decode(bytes) {
        Ok(decoded) => decoded,
        Err(error) => match repaired(bytes, options)? {
            Some(repaired) => decode(&repaired)?,
            None => return Err(error),
        },
    };
    Ok(Decoded { orientation: orientation(bytes), ..decoded })
}

/// A chunk, as far as the file goes.
struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    /// Whether the contents are complete and the checksum is correct.
    sound: bool,
}

/// The chunks of a file, up to the end or the first truncated one.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes.strip_prefix(SIGNATURE).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let content = &after[..length.min(after.len())];
        let sound = after.get(length..).and_then(<[u8]>::first_chunk).is_some_and(|sum| {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(kind);
            hasher.update(content);
            u32::from_be_bytes(*sum) == hasher.finalize()
        });
        rest = after.get(length.saturating_add(4)..).unwrap_or_default();
        Some(Chunk { kind: *kind, content, sound })
    })
}

/// The header fields that determine the length of the pixel data.
struct Header {
    width: u64,
    height: u64,
    bits_per_pixel: u64,
    interlaced: bool,
}

impl Header {
    /// Parses the first chunk; `None` if it is not a valid header.
    fn of(bytes: &[u8]) -> Option<Self> {
        let header = chunks(bytes).next().filter(|chunk| &chunk.kind == b"IHDR")?.content;
        let number = |at: usize| Some(u64::from(u32::from_be_bytes(*header.get(at..)?.first_chunk()?)));
        let &[bits, color, _, _, interlaced] = header.get(8..13)? else { return None };
        let channels = match color {
            0 | 3 => 1,
            2 => 3,
            4 => 2,
            6 => 4,
            _ => return None,
        };
        let bits_per_pixel = matches!(bits, 1 | 2 | 4 | 8 | 16).then(|| channels * u64::from(bits))?;
        let interlaced = match interlaced {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self { width: number(0)?, height: number(4)?, bits_per_pixel, interlaced })
    }

    /// Number of rows and bytes per row, including the filter byte, in stored order: of the image or of its seven
    /// passes.
    fn rows(&self) -> Vec<(u64, u64)> {
        // First column and row of each pass, and their steps.
        const PASSES: [[u64; 4]; 7] = [
            [0, 8, 0, 8],
            [4, 8, 0, 8],
            [0, 4, 4, 8],
            [2, 4, 0, 4],
            [0, 2, 2, 4],
            [1, 2, 0, 2],
            [0, 1, 1, 2],
        ];
        let passes: &[[u64; 4]] = if self.interlaced { &PASSES } else { &[[0, 1, 0, 1]] };
        let size = |all: u64, start: u64, step: u64| all.saturating_sub(start).div_ceil(step);
        passes
            .iter()
            .map(|[left, across, top, down]| {
                (size(self.width, *left, *across), size(self.height, *top, *down))
            })
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .map(|(columns, rows)| (rows, 1 + (columns * self.bits_per_pixel).div_ceil(8)))
            .collect()
    }
}

/// Repairs files that the decoder rejects but Pillow reads: pixel data with wrong checksums, and anything after it;
/// with [`DecodeOptions::truncated`] also truncated pixel data, whose missing rows are set to 0. `None` if nothing
/// needs repair.
fn repaired(bytes: &[u8], options: DecodeOptions) -> Result<Option<Vec<u8>>, String> {
    let Some(header) = Header::of(bytes) else { return Ok(None) };
    let before: Vec<Chunk> = chunks(bytes).take_while(|chunk| &chunk.kind != b"IDAT").collect();
    let is_needed = |chunk: &&Chunk| matches!(&chunk.kind, b"IHDR" | b"PLTE" | b"tRNS");
    let is_critical = |chunk: &Chunk| chunk.kind[0].is_ascii_uppercase();
    // Pillow also requires valid chunks before the pixels; truncated images may lack ancillary ones.
    if !before.iter().all(|chunk| chunk.sound || options.truncated && !is_critical(chunk)) {
        return Ok(None);
    }
    let packed: Vec<u8> = chunks(bytes)
        .skip(before.len())
        .take_while(|chunk| &chunk.kind == b"IDAT")
        .flat_map(|chunk| chunk.content)
        .copied()
        .collect();
    let rows = header.rows();
    let length: u64 = rows.iter().map(|(rows, bytes)| rows * bytes).sum();
    let length = usize::try_from(length).map_err(|_| "the PNG is too large".to_owned())?;
    let mut filtered = inflated(&packed, length);
    if filtered.len() < length {
        if !options.truncated {
            return Err(format!(
                "corrupt or truncated PNG: the pixel data is incomplete or damaged; {READ_TRUNCATED}"
            ));
        }
        // Only complete rows are kept.
        let mut complete = 0;
        for (count, bytes) in rows {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            let fitting =
                ((filtered.len() - complete) / bytes).min(usize::try_from(count).unwrap_or(usize::MAX));
            complete += fitting * bytes;
            if fitting as u64 != count {
                break;
            }
        }
        filtered.truncate(complete);
        filtered.resize(length, 0);
    }
    let failed = |error: std::io::Error| format!("the PNG cannot be repaired: {error}");
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&filtered).map_err(failed)?;
    let mut file = SIGNATURE.to_vec();
    for chunk in before.iter().filter(is_needed).filter(|chunk| chunk.sound) {
        append(&mut file, chunk.kind, chunk.content);
    }
    append(&mut file, *b"IDAT", &encoder.finish().map_err(failed)?);
    append(&mut file, *b"IEND", &[]);
    Ok(Some(file))
}

fn append(file: &mut Vec<u8>, kind: [u8; 4], content: &[u8]) {
    file.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    file.extend(kind);
    file.extend(content);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&kind);
    hasher.update(content);
    file.extend(hasher.finalize().to_be_bytes());
}

/// Decompresses at most `most` bytes, up to the end or the first error.
fn inflated(packed: &[u8], most: usize) -> Vec<u8> {
    let mut decompress = Decompress::new(true);
    let mut found = Vec::new();
    while found.len() < most {
        // Memory grows with the data, not with what the header claims.
        found.reserve((most - found.len()).min(1 << 16));
        let before = (decompress.total_in(), found.len());
        let input = usize::try_from(before.0).unwrap_or(usize::MAX).min(packed.len());
        let status = decompress.decompress_vec(&packed[input..], &mut found, FlushDecompress::Sync);
        let stuck = before == (decompress.total_in(), found.len());
        if stuck || !matches!(status, Ok(Status::Ok | Status::BufError)) {
            break;
        }
    }
    found.truncate(most);
    found
}

/// The orientation in any chunk, including those after the pixels.
fn orientation(bytes: &[u8]) -> Orientation {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for chunk in chunks(bytes) {
        if &chunk.kind == b"eXIf" {
            exif = Some(chunk.content.to_vec());
        } else if let Some((key, text)) = text(&chunk) {
            match key {
                b"exif" => exif = Some(text),
                b"Raw profile type exif" => profile = Some(text),
                b"XML:com.adobe.xmp" => xmp = Some(text),
                _ => {}
            }
        }
    }
    let exif = exif.or_else(|| raw_profile(&profile?));
    exif::orientation(exif.as_deref(), xmp.as_deref())
}

/// Keyword and decompressed contents of a text chunk.
fn text<'a>(chunk: &Chunk<'a>) -> Option<(&'a [u8], Vec<u8>)> {
    let split = |bytes: &'a [u8]| {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some((&bytes[..end], &bytes[end + 1..]))
    };
    let unpacked = |packed: &[u8]| {
        let mut text = Vec::new();
        ZlibDecoder::new(packed).take(TEXT_BYTES).read_to_end(&mut text).ok().map(|_| text)
    };
    if !matches!(&chunk.kind, b"tEXt" | b"zTXt" | b"iTXt") {
        return None;
    }
    let (key, rest) = split(chunk.content)?;
    let text = match &chunk.kind {
        b"tEXt" => rest.to_vec(),
        b"zTXt" => unpacked(rest.strip_prefix(&[0])?)?,
        _ => {
            let (&[is_packed, method], rest) = rest.split_first_chunk()?;
            let (_language, rest) = split(rest)?;
            let (_translated, rest) = split(rest)?;
            match (is_packed, method) {
                (0, _) => rest.to_vec(),
                (_, 0) => unpacked(rest)?,
                _ => return None,
            }
        }
    };
    Some((key, text))
}

/// Decodes an ImageMagick profile: hexadecimal digits from the fourth line on, after an empty line, the name and the
/// length.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.splitn(4, |byte| *byte == b'\n').nth(3)?;
    let digits: Vec<u8> = lines.iter().filter(|byte| !byte.is_ascii_whitespace()).copied().collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}
