//! Bytes of a PNG, JPEG, WebP or GIF file to pixels, with the number of pixels checked before any is allocated.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use libjpeg_turbo_rs::{ColorSpace, ComponentInfo, DecodeLimits, Decoder as JpegDecoder, PixelFormat};

use crate::files::mistaken::{Mistaken, beginning};

/// Samples of a decoded picture, row by row, pixel by pixel.
#[derive(Debug)]
pub enum Samples {
    /// 8 bits a sample.
    Bits8(Vec<u8>),
    /// 16 bits a sample.
    Bits16(Vec<u16>),
}

/// A decoded picture as it is stored, before orientation and cropping.
#[derive(Debug)]
pub struct Decoded {
    /// Width in pixels as stored.
    pub width: usize,
    /// Height in pixels as stored.
    pub height: usize,
    /// 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    pub channels: usize,
    /// The samples, `[height, width, channels]`.
    pub samples: Samples,
    /// How the stored picture is to be turned, from its EXIF data.
    pub orientation: Orientation,
}

/// Memory that the PNG decoder may take for rows, colour profiles and text beside the pixels.
const PNG_WORK_BYTES: u64 = 256 << 20;

/// Decodes the first frame of a picture, its form recognised from its content.
///
/// # Errors
/// What is wrong, as a sentence without the file's name: not a picture, a form that is not read, more than
/// `max_pixels`, truncated or corrupt.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    if bytes.is_empty() {
        return Err("the file is empty (0 bytes)".to_owned());
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(bytes, max_pixels),
        Ok(format @ (ImageFormat::Png | ImageFormat::Gif | ImageFormat::WebP)) => {
            if format == ImageFormat::WebP {
                require_whole_riff(bytes)?;
            }
            decode_with_image(bytes, format, max_pixels)
        }
        Ok(other) => {
            let name =
                other.extensions_str().first().map_or_else(|| format!("{other:?}"), |s| s.to_uppercase());
            Err(format!("a {name} picture; PNG, JPEG, WebP and GIF are read, convert it to one of them"))
        }
        Err(_) => Err(recognise(bytes)),
    }
}

fn check_pixels(width: u64, height: u64, max_pixels: u64) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("the picture has no pixels ({width} x {height})"));
    }
    let pixels = width.saturating_mul(height);
    if pixels > max_pixels {
        return Err(format!(
            "the picture is {width} x {height} = {pixels} pixels, more than the limit of {max_pixels}; shrink it or \
             raise the limit"
        ));
    }
    Ok(())
}

fn decode_with_image(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<Decoded, String> {
    if let (ImageFormat::Png, Some((width, height))) = (format, png_dimensions(bytes)) {
        check_pixels(width, height, max_pixels)?;
    }
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
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let (channels, samples) = match picture {
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
    Ok(Decoded { width: width as usize, height: height as usize, channels, samples, orientation })
}

/// Width and height from the first chunk, read before the decoder reserves memory for a row.
fn png_dimensions(bytes: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)));
    (bytes.get(12..16)? == b"IHDR").then_some((number(16)?, number(20)?))
}

/// The most scans of a progressive JPEG; real ones have some ten.
const MAX_SCANS: usize = 500;

/// JPEG, to the bit as libjpeg-turbo and so Pillow decode it. The decoder of the `image` crate rounds otherwise, by up
/// to three levels, and returns a half-grey picture for a truncated file.
///
/// CMYK and YCCK are taken as inverted, as Adobe writes them and Pillow reads them.
fn decode_jpeg(bytes: &[u8], max_pixels: u64) -> Result<Decoded, String> {
    let broken = |error: libjpeg_turbo_rs::JpegError| format!("corrupt or truncated JPEG: {error}");
    let limits = DecodeLimits { max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let mut decoder = JpegDecoder::new_with_limits(bytes, limits).map_err(broken)?;
    let (width, height) = (usize::from(decoder.header().width), usize::from(decoder.header().height));
    check_pixels(width as u64, height as u64, max_pixels)?;
    require_jpeg_end(bytes)?;
    let (channels, format) = match decoder.jpeg_color_space() {
        ColorSpace::Grayscale => (1, PixelFormat::Grayscale),
        ColorSpace::Rgb | ColorSpace::YCbCr | ColorSpace::Cmyk | ColorSpace::Ycck => (3, PixelFormat::Rgb),
        other => return Err(format!("JPEG with the colour space {other:?} is not read; save it as RGB")),
    };
    if decoder.header().precision != 8 {
        return Err(format!(
            "JPEG with {} bits a sample is not read; save it with 8",
            decoder.header().precision
        ));
    }
    if let [first, others @ .., black] = decoder.header().components.as_slice()
        && others.len() == 2
    {
        // Any other layout the decoder would get wrong.
        let divides = |component: &ComponentInfo| {
            first.horizontal_sampling.is_multiple_of(component.horizontal_sampling)
                && first.vertical_sampling.is_multiple_of(component.vertical_sampling)
        };
        let whole = (first.horizontal_sampling, first.vertical_sampling)
            == (black.horizontal_sampling, black.vertical_sampling);
        if !whole || !others.iter().all(divides) {
            return Err(
                "CMYK JPEG whose black is not of full resolution is not read; save it as RGB".to_owned()
            );
        }
    }
    decoder.set_output_format(format);
    let mut samples = vec![0; width * height * channels];
    let decoded = decoder.decode_image_into(&mut samples).map_err(broken)?;
    if (decoded.width, decoded.height, decoded.bytes_written) != (width, height, samples.len()) {
        return Err("corrupt JPEG: its headers contradict one another".to_owned());
    }
    let orientation =
        decoder.exif_orientation().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    Ok(Decoded { width, height, channels, samples: Samples::Bits8(samples), orientation })
}

/// Walks over the segments and scans to the end-of-image marker. A decoder stops as soon as it has its pixels, or
/// makes up what is missing; only this marker says that the file is whole.
fn require_jpeg_end(bytes: &[u8]) -> Result<(), String> {
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xFF, 0xD9) => return Ok(()),
            // Fill bytes, entropy-coded data, stuffed zeros and restart markers.
            (0xFF, 0xFF) => at += 1,
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            (0xFF, _) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { break };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
            _ => at += 1,
        }
    }
    Err("truncated JPEG: the end-of-image marker is missing".to_owned())
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

/// What a file is that is no picture.
fn recognise(bytes: &[u8]) -> String {
    let drawing = beginning(bytes).contains("<svg");
    match Mistaken::of(bytes) {
        // Drawings are XML, too, and pages hold some.
        None | Some(Mistaken::Answer) if drawing => {
            return "an SVG drawing; PNG, JPEG, WebP and GIF are read, convert it to one of them".to_owned();
        }
        Some(found) => return format!("not a picture but {found}"),
        None => {}
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return "a HEIF, AVIF or video file; PNG, JPEG, WebP and GIF are read, convert it to one of them"
            .to_owned();
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return "not a picture: every byte is 0".to_owned();
    }
    "not a picture that is recognised; PNG, JPEG, WebP and GIF are read".to_owned()
}
