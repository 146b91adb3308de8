//! Decodes image files. The number of pixels is checked before anything is allocated.

mod bmp;
mod exif;
mod gif;
mod jpeg;
mod png;
mod sniff;
mod tiff;

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

pub use sniff::{FileFormat, SNIFFED_BYTES};

/// Samples of a decoded image, in row-major order.
#[derive(Debug)]
pub enum Samples {
    /// 8 bits per sample.
    Bits8(Vec<u8>),
    /// 16 bits per sample.
    Bits16(Vec<u16>),
}

/// A decoded image as stored, before orientation and cropping.
#[derive(Debug)]
pub struct Decoded {
    /// Stored width in pixels.
    pub width: usize,
    /// Stored height in pixels.
    pub height: usize,
    /// 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
    pub channels: usize,
    /// The samples, `[height, width, channels]`.
    pub samples: Samples,
    /// The orientation in EXIF data or XMP.
    pub orientation: Orientation,
    /// Whether the format itself includes the orientation, as TIFF does: Pillow then applies it when reading, and so
    /// does this module, even if EXIF data is ignored.
    pub always_oriented: bool,
}

/// Limits and leniency of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Images with more pixels are rejected before anything is allocated.
    pub max_pixels: u64,
    /// Whether truncated images are decoded as far as possible, like Pillow with `LOAD_TRUNCATED_IMAGES`; the rest is
    /// gray or black.
    pub truncated: bool,
}

/// Memory limit of the PNG decoder for rows, color profiles and text, in addition to the pixels.
const PNG_WORK_BYTES: u64 = 256 << 20;

/// Decodes the first frame of an image. The format is detected from the content.
///
/// # Errors
/// A message without the file name, if this is not an image, the format is not supported, or the image has more than
/// `max_pixels`, is truncated or corrupt.
pub fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    match FileFormat::of(bytes)? {
        FileFormat::Jpeg => jpeg::decode(bytes, options),
        FileFormat::Png => png::decode(bytes, options),
        FileFormat::WebP => {
            // Truncated files are always rejected, as libwebp does.
            require_complete_riff(bytes)?;
            decode_with_image(bytes, ImageFormat::WebP, options.max_pixels)
        }
        FileFormat::Gif => gif::decode(bytes, options),
        FileFormat::Bmp => bmp::decode(bytes, options),
        FileFormat::Tiff => tiff::decode(bytes, options),
    }
}

/// Hint for truncated images.
const READ_TRUNCATED: &str = "download it again, or set truncated_images to decode it as far as possible";

fn check_pixels(width: u64, height: u64, max_pixels: u64) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("the image has no pixels ({width} x {height})"));
    }
    let pixels = width.saturating_mul(height);
    if pixels > max_pixels {
        return Err(format!(
            "the image is {width} x {height} = {pixels} pixels, more than the limit of {max_pixels}; shrink it or \
             raise the limit"
        ));
    }
    Ok(())
}

fn decode_with_image(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<Decoded, String> {
    let name =
        if format == ImageFormat::WebP { "WebP".to_owned() } else { format!("{format:?}").to_uppercase() };
    let broken = |error: image::ImageError| format!("corrupt or truncated {name}: {error}");
    let mut limits = Limits::default();
    limits.max_alloc =
        Some(if format == ImageFormat::Png { PNG_WORK_BYTES } else { max_pixels.saturating_mul(4) });
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_pixels(u64::from(width), u64::from(height), max_pixels)?;
    let orientation = match format {
        ImageFormat::WebP => {
            let exif = decoder.exif_metadata().unwrap_or_default();
            exif::orientation(exif.as_deref(), decoder.xmp_metadata().unwrap_or_default().as_deref())
        }
        _ => Orientation::NoTransforms,
    };
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let (channels, samples) = match image {
        DynamicImage::ImageLuma8(buffer) => (1, Samples::Bits8(buffer.into_raw())),
        DynamicImage::ImageLumaA8(buffer) => (2, Samples::Bits8(buffer.into_raw())),
        DynamicImage::ImageRgb8(buffer) => (3, Samples::Bits8(buffer.into_raw())),
        DynamicImage::ImageRgba8(buffer) => (4, Samples::Bits8(buffer.into_raw())),
        DynamicImage::ImageLuma16(buffer) => (1, Samples::Bits16(buffer.into_raw())),
        DynamicImage::ImageLumaA16(buffer) => (2, Samples::Bits16(buffer.into_raw())),
        DynamicImage::ImageRgb16(buffer) => (3, Samples::Bits16(buffer.into_raw())),
        DynamicImage::ImageRgba16(buffer) => (4, Samples::Bits16(buffer.into_raw())),
        other => return Err(format!("{name} with samples of type {:?} is not supported", other.color())),
    };
    let (width, height) = (width as usize, height as usize);
    Ok(Decoded { width, height, channels, samples, orientation, always_oriented: false })
}

/// Checks the file length in the RIFF header.
fn require_complete_riff(bytes: &[u8]) -> Result<(), String> {
    let Some(&[a, b, c, d]) = bytes.get(4..8) else { return Err("truncated WebP".to_owned()) };
    let announced = u64::from(u32::from_le_bytes([a, b, c, d])) + 8;
    if (bytes.len() as u64) < announced {
        return Err(format!("truncated WebP: {} bytes of {announced}", bytes.len()));
    }
    Ok(())
}

/// Converts CMYK without a color profile to RGB, bit-identical to Pillow. The levels are amounts of ink.
fn rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let paper = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * paper + 128;
        u8::try_from(paper.saturating_sub((product + (product >> 8)) >> 8)).unwrap_or(u8::MAX)
    })
}

/// Converts full-range YCbCr to RGB, bit-identical to libjpeg.
fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91881 * cr + 32768) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16);
    let blue = y + ((116130 * cb + 32768) >> 16);
    [red, green, blue].map(|level| u8::try_from(level.clamp(0, 255)).unwrap_or(u8::MAX))
}
