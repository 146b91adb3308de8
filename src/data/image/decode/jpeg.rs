//! JPEG, bit-identical to libjpeg-turbo and thus to Pillow.

use std::borrow::Cow;

use image::metadata::Orientation;
use libjpeg_turbo_rs::{ColorSpace, ComponentInfo, DecodeLimits, Decoder, JpegError, PixelFormat, RawImage};

use super::{DecodeOptions, Decoded, READ_TRUNCATED, Samples, check_pixels, exif, rgb_of_cmyk, rgb_of_ycbcr};

/// Maximum number of scans of a progressive JPEG; real files have about ten.
const MAX_SCANS: usize = 500;

/// Decodes a JPEG. The decoder of the `image` crate rounds differently from libjpeg, by up to three levels, and
/// returns a partly gray image for a truncated file.
///
/// CMYK and YCCK are treated as inverted, as Adobe writes them and Pillow reads them.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded, String> {
    let complete = has_end(bytes);
    // Decoders stop as soon as they have their pixels, or make up missing ones; only the end marker shows that the
    // file is complete. If it is missing, it is added, and a strict decoder then checks whether there is data for all
    // pixels.
    let file = if complete {
        Cow::Borrowed(bytes)
    } else {
        Cow::Owned([without_cut_segment(bytes), &[0xFF, 0xD9]].concat())
    };
    let size = size(&file, options.max_pixels)?;
    let strict = if complete || has_all_scans(bytes) {
        pixels(&file, size, false)
    } else {
        Err("the end-of-image marker and scans before it are missing".to_owned())
    };
    let (channels, samples) = match strict {
        Ok(decoded) => decoded,
        Err(_) if options.truncated => {
            pixels(&file, size, true).map_err(|error| format!("corrupt or truncated JPEG: {error}"))?
        }
        Err(error) if complete => return Err(format!("corrupt or truncated JPEG: {error}")),
        Err(error) => return Err(format!("truncated JPEG: {error}; {READ_TRUNCATED}")),
    };
    let (width, height) = size;
    let samples = Samples::Bits8(samples);
    Ok(Decoded { width, height, channels, samples, orientation: orientation(bytes), always_oriented: false })
}

fn open(bytes: &[u8]) -> Result<Decoder<'_>, JpegError> {
    Decoder::new_with_limits(bytes, DecodeLimits { max_scans: MAX_SCANS, ..DecodeLimits::default() })
}

/// Width and height, checked against `max_pixels`.
fn size(bytes: &[u8], max_pixels: u64) -> Result<(usize, usize), String> {
    let decoder = open(bytes).map_err(|error| format!("corrupt or truncated JPEG: {error}"))?;
    let header = decoder.header();
    let (width, height) = (usize::from(header.width), usize::from(header.height));
    check_pixels(width as u64, height as u64, max_pixels)?;
    Ok((width, height))
}

/// Channels and samples. A lenient decoder leaves blocks without data gray.
fn pixels(bytes: &[u8], (width, height): (usize, usize), lenient: bool) -> Result<(usize, Vec<u8>), String> {
    let broken = |error: JpegError| error.to_string();
    let mut decoder = open(bytes).map_err(broken)?;
    decoder.set_lenient(lenient);
    // Interpolates missing coefficients, like libjpeg.
    decoder.set_block_smoothing(lenient);
    let (channels, format) = match decoder.jpeg_color_space() {
        ColorSpace::Grayscale => (1, PixelFormat::Grayscale),
        ColorSpace::Rgb | ColorSpace::YCbCr | ColorSpace::Cmyk | ColorSpace::Ycck => (3, PixelFormat::Rgb),
        other => return Err(format!("the color space {other:?} is not supported; save it as RGB")),
    };
    let precision = decoder.header().precision;
    if precision != 8 {
        return Err(format!("{precision} bits per sample are not supported; save it with 8"));
    }
    let components = decoder.header().components.clone();
    if is_unusual(&components) {
        let color_space = decoder.jpeg_color_space();
        let planes = decoder.decode_raw().map_err(broken)?;
        return Ok((3, from_planes(&planes, &components, color_space, width, height)?));
    }
    decoder.set_output_format(format);
    let mut samples = vec![0; width * height * channels];
    let decoded = decoder.decode_image_into(&mut samples).map_err(broken)?;
    if (decoded.width, decoded.height, decoded.bytes_written) != (width, height, samples.len()) {
        return Err("its headers are inconsistent".to_owned());
    }
    Ok((channels, samples))
}

/// Whether the components are sampled in a way that the decoder rejects or gets wrong: the first one more coarsely than
/// another, or CMYK with a black channel less fine than the first.
fn is_unusual(components: &[ComponentInfo]) -> bool {
    let [first, others @ ..] = components else { return false };
    let divides = |component: &ComponentInfo| {
        first.horizontal_sampling.is_multiple_of(component.horizontal_sampling)
            && first.vertical_sampling.is_multiple_of(component.vertical_sampling)
    };
    let black_differs = matches!(others, [_, _, black]
        if (black.horizontal_sampling, black.vertical_sampling)
            != (first.horizontal_sampling, first.vertical_sampling));
    black_differs || !others.iter().all(divides)
}

/// Upsamples planes to the size of the image and converts them to RGB, like libjpeg.
fn from_planes(
    raw: &RawImage,
    components: &[ComponentInfo],
    color_space: ColorSpace,
    width: usize,
    height: usize,
) -> Result<Vec<u8>, String> {
    let most = |sampling: fn(&ComponentInfo) -> u8| components.iter().map(sampling).max().unwrap_or(1);
    let (across, down) = (most(|c| c.horizontal_sampling), most(|c| c.vertical_sampling));
    let mut planes = Vec::with_capacity(components.len());
    for (index, component) in components.iter().enumerate() {
        let (h, v) = (component.horizontal_sampling, component.vertical_sampling);
        if h == 0 || v == 0 || !across.is_multiple_of(h) || !down.is_multiple_of(v) {
            return Err("fractional sampling factors are not supported; save it as RGB".to_owned());
        }
        let (plane, stride) = match (raw.planes.get(index), raw.plane_widths.get(index)) {
            (Some(plane), Some(&stride)) => (plane, stride),
            _ => return Err("its headers are inconsistent".to_owned()),
        };
        let own =
            |size: usize, sampling: u8, most: u8| (size * usize::from(sampling)).div_ceil(usize::from(most));
        let (own_width, own_height) = (own(width, h, across), own(height, v, down));
        if stride < own_width || plane.len() < stride * own_height {
            return Err("its headers are inconsistent".to_owned());
        }
        let plane = Plane { samples: plane, stride, width: own_width, height: own_height };
        planes.push(plane.enlarged(usize::from(across / h), usize::from(down / v), width, height));
    }
    let pixel: &dyn Fn(usize) -> [u8; 3] = match (color_space, planes.as_slice()) {
        (ColorSpace::YCbCr, [y, cb, cr]) => &|at| rgb_of_ycbcr([y[at], cb[at], cr[at]]),
        (ColorSpace::Rgb, [red, green, blue]) => &|at| [red[at], green[at], blue[at]],
        // Stored inverted: the levels are amounts of light, not of ink.
        (ColorSpace::Cmyk, [c, m, y, k]) => {
            &|at| rgb_of_cmyk([c[at], m[at], y[at], k[at]].map(|level| 255 - level))
        }
        (ColorSpace::Ycck, [y, cb, cr, k]) => &|at| {
            let [c, m, y] = rgb_of_ycbcr([y[at], cb[at], cr[at]]);
            rgb_of_cmyk([c, m, y, 255 - k[at]])
        },
        _ => return Err(format!("the color space {color_space:?} is not supported; save it as RGB")),
    };
    Ok((0..width * height).flat_map(pixel).collect())
}

/// The samples of a component, in rows of `stride`.
struct Plane<'a> {
    samples: &'a [u8],
    stride: usize,
    width: usize,
    height: usize,
}

impl Plane<'_> {
    /// Upsamples the plane `across` times horizontally and `down` times vertically, and crops it: with libjpeg's
    /// triangle filter for factors of two (in either direction or both), else by repetition.
    fn enlarged(&self, across: usize, down: usize, width: usize, height: usize) -> Vec<u8> {
        // Three parts of the nearer row and one of the other, or the row itself.
        let blended = |row: usize, column: usize| -> i32 {
            let source = row / down;
            let other = if row.is_multiple_of(2) {
                source.saturating_sub(1)
            } else {
                (source + 1).min(self.height - 1)
            };
            3 * self.at(source, column) + self.at(other, column)
        };
        let fine = self.width > 2;
        let level = |row: usize, column: usize| -> i32 {
            let source = column / across;
            let last = self.width - 1;
            let other =
                if column.is_multiple_of(2) { source.saturating_sub(1) } else { (source + 1).min(last) };
            match (across, down) {
                (2, 1) if fine => {
                    let own = self.at(row, source);
                    if other == source {
                        return own;
                    }
                    (3 * own + self.at(row, other) + if column.is_multiple_of(2) { 1 } else { 2 }) >> 2
                }
                (2, 2) if fine => {
                    let rounding = if column.is_multiple_of(2) { 8 } else { 7 };
                    (3 * blended(row, source) + blended(row, other) + rounding) >> 4
                }
                (1, 2) => (blended(row, column) + if row.is_multiple_of(2) { 1 } else { 2 }) >> 2,
                _ => self.at(row / down, source),
            }
        };
        (0..height)
            .flat_map(|row| (0..width).map(move |column| (row, column)))
            .map(|(row, column)| u8::try_from(level(row, column)).unwrap_or(u8::MAX))
            .collect()
    }

    fn at(&self, row: usize, column: usize) -> i32 {
        i32::from(self.samples[row * self.stride + column])
    }
}

/// Marker segments before and between the scans of a file.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The start of the last segment, if the file ends within it.
    cut_at: Option<usize>,
}

impl<'a> Iterator for Segments<'a> {
    /// The marker and the contents of its segment: empty for a marker without a length, shorter than declared at the
    /// end of a truncated file.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(&[first, marker]) = self.bytes.get(self.at..self.at + 2) {
            match (first, marker) {
                (0xFF, 0xD9) => {
                    self.at += 2;
                    return Some((marker, &[]));
                }
                // Skips fill bytes, entropy-coded data, stuffed zeros and restart markers.
                (0xFF, 0xFF) => self.at += 1,
                (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => self.at += 2,
                (0xFF, _) => {
                    self.cut_at = Some(self.at);
                    let &[high, low] = self.bytes.get(self.at + 2..)?.first_chunk()?;
                    let start = self.at + 4;
                    self.at += 2 + usize::from(u16::from_be_bytes([high, low]));
                    if self.at <= self.bytes.len() {
                        self.cut_at = None;
                    }
                    let end = self.at.clamp(start.min(self.bytes.len()), self.bytes.len());
                    return Some((marker, &self.bytes[start.min(end)..end]));
                }
                _ => self.at += 1,
            }
        }
        None
    }
}

fn segments(bytes: &[u8]) -> Segments<'_> {
    Segments { bytes, at: 2, cut_at: None }
}

/// The width and height in the frame header.
pub(super) fn claimed_size(bytes: &[u8]) -> Option<(u64, u64)> {
    let (_, frame) = segments(bytes).find(|(marker, _)| is_frame(*marker))?;
    let number = |at: usize| Some(u64::from(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?)));
    Some((number(3)?, number(1)?))
}

fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF)
}

/// The file without a truncated marker segment at its end. Pillow waits for the rest of the segment and returns a
/// black image, even if scans came before.
fn without_cut_segment(bytes: &[u8]) -> &[u8] {
    let mut segments = segments(bytes);
    segments.by_ref().for_each(drop);
    &bytes[..segments.cut_at.unwrap_or(bytes.len())]
}

/// Whether there is an end-of-image marker.
fn has_end(bytes: &[u8]) -> bool {
    segments(bytes).any(|(marker, _)| marker == 0xD9)
}

/// Whether all scans are present: of each component or, in a progressive file, of each bit of each coefficient.
fn has_all_scans(bytes: &[u8]) -> bool {
    let mut progressive = false;
    // The identifier of the component, and for each coefficient whether its last bit is present.
    let mut components: Vec<(u8, [bool; 64])> = Vec::new();
    for (marker, content) in segments(bytes) {
        match (marker, content) {
            (_, [_, _, _, _, _, _, specified @ ..]) if is_frame(marker) => {
                progressive = matches!(marker, 0xC2 | 0xC6 | 0xCA | 0xCE);
                components = specified.chunks_exact(3).map(|component| (component[0], [false; 64])).collect();
            }
            (0xDA, [count, scan @ ..]) => {
                let count = usize::from(*count);
                let Some(&[start, end, bits, ..]) = scan.get(2 * count..) else { return false };
                let range = if progressive { usize::from(start)..usize::from(end) + 1 } else { 0..64 };
                for id in scan[..2 * count].iter().step_by(2) {
                    let Some((_, bands)) = components.iter_mut().find(|(own, _)| own == id) else { continue };
                    let Some(bands) = bands.get_mut(range.clone()) else { return false };
                    bands.fill(!progressive || bits & 0x0F == 0);
                }
            }
            _ => {}
        }
    }
    !components.is_empty() && components.iter().all(|(_, bands)| bands.iter().all(|complete| *complete))
}

/// The orientation in the segments before the first scan.
fn orientation(bytes: &[u8]) -> Orientation {
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let (mut exif, mut xmp): (Option<Vec<u8>>, Option<&[u8]>) = (None, None);
    for (_, content) in
        segments(bytes).take_while(|(marker, _)| *marker != 0xDA).filter(|(marker, _)| *marker == 0xE1)
    {
        if content.starts_with(b"Exif\0\0") {
            // Longer EXIF data continues in further segments.
            match &mut exif {
                Some(exif) => exif.extend_from_slice(&content[6..]),
                None => exif = Some(content.to_vec()),
            }
        } else if let Some(content) = content.strip_prefix(XMP) {
            xmp = Some(content);
        }
    }
    exif::orientation(exif.as_deref(), xmp)
}
