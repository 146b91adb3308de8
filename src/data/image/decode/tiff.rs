//! TIFF: the first page.

use std::{borrow::Cow, io::Cursor};

use image::metadata::Orientation;
use tiff::{
    ColorType, TiffError,
    decoder::{ChunkType, Decoder, DecodingResult, Limits},
    tags::Tag,
};

use super::{
    DecodeOptions, Decoded, READ_TRUNCATED, Samples, check_pixels,
    exif::{self, Directory},
    rgb_of_cmyk, rgb_of_ycbcr,
};

/// Maximum size of an entry: strip offsets, a color table or a profile.
const ENTRY_BYTES: usize = 16 << 20;

/// Maximum number of pixels of a tile, if it exceeds the limit of the image.
const TILE_PIXELS: u64 = 1 << 22;

/// Values of `PhotometricInterpretation` with special handling.
mod photometric {
    pub(super) const WHITE_IS_ZERO: u64 = 0;
    pub(super) const BLACK_IS_ZERO: u16 = 1;
    pub(super) const PALETTE: u64 = 3;
}

/// Decodes the first page.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    let mut file = Cow::Borrowed(bytes);
    let kind = value(bytes, Tag::PhotometricInterpretation);
    // The decoder supports no palettes and inverts only some bit depths, so it reads plain levels and the rest is
    // done here.
    let is_plain = !matches!(kind, Some(photometric::PALETTE | photometric::WHITE_IS_ZERO));
    if !is_plain {
        set_photometric(file.to_mut());
    }
    complete(&mut file, options)?;
    let mut page = Page::open(&file, options.max_pixels)?;
    let (width, height) = (page.width, page.height);
    let (channels, samples) = match kind {
        Some(photometric::PALETTE) => (3, Samples::Bits8(page.colors_of_palette()?)),
        _ => page.samples(kind == Some(photometric::WHITE_IS_ZERO))?,
    };
    if samples.len() != width * height * channels {
        return Err("corrupt TIFF: its headers are inconsistent".to_owned());
    }
    let orientation = exif::in_tiff(bytes).unwrap_or_else(|| page.orientation_in_xmp());
    Ok(Decoded { width, height, channels, samples, orientation, always_oriented: true })
}

/// The first value of an entry with unsigned integers.
fn value(bytes: &[u8], tag: Tag) -> Option<u64> {
    Directory::first(bytes)?.entries().find(|entry| entry.tag == tag.to_u16())?.unsigned()
}

fn set_photometric(bytes: &mut [u8]) {
    let location = Directory::first(bytes).and_then(|directory| {
        directory.entries().find(|entry| entry.tag == Tag::PhotometricInterpretation.to_u16())?.location()
    });
    if let Some((at, unit)) = location {
        let level = if bytes.starts_with(b"MM") {
            [[0; 6].as_slice(), &photometric::BLACK_IS_ZERO.to_be_bytes()].concat()
        } else {
            [photometric::BLACK_IS_ZERO.to_le_bytes().as_slice(), &[0; 6]].concat()
        };
        let level = if bytes.starts_with(b"MM") { &level[8 - unit..] } else { &level[..unit] };
        bytes[at..at + unit].copy_from_slice(level);
    }
}

/// If truncated images are decoded, sets missing uncompressed pixel data to 0, in complete rows.
fn complete(file: &mut Cow<'_, [u8]>, options: DecodeOptions) -> Result<(), String> {
    const PLAIN: u64 = 1;
    if !options.truncated || value(file, Tag::Compression).unwrap_or(PLAIN) != PLAIN {
        return Ok(());
    }
    let page = Page::open(file, options.max_pixels)?;
    let Some(chunks) = page.chunks() else { return Ok(()) };
    let length = file.len() as u64;
    let Some(end) = chunks.iter().map(|[start, size]| start.saturating_add(*size)).max() else {
        return Ok(());
    };
    // At most what the pixels can take, whatever the entries claim.
    let most = length.saturating_add(options.max_pixels.saturating_mul(8));
    if end <= length || end > most {
        return Ok(());
    }
    let row = page.bytes_of_row.max(1);
    let cut = chunks.iter().filter(|[start, size]| *start < length && start.saturating_add(*size) > length);
    let kept = cut.map(|[start, _]| start + (length - start) / row * row).min().unwrap_or(length);
    let (kept, end) = (usize::try_from(kept), usize::try_from(end));
    if let (Ok(kept), Ok(end)) = (kept, end) {
        file.to_mut().truncate(kept);
        file.to_mut().resize(end, 0);
    }
    Ok(())
}

impl Samples {
    fn len(&self) -> usize {
        match self {
            Self::Bits8(samples) => samples.len(),
            Self::Bits16(samples) => samples.len(),
        }
    }
}

/// The first page, with its header parsed.
struct Page<'a> {
    decoder: Decoder<Cursor<&'a [u8]>>,
    bytes: &'a [u8],
    width: usize,
    height: usize,
    color: ColorType,
    /// Bytes per row of a strip or tile, uncompressed.
    bytes_of_row: u64,
}

fn broken(error: TiffError) -> String {
    match error {
        TiffError::UnsupportedError(what) => format!("unsupported TIFF: {what}; save it as RGB"),
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("truncated TIFF: the pixel data is incomplete; {READ_TRUNCATED}")
        }
        error => format!("corrupt or truncated TIFF: {error}"),
    }
}

impl<'a> Page<'a> {
    fn open(bytes: &'a [u8], max_pixels: u64) -> Result<Self, String> {
        let most = usize::try_from(max_pixels.saturating_mul(8)).unwrap_or(usize::MAX);
        let mut limits = Limits::default();
        limits.decoding_buffer_size = most;
        limits.intermediate_buffer_size = most.max(1 << 22);
        limits.ifd_value_size = ENTRY_BYTES;
        let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(broken)?.with_limits(limits);
        let (width, height) = decoder.dimensions().map_err(broken)?;
        check_pixels(u64::from(width), u64::from(height), max_pixels)?;
        let color = decoder.colortype().map_err(broken)?;
        let (across, down) = decoder.chunk_dimensions();
        let is_tiled = decoder.get_chunk_type() == ChunkType::Tile;
        if is_tiled && u64::from(across) * u64::from(down) > max_pixels.max(TILE_PIXELS) {
            return Err(format!("corrupt TIFF: its tiles are {across} x {down} pixels"));
        }
        let mut formats =
            decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(broken)?.unwrap_or_default();
        formats.retain(|format| *format != 1);
        if !formats.is_empty() {
            return Err("unsupported TIFF: signed or floating-point samples; save it with 8 bits per sample"
                .to_owned());
        }
        let is_planar = value(bytes, Tag::PlanarConfiguration) == Some(2);
        let samples = if is_planar { 1 } else { value(bytes, Tag::SamplesPerPixel).unwrap_or(1) };
        let bits = u64::from(color.bit_depth()).saturating_mul(samples);
        let bytes_of_row = u64::from(across).saturating_mul(bits).div_ceil(8);
        let page =
            Self { decoder, bytes, width: width as usize, height: height as usize, color, bytes_of_row };
        page.check_compressed(max_pixels)?;
        Ok(page)
    }

    /// Offset and size of each strip or tile.
    fn chunks(&self) -> Option<Vec<[u64; 2]>> {
        let directory = Directory::first(self.bytes)?;
        let list = |tags: [Tag; 2]| {
            directory
                .entries()
                .find(|entry| tags.iter().any(|tag| tag.to_u16() == entry.tag))?
                .unsigned_list()
        };
        let starts = list([Tag::StripOffsets, Tag::TileOffsets])?;
        let sizes = list([Tag::StripByteCounts, Tag::TileByteCounts])?;
        Some(std::iter::zip(starts, sizes).map(|(start, size)| [start, size]).collect())
    }

    /// JPEG strips have their own headers, and YCbCr may be subsampled only with JPEG.
    fn check_compressed(&self, max_pixels: u64) -> Result<(), String> {
        const JPEG: u64 = 7;
        let is_jpeg = value(self.bytes, Tag::Compression) == Some(JPEG);
        if !is_jpeg && matches!(self.color, ColorType::YCbCr(_)) {
            return Err("unsupported TIFF: YCbCr without JPEG compression; save it as RGB".to_owned());
        }
        for [start, size] in self.chunks().filter(|_| is_jpeg).unwrap_or_default() {
            let range = usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(size)).ok());
            let strip = range.and_then(|(start, end)| self.bytes.get(start..end.min(self.bytes.len())));
            if let Some((width, height)) = super::jpeg::claimed_size(strip.unwrap_or_default()) {
                check_pixels(width.max(1), height.max(1), max_pixels.max(TILE_PIXELS))?;
            }
        }
        Ok(())
    }

    fn orientation_in_xmp(&mut self) -> Orientation {
        let xmp = self.decoder.get_tag_u8_vec(Tag::Unknown(700)).ok();
        exif::orientation(None, xmp.as_deref())
    }

    /// The interleaved samples of all planes; those with less than 8 bits are still packed.
    fn read(&mut self) -> Result<DecodingResult, String> {
        let mut result = DecodingResult::U8(Vec::new());
        let layout = self.decoder.read_image_to_buffer(&mut result).map_err(broken)?;
        if result.as_buffer(0).as_bytes().len() < layout.complete_len {
            return Err("the TIFF is too large".to_owned());
        }
        if layout.planes <= 1 {
            return Ok(result);
        }
        let pixels = self.width * self.height;
        let contradiction = || "corrupt TIFF: its headers are inconsistent".to_owned();
        fn interleaved<T: Copy>(planes: &[T], pixels: usize, count: usize) -> Option<Vec<T>> {
            (planes.len() >= pixels * count).then(|| {
                (0..pixels).flat_map(|at| (0..count).map(move |plane| planes[plane * pixels + at])).collect()
            })
        }
        match result {
            DecodingResult::U8(planes) if self.color.bit_depth() == 8 => {
                interleaved(&planes, pixels, layout.planes).map(DecodingResult::U8).ok_or_else(contradiction)
            }
            DecodingResult::U16(planes) => {
                interleaved(&planes, pixels, layout.planes).map(DecodingResult::U16).ok_or_else(contradiction)
            }
            _ => Err(self.unread()),
        }
    }

    fn unread(&self) -> String {
        format!("unsupported TIFF: samples of type {:?}; save it as RGB with 8 bits per sample", self.color)
    }

    /// Unpacks levels of less than 8 bits to one byte each; returns 8-bit levels unchanged.
    fn levels(&self, packed: &[u8], bits: u8) -> Result<Vec<u8>, String> {
        if bits == 8 {
            return Ok(packed.to_vec());
        }
        let stride = (self.width * usize::from(bits)).div_ceil(8);
        if !matches!(bits, 1 | 2 | 4) || packed.len() < stride * self.height {
            return Err(self.unread());
        }
        let level = |row: &[u8], column: usize| {
            let bit = column * usize::from(bits);
            row[bit / 8] >> (8 - usize::from(bits) - bit % 8) & ((1 << bits) - 1)
        };
        let rows = packed.chunks_exact(stride).take(self.height);
        Ok(rows.flat_map(|row| (0..self.width).map(move |column| level(row, column))).collect())
    }

    fn colors_of_palette(&mut self) -> Result<Vec<u8>, String> {
        let (ColorType::Gray(bits), DecodingResult::U8(packed)) = (self.color, self.read()?) else {
            return Err(self.unread());
        };
        let table = self.decoder.get_tag_u16_vec(Tag::ColorMap).map_err(broken)?;
        let colors = table.len() / 3;
        let indices = self.levels(&packed, bits)?;
        let color = |index: u8| {
            let index = usize::from(index);
            // Indices beyond the end of a short color table are black, as in Pillow.
            [0, 1, 2].map(
                |channel| if index < colors { table[channel * colors + index].to_be_bytes()[0] } else { 0 },
            )
        };
        Ok(indices.into_iter().flat_map(color).collect())
    }

    /// Channels and samples of images without a palette.
    fn samples(&mut self, white_is_zero: bool) -> Result<(usize, Samples), String> {
        let read = self.read()?;
        let extra = self.decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(broken)?;
        let extra = extra.unwrap_or_default().first().copied();
        let high =
            |samples: &[u16]| -> Vec<u8> { samples.iter().map(|sample| sample.to_be_bytes()[0]).collect() };
        Ok(match (self.color, read) {
            (ColorType::Gray(16), DecodingResult::U16(mut levels)) => {
                if white_is_zero {
                    levels.iter_mut().for_each(|level| *level = !*level);
                }
                (1, Samples::Bits16(levels))
            }
            (ColorType::Gray(bits), DecodingResult::U8(packed)) => {
                let mut levels = self.levels(&packed, bits)?;
                let most = u8::MAX >> (8 - bits.clamp(1, 8));
                for level in &mut levels {
                    *level = (*level * (u8::MAX / most)) ^ if white_is_zero { u8::MAX } else { 0 };
                }
                (1, Samples::Bits8(levels))
            }
            (ColorType::Multiband { bit_depth: 8, num_samples: 2 }, DecodingResult::U8(mut levels)) => {
                if white_is_zero {
                    levels.iter_mut().step_by(2).for_each(|level| *level = !*level);
                }
                match extra {
                    Some(2) => (2, Samples::Bits8(levels)),
                    Some(0) => (1, Samples::Bits8(levels.into_iter().step_by(2).collect())),
                    _ => return Err(self.unread()),
                }
            }
            (ColorType::RGB(8), DecodingResult::U8(levels)) => (3, Samples::Bits8(levels)),
            (ColorType::RGB(16), DecodingResult::U16(levels)) => (3, Samples::Bits16(levels)),
            (ColorType::RGBA(8), DecodingResult::U8(levels)) => (4, Samples::Bits8(straight(levels, extra))),
            (ColorType::RGBA(16), DecodingResult::U16(levels)) if extra == Some(1) => {
                (4, Samples::Bits8(straight(high(&levels), extra)))
            }
            (ColorType::RGBA(16), DecodingResult::U16(levels)) => (4, Samples::Bits16(levels)),
            (ColorType::CMYK(8), DecodingResult::U8(inks)) => (3, Samples::Bits8(paint(&inks))),
            (ColorType::CMYK(16), DecodingResult::U16(inks)) => (3, Samples::Bits8(paint(&high(&inks)))),
            (ColorType::YCbCr(8), DecodingResult::U8(levels)) => (
                3,
                Samples::Bits8(
                    levels.as_chunks::<3>().0.iter().flat_map(|pixel| rgb_of_ycbcr(*pixel)).collect(),
                ),
            ),
            _ => return Err(self.unread()),
        })
    }
}

fn paint(inks: &[u8]) -> Vec<u8> {
    inks.as_chunks::<4>().0.iter().flat_map(|inks| rgb_of_cmyk(*inks)).collect()
}

/// Converts premultiplied colors (`ExtraSamples` is 1) to straight alpha, like Pillow.
fn straight(mut levels: Vec<u8>, extra: Option<u16>) -> Vec<u8> {
    if extra == Some(1) {
        for [colors @ .., alpha] in levels.as_chunks_mut::<4>().0 {
            for color in colors.iter_mut().filter(|_| *alpha > 0) {
                *color = u8::try_from(u32::from(*color) * 255 / u32::from(*alpha)).unwrap_or(u8::MAX);
            }
        }
    }
    levels
}
