//! Bytes of an image file to pixels, with the number of pixels checked before any is allocated.

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

/// Samples of a decoded image, row by row, pixel by pixel.
#[derive(Debug)]
pub enum Samples {
    /// 8 bits a sample.
    Bits8(Vec<u8>),
    /// 16 bits a sample.
    Bits16(Vec<u16>),
}

/// A decoded image as it is stored, before orientation and cropping.
#[derive(Debug)]
pub struct Decoded {
    /// Width in pixels as stored.
    pub width: usize,
    /// Height in pixels as stored.
    pub height: usize,
    /// 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
    pub channels: usize,
    /// The samples, `[height, width, channels]`.
    pub samples: Samples,
    /// How the stored image is to be turned, from its EXIF data or XMP.
    pub orientation: Orientation,
    /// Whether the orientation is part of the format, as TIFF's is: then Pillow turns the image when it reads it, and so does this
    /// even where EXIF data is ignored.
    pub always_turned: bool,
}

/// What is decoded and what refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Images with more pixels are refused before anything is allocated for them.
    pub max_pixels: u64,
    /// Whether images whose pixel data is cut are decoded as far as it goes, the rest gray or black, as under Pillow's
    /// `LOAD_TRUNCATED_IMAGES`.
    pub truncated: bool,
}

/// Memory that the PNG decoder may take for rows, color profiles and text beside the pixels.
const PNG_WORK_BYTES: u64 = 256 << 20;

/// Decodes the first frame of an image, its format recognized from its content.
///
/// # Errors
/// What is wrong, as a sentence without the file's name: not an image, a format that is not read, more than
/// `max_pixels`, truncated or corrupt.
pub fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    match FileFormat::of(bytes)? {
        FileFormat::Jpeg => jpeg::decode(bytes, options),
        FileFormat::Png => png::decode(bytes, options),
        FileFormat::WebP => {
            // Cut ones are refused in any case, as by libwebp.
            require_whole_riff(bytes)?;
            decode_with_image(bytes, ImageFormat::WebP, options.max_pixels)
        }
        FileFormat::Gif => gif::decode(bytes, options),
        FileFormat::Bmp => bmp::decode(bytes, options),
        FileFormat::Tiff => tiff::decode(bytes, options),
    }
}

/// How a refused image whose pixel data is cut is read after all.
const READ_TRUNCATED: &str = "download it again, or set truncated_images to read what there is";

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
        other => return Err(format!("{name} with samples of the kind {:?} is not read", other.color())),
    };
    let (width, height) = (width as usize, height as usize);
    Ok(Decoded { width, height, channels, samples, orientation, always_turned: false })
}

/// The header of a RIFF file says how long the file is.
fn require_whole_riff(bytes: &[u8]) -> Result<(), String> {
    let Some(&[a, b, c, d]) = bytes.get(4..8) else { return Err("truncated WebP".to_owned()) };
    let announced = u64::from(u32::from_le_bytes([a, b, c, d])) + 8;
    if (bytes.len() as u64) < announced {
        return Err(format!("truncated WebP: {} bytes of {announced}", bytes.len()));
    }
    Ok(())
}

/// CMYK without a color profile to RGB, to the bit as Pillow converts it. The levels are amounts of ink.
fn rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let paper = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * paper + 128;
        u8::try_from(paper.saturating_sub((product + (product >> 8)) >> 8)).unwrap_or(u8::MAX)
    })
}

/// YCbCr of full range to RGB, to the bit as libjpeg converts it.
fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91881 * cr + 32768) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16);
    let blue = y + ((116130 * cb + 32768) >> 16);
    [red, green, blue].map(|level| u8::try_from(level.clamp(0, 255)).unwrap_or(u8::MAX))
}
