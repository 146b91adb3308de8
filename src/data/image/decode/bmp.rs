//! Windows bitmaps.

use std::borrow::Cow;

use image::ImageFormat;

use super::{DecodeOptions, Decoded, READ_TRUNCATED, check_pixels, decode_with_image};

/// Decodes a bitmap.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    let mut file = Cow::Borrowed(bytes);
    let layout = Layout::of(bytes);
    if let Some(layout) = &layout {
        check_pixels(layout.width, layout.height, options.max_pixels)?;
        if layout.offset_is_missing {
            let start = u32::try_from(layout.start).unwrap_or(u32::MAX);
            file.to_mut()[10..14].copy_from_slice(&start.to_le_bytes());
        }
        if let Some(rows) = &layout.rows {
            let end = rows.end(layout.start, layout.height);
            // The padding of the last row may be missing.
            let needed = end - (rows.stride - rows.used);
            if file.len() < needed && layout.start <= file.len() {
                if !options.truncated {
                    let there = file.len();
                    return Err(format!("truncated BMP: {there} of {needed} bytes; {READ_TRUNCATED}"));
                }
                // Only complete rows are kept; the rest is 0.
                let there = file.len().saturating_sub(layout.start);
                let kept = there / rows.stride + usize::from(there % rows.stride >= rows.used);
                file.to_mut().truncate(layout.start + kept * rows.stride);
            }
            if (layout.start..end).contains(&file.len()) {
                file.to_mut().resize(end, 0);
            }
        }
    }
    let plain = layout.as_ref().map(|layout| layout.plain(&file, options)).transpose()?.flatten();
    decode_with_image(plain.as_deref().unwrap_or(&file), ImageFormat::Bmp, options.max_pixels)
}

/// Layout of the pixel data.
struct Layout {
    width: u64,
    height: u64,
    start: usize,
    /// Whether the file header lacks the pixel offset: pixels then follow the palette.
    offset_is_missing: bool,
    /// Row sizes; `None` if the rows are run-length encoded.
    rows: Option<Rows>,
    /// Bits per pixel.
    bits: u16,
    /// The header's compression code: 0 none, 1 and 2 run lengths, 3 bit masks.
    packing: u32,
    /// Offset of the palette; it ends where the pixels start.
    palette: usize,
}

struct Rows {
    /// Bytes from one row to the next.
    stride: usize,
    /// Bytes per row that hold pixels.
    used: usize,
}

impl Rows {
    fn end(&self, start: usize, height: u64) -> usize {
        start.saturating_add(self.stride.saturating_mul(usize::try_from(height).unwrap_or(usize::MAX)))
    }
}

impl Layout {
    fn of(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let header = long(14)?;
        let is_core = header == 12;
        let (width, height, bits, packing) = if is_core {
            (u64::from(short(18)?), u64::from(short(20)?), short(24)?, 0)
        } else {
            // A negative height means that rows are stored from top to bottom.
            let height = i32::from_le_bytes(*bytes.get(22..)?.first_chunk()?);
            (u64::from(long(18)?), u64::from(height.unsigned_abs()), short(28)?, long(30)?)
        };
        let colors = match (bits, is_core) {
            (9.., _) => 0,
            (_, true) => 1 << bits,
            (_, false) => match long(46)? {
                0 => 1 << bits,
                colors => u64::from(colors),
            },
        };
        let masks = if header == 40 && packing == 3 { 12 } else { 0 };
        let offset = long(10)?;
        let palette = 14 + u64::from(header) + masks;
        let after_palette = palette + colors * if is_core { 3 } else { 4 };
        let start = if offset == 0 { after_palette } else { u64::from(offset) };
        let used = width.checked_mul(u64::from(bits))?.div_ceil(8);
        let stride = usize::try_from(used.next_multiple_of(4)).ok()?;
        let rows = (matches!(packing, 0 | 3) && matches!(bits, 1 | 2 | 4 | 8 | 16 | 24 | 32))
            .then_some(Rows { stride, used: usize::try_from(used).ok()? });
        Some(Self {
            width,
            height,
            start: usize::try_from(start).ok()?,
            offset_is_missing: offset == 0,
            rows,
            bits,
            packing,
            palette: usize::try_from(palette).ok()?,
        })
    }

    /// Rewrites the file so that the decoder reads it like Pillow; `None` if that is not necessary. The decoder rounds
    /// 5 and 6 bits differently, and leaves pixels that the run lengths skip black, whereas Pillow gives them the first
    /// color.
    fn plain(&self, bytes: &[u8], options: DecodeOptions) -> Result<Option<Vec<u8>>, String> {
        match (self.bits, self.packing) {
            (8, 1) | (4, 2) => self.without_runs(bytes, options).map(Some),
            (16, 0 | 3) => Ok(self.with_24_bits(bytes)),
            _ => Ok(None),
        }
    }

    /// Converts run lengths to a file with 8 bits per pixel.
    fn without_runs(&self, bytes: &[u8], options: DecodeOptions) -> Result<Vec<u8>, String> {
        let (width, height) = (self.width as usize, self.height as usize);
        let (mut indices, is_complete) = indices_of_runs(bytes, self.start, [width, height], self.bits == 4);
        if !is_complete && !options.truncated {
            return Err(format!("truncated BMP: the run lengths end before the image; {READ_TRUNCATED}"));
        }
        indices.resize(width * height, 0);
        let end = self.start.min(self.palette.saturating_add(4 * 256)).min(bytes.len());
        let mut palette = bytes.get(self.palette..end).unwrap_or_default().to_vec();
        palette.resize(4 * 256, 0);
        Ok(file_of(bytes, 8, &palette, indices.chunks_exact(width)))
    }

    /// Converts masks to a file with 24 bits per pixel, if the masks are ones that Pillow supports.
    fn with_24_bits(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        const MASKS: usize = 54;
        let mask = |at: usize| Some(u32::from_le_bytes(*bytes.get(MASKS + at..)?.first_chunk()?));
        let green_bits = match self.packing {
            0 => 5,
            _ => match [mask(0)?, mask(4)?, mask(8)?] {
                [0x7C00, 0x03E0, 0x1F] => 5,
                [0xF800, 0x07E0, 0x1F] => 6,
                _ => return None,
            },
        };
        let level = |value: u16, bits: u16| {
            let most = (1_u16 << bits) - 1;
            u8::try_from(u32::from(value & most) * 255 / u32::from(most)).unwrap_or(u8::MAX)
        };
        let color = |pixel: &[u8; 2]| {
            let pixel = u16::from_le_bytes(*pixel);
            [level(pixel, 5), level(pixel >> 5, green_bits), level(pixel >> (5 + green_bits), 5)]
        };
        let rows = self.rows.as_ref()?;
        let height = self.height as usize;
        // A truncated file was padded before, including the last row.
        let pixels = bytes.get(self.start..)?.chunks(rows.stride).filter_map(|row| row.get(..rows.used));
        let rows: Vec<Vec<u8>> =
            pixels.take(height).map(|row| row.as_chunks::<2>().0.iter().flat_map(color).collect()).collect();
        (rows.len() == height).then(|| file_of(bytes, 24, &[], rows.iter().map(Vec::as_slice)))
    }
}

/// A file with the header of `like` and these pixels, row by row in the order of that file.
fn file_of<'a>(like: &[u8], bits: u16, palette: &[u8], rows: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    const HEADERS: usize = 54;
    let is_core = like.get(14..18) == Some(&12_u32.to_le_bytes());
    let size = |from: std::ops::Range<usize>| like.get(from).unwrap_or_default().to_vec();
    let start = u32::try_from(HEADERS + palette.len()).unwrap_or(u32::MAX);
    let mut file = [b"BM".as_slice(), &[0; 8], &start.to_le_bytes(), &40_u32.to_le_bytes()].concat();
    if is_core {
        file.extend([size(18..20), vec![0; 2], size(20..22), vec![0; 2]].concat());
    } else {
        file.extend(size(18..26));
    }
    file.extend([1, 0]);
    file.extend(bits.to_le_bytes());
    file.resize(HEADERS, 0);
    file.extend_from_slice(palette);
    for row in rows {
        file.extend_from_slice(row);
        file.resize(file.len() + row.len().next_multiple_of(4) - row.len(), 0);
    }
    file
}

/// Decodes run lengths to indices, like Pillow, and returns whether they are complete: they reach the end of the
/// image or an end marker.
fn indices_of_runs(
    bytes: &[u8],
    start: usize,
    [width, height]: [usize; 2],
    of_4_bits: bool,
) -> (Vec<u8>, bool) {
    let most = width * height;
    let (mut indices, mut at, mut column) = (Vec::new(), start, 0);
    while indices.len() < most {
        let Some(&[count, code]) = bytes.get(at..at.saturating_add(2)) else { return (indices, false) };
        at += 2;
        let halves = |byte: u8| [byte >> 4, byte & 0x0F];
        match (usize::from(count), code) {
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                column = 0;
            }
            (0, 1) => return (indices, true),
            (0, 2) => {
                let Some(&[right, up]) = bytes.get(at..at + 2) else { return (indices, false) };
                at += 2;
                let passed = usize::from(right) + usize::from(up) * width;
                indices.resize(most.min(indices.len() + passed), 0);
                column = indices.len() % width;
            }
            (0, count) => {
                let fitting = usize::from(count).min(most - indices.len());
                let length = if of_4_bits { fitting.div_ceil(2) } else { fitting };
                let there = bytes.get(at..).map_or(&[][..], |rest| &rest[..length.min(rest.len())]);
                if of_4_bits {
                    indices.extend(there.iter().flat_map(|byte| halves(*byte)).take(fitting));
                } else {
                    indices.extend_from_slice(there);
                }
                if there.len() < length {
                    return (indices, false);
                }
                column += usize::from(count);
                // Such pixels are padded to an even offset.
                at = (at + length).next_multiple_of(2);
            }
            (count, code) => {
                let count = count.min(width.saturating_sub(column));
                let pair = if of_4_bits { halves(code) } else { [code; 2] };
                indices.extend(pair.into_iter().cycle().take(count));
                column += count;
            }
        }
    }
    indices.truncate(most);
    (indices, true)
}
