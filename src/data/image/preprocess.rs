//! Turns image files into square images in [-1, 1], the networks' input.

use std::io::{Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{
    ExtendedColorType, ImageEncoder, ImageReader,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    metadata::Orientation,
};

use super::ImageRef;
use super::decode::{DecodeOptions, Decoded, Samples, decode};
use super::resample::{Filter, resample};
use crate::{
    engine::Tensor,
    error::{Error, Result, reserved},
    files::AtomicFile,
};

/// Pillow's limit above which it warns of a decompression bomb (`Image.MAX_IMAGE_PIXELS`).
pub const DEFAULT_MAX_PIXELS: u64 = 89_478_485;

/// How transparency is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlphaRule {
    /// Composites the image over white.
    White,
    /// Drops alpha, which exposes the colors below it: upstream behavior (`convert("RGB")`).
    Drop,
}

/// Options of image preprocessing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preprocess {
    /// Side length of the result in pixels (`R`), at least 1.
    pub side: usize,
    /// How transparency is handled.
    pub alpha: AlphaRule,
    /// Whether to apply the orientation in EXIF data or XMP. That of a TIFF is always applied.
    pub apply_orientation: bool,
    /// Whether to clip 16-bit gray at 255, which turns nearly all of it white: the behavior of Pillow and thus of the
    /// upstream code. Otherwise the high byte is used, as for 16-bit color.
    pub clip_gray16: bool,
    /// Images with more pixels are rejected before anything is allocated.
    pub max_pixels: u64,
    /// Whether truncated images are decoded as far as possible instead of being an error.
    pub truncated: bool,
}

impl Preprocess {
    /// Transparency over white, orientation applied, at most [`DEFAULT_MAX_PIXELS`].
    pub fn default_for(side: usize) -> Self {
        Self {
            side,
            alpha: AlphaRule::White,
            apply_orientation: true,
            clip_gray16: false,
            max_pixels: DEFAULT_MAX_PIXELS,
            truncated: false,
        }
    }

    /// Upstream behavior (`dataset/datasets_csv.py`): alpha dropped, EXIF ignored, 16-bit gray clipped.
    pub fn released(side: usize) -> Self {
        Self {
            alpha: AlphaRule::Drop,
            apply_orientation: false,
            clip_gray16: true,
            ..Self::default_for(side)
        }
    }
}

/// A preprocessed image with 8 bits per sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SquareImage {
    /// Side length in pixels (`R`).
    pub side: usize,
    /// The samples, `[R, R, 3]`.
    pub rgb: Vec<u8>,
}

impl SquareImage {
    /// Converts to `[3, R, R]` f32 in [-1, 1]: `x = level / 255`, then `x + x - 1`, each step rounded to f32 as in
    /// the upstream transform.
    ///
    /// # Errors
    /// If `rgb` does not have `R * R * 3` samples.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut values = Vec::with_capacity(self.rgb.len());
        self.append_planes(&mut values);
        Tensor::new(&[3, self.side, self.side], values)
    }

    fn append_planes(&self, values: &mut Vec<f32>) {
        for channel in 0..3 {
            values.extend(self.rgb.iter().skip(channel).step_by(3).map(|&level| {
                let x = f32::from(level) / 255.0;
                x + x - 1.0
            }));
        }
    }
}

/// A decoded image with 8 bits per sample, with its orientation applied and its size unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullImage {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The samples, `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl FullImage {
    /// Crops the center to at most `width` by `height` pixels; offsets are rounded down.
    #[must_use]
    pub fn middle(&self, width: usize, height: usize) -> Self {
        let (width, height) = (width.min(self.width), height.min(self.height));
        let (left, top) = ((self.width - width) / 2, (self.height - height) / 2);
        let rows = self.rgb.chunks_exact(3 * self.width.max(1)).skip(top).take(height);
        let rgb = rows.flat_map(|row| &row[3 * left..3 * (left + width)]).copied().collect();
        Self { width, height, rgb }
    }

    /// Resizes the image, which must not be empty.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        let stride = 3 * self.width;
        let rgb = resample([self.width, self.height], [width, height], filter, |y, row| {
            row.copy_from_slice(&self.rgb[y * stride..(y + 1) * stride]);
        });
        Self { width, height, rgb }
    }
}

/// Stacks images of the same side as `[B, 3, R, R]` f32 in [-1, 1].
///
/// # Errors
/// If there are no images or the sides differ.
pub fn stack(images: &[SquareImage]) -> Result<Tensor> {
    let side = images.first().map_or(0, |image| image.side);
    if side == 0 || images.iter().any(|image| image.side != side) {
        let sides: Vec<usize> = images.iter().map(|image| image.side).collect();
        return Err(Error::shape("stack", format!("images must have the same side, got {sides:?}")));
    }
    let mut values = Vec::with_capacity(images.len() * 3 * side * side);
    images.iter().for_each(|image| image.append_planes(&mut values));
    Tensor::new(&[images.len(), 3, side, side], values)
}

/// Reads, decodes and preprocesses an image.
///
/// # Errors
/// [`Error::Image`] if the file cannot be read or decoded. Invalid files do not cause a panic. [`Error::Memory`] and
/// [`Error::OpenFiles`] say nothing about the image.
pub fn load_image(image: impl Into<ImageRef>, preprocess: &Preprocess) -> Result<SquareImage> {
    let image = image.into();
    decode_image(&read_bounded(&image, preprocess)?, image.as_path(), preprocess)
}

/// Decodes and preprocesses an image from the bytes of its file; `path` is for error messages only.
///
/// # Errors
/// See [`load_image`].
pub fn decode_image(bytes: &[u8], path: &Path, preprocess: &Preprocess) -> Result<SquareImage> {
    if preprocess.side == 0 {
        return Err(Error::invalid("the side of the preprocessed images must be at least 1"));
    }
    Ok(square(&decoded(bytes, path, preprocess)?, preprocess))
}

/// Reads and decodes an image like [`load_image`], but at its original size; the side of `preprocess` is ignored.
///
/// # Errors
/// See [`load_image`].
pub fn load_full_image(image: impl Into<ImageRef>, preprocess: &Preprocess) -> Result<FullImage> {
    let image = image.into();
    let decoded = decoded(&read_bounded(&image, preprocess)?, image.as_path(), preprocess)?;
    let view = View::new(&decoded, preprocess.apply_orientation);
    let (width, height) = (view.width, view.height);
    let mut rgb = vec![0; 3 * width * height];
    let read_row = rows(&decoded, &view, preprocess);
    rgb.chunks_exact_mut(3 * width).enumerate().for_each(|(y, row)| read_row(y, row));
    Ok(FullImage { width, height, rgb })
}

/// Above this number of pixels, images are decoded only if memory can be reserved, because the decoders abort on
/// allocation failure.
const LARGE_PIXELS: usize = 1 << 24;

/// Memory per pixel used by a decoder: four one-byte samples, before and after conversion.
const WORK_BYTES_PER_PIXEL: usize = 8;

/// Fails if there is not enough memory for an image. This is not a property of the image: jobs that skip unusable
/// images stop here, because results must not depend on free memory.
fn expect_memory(bytes: &[u8], path: &Path, preprocess: &Preprocess) -> Result<()> {
    let size = || ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.into_dimensions().ok();
    let Some((width, height)) = catch_unwind(size).unwrap_or_default() else { return Ok(()) };
    let pixels = width as usize * height as usize;
    if pixels > LARGE_PIXELS && pixels as u64 <= preprocess.max_pixels {
        let what = format!("its {width} x {height} pixels; provide more memory, or lower max_pixels");
        reserved::<u8>(pixels * WORK_BYTES_PER_PIXEL, path, &what)?;
    }
    Ok(())
}

fn decoded(bytes: &[u8], path: &Path, preprocess: &Preprocess) -> Result<Decoded> {
    expect_memory(bytes, path, preprocess)?;
    let options = DecodeOptions { max_pixels: preprocess.max_pixels, truncated: preprocess.truncated };
    catch_unwind(AssertUnwindSafe(|| decode(bytes, options)))
        .unwrap_or_else(|_| Err("corrupt: the decoder panicked".to_owned()))
        .map_err(|message| refuse(path, message))
}

/// Writes a square image, `[side, side, 3]` bytes, as PNG. Not synced to disk per file: there may be thousands, and
/// the command syncs them together before its output is complete.
///
/// # Errors
/// If it cannot be encoded or written.
pub fn write_png(path: &Path, rgb: &[u8], side: usize) -> Result<()> {
    let mut bytes = Vec::new();
    let side = u32::try_from(side).map_err(|_| refuse(path, "too large for PNG".to_owned()))?;
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(rgb, side, side, ExtendedColorType::Rgb8)
        .map_err(|error| refuse(path, format!("cannot encode it as PNG: {error}")))?;
    let mut file = AtomicFile::create(path)?;
    file.write_all(&bytes).map_err(Error::io("write", path))?;
    file.finish_unsynced()
}

fn refuse(path: &Path, message: String) -> Error {
    Error::Image { path: path.to_path_buf(), message }
}

fn read_bounded(image: &ImageRef, preprocess: &Preprocess) -> Result<Vec<u8>> {
    // Generous limit: the pixels at 16 bits and four channels, plus metadata.
    let limit = preprocess.max_pixels.saturating_mul(8).saturating_add(64 << 20);
    image.read(limit)
}

/// Applies the orientation, crops the center square (offsets rounded down) and resamples.
fn square(decoded: &Decoded, preprocess: &Preprocess) -> SquareImage {
    let view = View::new(decoded, preprocess.apply_orientation).middle_square();
    let side = preprocess.side;
    let input = [view.width, view.height];
    let rgb = resample(input, [side, side], Filter::Lanczos, rows(decoded, &view, preprocess));
    SquareImage { side, rgb }
}

/// Fills the row of a view with the given index, `[width, 3]`.
type ReadRow<'a> = Box<dyn Fn(usize, &mut [u8]) + 'a>;

/// Reads rows of a view with 8 bits and without transparency.
fn rows<'a>(decoded: &'a Decoded, view: &'a View, preprocess: &Preprocess) -> ReadRow<'a> {
    let (channels, alpha) = (decoded.channels, preprocess.alpha);
    match &decoded.samples {
        Samples::Bits8(samples) => Box::new(rows_of(samples, |level| level, channels, view, alpha)),
        Samples::Bits16(samples) if preprocess.clip_gray16 && channels == 1 => {
            Box::new(rows_of(samples, |level| u8::try_from(level).unwrap_or(u8::MAX), 1, view, alpha))
        }
        // The high byte, like libpng's strip_16 and Pillow.
        Samples::Bits16(samples) => {
            Box::new(rows_of(samples, |level: u16| level.to_be_bytes()[0], channels, view, alpha))
        }
    }
}

fn rows_of<'a, T: Copy>(
    samples: &'a [T],
    to_8_bits: impl Fn(T) -> u8 + Copy + 'a,
    channels: usize,
    view: &'a View,
    alpha: AlphaRule,
) -> impl Fn(usize, &mut [u8]) + 'a {
    let over_white = alpha == AlphaRule::White;
    let lay = move |level: u8, alpha: u8| {
        if !over_white {
            return level;
        }
        let (level, alpha) = (u32::from(level), u32::from(alpha));
        let mixed = (level * alpha + 255 * (255 - alpha) + 127) / 255;
        u8::try_from(mixed).unwrap_or(u8::MAX)
    };
    move |y, row| {
        for (x, output) in row.chunks_exact_mut(3).enumerate() {
            let start = view.pixel(x, y) * channels;
            let pixel = &samples[start..start + channels];
            let level = |channel: usize| to_8_bits(pixel[channel]);
            let rgb = match channels {
                1 => [level(0); 3],
                2 => [lay(level(0), level(1)); 3],
                3 => [level(0), level(1), level(2)],
                _ => [0, 1, 2].map(|channel| lay(level(channel), level(3))),
            };
            output.copy_from_slice(&rgb);
        }
    }
}

/// An oriented image, or a part of it, as indices into the stored one: pixel (x, y) is stored at
/// `origin + x * step_x + y * step_y`.
struct View {
    width: usize,
    height: usize,
    origin: isize,
    step_x: isize,
    step_y: isize,
}

impl View {
    #[expect(clippy::cast_possible_wrap, reason = "pixels of an image in memory fit isize")]
    fn new(decoded: &Decoded, apply_orientation: bool) -> Self {
        use Orientation::{
            FlipHorizontal, FlipVertical, NoTransforms, Rotate90, Rotate90FlipH, Rotate180, Rotate270,
            Rotate270FlipH,
        };
        let is_oriented = apply_orientation || decoded.always_oriented;
        let orientation = if is_oriented { decoded.orientation } else { NoTransforms };
        let (width, height) = (decoded.width as isize, decoded.height as isize);
        let (right, bottom) = (width - 1, height - 1);
        let stored = |x: isize, y: isize| {
            let (column, row) = match orientation {
                NoTransforms => (x, y),
                FlipHorizontal => (right - x, y),
                FlipVertical => (x, bottom - y),
                Rotate180 => (right - x, bottom - y),
                Rotate90 => (y, bottom - x),
                Rotate270 => (right - y, x),
                Rotate90FlipH => (y, x),
                Rotate270FlipH => (right - y, bottom - x),
            };
            row * width + column
        };
        let transposed = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
        let (oriented_width, oriented_height) = if transposed { (height, width) } else { (width, height) };
        let origin = stored(0, 0);
        Self {
            width: oriented_width.unsigned_abs(),
            height: oriented_height.unsigned_abs(),
            origin,
            step_x: stored(1, 0) - origin,
            step_y: stored(0, 1) - origin,
        }
    }

    /// The center square.
    #[expect(clippy::cast_possible_wrap, reason = "pixels of an image in memory fit isize")]
    fn middle_square(self) -> Self {
        let side = self.width.min(self.height);
        let (left, top) = ((self.width - side) / 2, (self.height - side) / 2);
        let origin = self.origin + left as isize * self.step_x + top as isize * self.step_y;
        Self { width: side, height: side, origin, ..self }
    }

    #[expect(clippy::cast_possible_wrap, reason = "pixels of an image in memory fit isize")]
    fn pixel(&self, x: usize, y: usize) -> usize {
        (self.origin + x as isize * self.step_x + y as isize * self.step_y).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orientation by index arithmetic matches transforming the whole image.
    #[test]
    fn every_orientation_matches_the_image_crate() {
        for (width, height) in [(5, 8), (8, 5), (4, 4)] {
            let image =
                image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8 * 20, y as u8 * 20, 7]));
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                let mut oriented = image::DynamicImage::ImageRgb8(image.clone());
                oriented.apply_orientation(orientation);
                let stored = |image: image::RgbImage, orientation| Decoded {
                    width: image.width() as usize,
                    height: image.height() as usize,
                    channels: 3,
                    samples: Samples::Bits8(image.into_raw()),
                    orientation,
                    always_oriented: false,
                };
                let preprocess = Preprocess::default_for(width.min(height) as usize);
                let ours = square(&stored(image.clone(), orientation), &preprocess);
                let reference = square(&stored(oriented.into_rgb8(), Orientation::NoTransforms), &preprocess);
                assert_eq!(ours, reference, "EXIF orientation {exif} of {width} x {height}");
            }
        }
    }

    #[test]
    fn levels_map_to_minus_one_to_one() {
        let image = SquareImage { side: 1, rgb: vec![0, 51, 255] };
        assert_eq!(image.to_tensor().unwrap().as_slice::<f32>().unwrap(), [-1.0, -0.6, 1.0]);
        assert_eq!(stack(&[image.clone(), image.clone()]).unwrap().shape(), [2, 3, 1, 1]);
        let other = SquareImage { side: 2, rgb: vec![0; 12] };
        assert!(stack(&[image, other]).is_err());
        assert!(stack(&[]).is_err());
    }
}
