//! Corrupts an image.

use image::{ColorType, ImageFormat, codecs::jpeg::JpegEncoder};

use super::Flaw;
use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// First stream index under [`Purpose::Draw`] for corrupting images.
const CORRUPT: u64 = 3 << 48;

/// Corrupts an image, `[height, width, 3]` bytes, if the flaw is one of images; a near duplicate is made from the
/// image that it copies. Deterministic in (`seed`, `record`).
///
/// # Errors
/// If `rgb` does not have `width`×`height` pixels, or the image is too large for JPEG.
pub fn corrupt(
    rgb: &mut [u8],
    width: usize,
    height: usize,
    flaw: Flaw,
    seed: u64,
    record: u64,
) -> Result<()> {
    if rgb.len() != width * height * 3 {
        return Err(Error::shape(
            "corrupt",
            format!("{} bytes are not an image of {width}×{height} pixels of 3 bytes", rgb.len()),
        ));
    }
    let mut random = Random::new(seed, Purpose::Draw, CORRUPT + record);
    match flaw {
        Flaw::Plain => make_plain(rgb, &mut random),
        Flaw::Noise => add_noise(rgb, &mut random),
        Flaw::Blur => blur(rgb, width, height, &mut random),
        Flaw::Jpeg => return ruin(rgb, width, height, &mut random),
        Flaw::Watermark => overlay(rgb, width, height, &mut random),
        Flaw::CroppedDuplicate => crop(rgb, width, height, &mut random),
        Flaw::FlippedDuplicate => flip(rgb, width),
        Flaw::RecompressedDuplicate => {
            return recompress(rgb, width, height, 50 + random.below(31) as u8, 0);
        }
        _ => {}
    }
    Ok(())
}

/// Replaces the image with one random color; each byte varies by at most 2.
fn make_plain(rgb: &mut [u8], random: &mut Random) {
    let color = [0; 3].map(|_: i32| 8 + random.below(240) as u8);
    for pixel in rgb.chunks_exact_mut(3) {
        for (byte, &base) in pixel.iter_mut().zip(&color) {
            *byte = base + random.below(5) as u8 - 2;
        }
    }
}

/// Reduces the contrast to 10 to 30% and adds Gaussian noise with a standard deviation of 55 to 85 of 255.
fn add_noise(rgb: &mut [u8], random: &mut Random) {
    let contrast = 0.1 + 0.2 * random.uniform();
    let deviation = 55.0 + 30.0 * random.uniform();
    for byte in rgb {
        // The sum of 12 uniform variates has variance 1 and is close to normal; unlike a logarithm, it is
        // bit-identical on every platform.
        let uniforms: f64 = (0..6).map(|_| both_halves(random.next_u64())).sum();
        let normal = uniforms - 6.0;
        let value = 128.0 + contrast * (f64::from(*byte) - 128.0) + deviation * normal;
        *byte = (value + 0.5).clamp(0.0, 255.0) as u8;
    }
}

/// The sum of two uniform variates in [0, 1) from 64 bits.
fn both_halves(bits: u64) -> f64 {
    ((bits >> 32) + (bits & 0xFFFF_FFFF)) as f64 / (1u64 << 32) as f64
}

/// Blurs with three box filters in each direction, which approximate a Gaussian with a standard deviation of 7 to 11%
/// of the shorter side.
fn blur(rgb: &mut [u8], width: usize, height: usize, random: &mut Random) {
    let deviation = (0.07 + 0.04 * random.uniform()) * width.min(height) as f64;
    // Three boxes of 2r + 1 pixels have variance ((2r + 1)² - 1) / 4.
    let radius = (((4.0 * deviation * deviation + 1.0).sqrt() - 1.0) / 2.0).round().max(1.0) as usize;
    let mut line = Vec::new();
    for channel in 0..3 {
        for row in 0..height {
            blur_line(rgb, row * width * 3 + channel, 3, width, radius, &mut line);
        }
        for column in 0..width {
            blur_line(rgb, column * 3 + channel, width * 3, height, radius, &mut line);
        }
    }
}

/// Filters the `count` bytes at `start`, `start + step`, ... three times; the edge pixel is repeated beyond the
/// border.
fn blur_line(rgb: &mut [u8], start: usize, step: usize, count: usize, radius: usize, line: &mut Vec<f64>) {
    line.clear();
    line.extend((0..count).map(|index| f64::from(rgb[start + index * step])));
    let share = 1.0 / (2 * radius + 1) as f64;
    for _ in 0..3 {
        let old = line.clone();
        let at = |index: isize| old[index.clamp(0, count as isize - 1) as usize];
        let reach = radius as isize;
        let mut sum: f64 = (-reach..=reach).map(at).sum();
        for (index, value) in line.iter_mut().enumerate() {
            *value = sum * share;
            sum += at(index as isize + reach + 1) - at(index as isize - reach);
        }
    }
    for (index, value) in line.iter().enumerate() {
        rgb[start + index * step] = (value + 0.5).clamp(0.0, 255.0) as u8;
    }
}

/// Compresses the image twice as JPEG with a quality of 2 to 6 of 100, the second time shifted by half a block, and
/// decodes it.
fn ruin(rgb: &mut [u8], width: usize, height: usize, random: &mut Random) -> Result<()> {
    let quality = 2 + random.below(5) as u8;
    [0, 4].into_iter().try_for_each(|shift| recompress(rgb, width, height, quality, shift))
}

/// Compresses the image as JPEG and decodes it. It is shifted down and right by `shift` pixels, with the edge repeated,
/// so that the block boundaries differ.
fn recompress(rgb: &mut [u8], width: usize, height: usize, quality: u8, shift: usize) -> Result<()> {
    if width == 0 || height == 0 {
        return Ok(());
    }
    let refuse =
        |error: image::ImageError| Error::invalid(format!("JPEG encoding of an image failed: {error}"));
    let (wide, high) = (width + shift, height + shift);
    let mut moved = Vec::with_capacity(wide * high * 3);
    for y in 0..high {
        for x in 0..wide {
            let from = (y.saturating_sub(shift) * width + x.saturating_sub(shift)) * 3;
            moved.extend_from_slice(&rgb[from..from + 3]);
        }
    }
    let size = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&moved, size(wide), size(high), ColorType::Rgb8.into())
        .map_err(refuse)?;
    let back = image::load_from_memory_with_format(&bytes, ImageFormat::Jpeg).map_err(refuse)?.into_rgb8();
    for y in 0..height {
        let from = ((y + shift) * wide + shift) * 3;
        rgb[y * width * 3..][..width * 3].copy_from_slice(&back.as_raw()[from..from + width * 3]);
    }
    Ok(())
}

/// Replaces the image with a random window of 75 to 90% of its sides, enlarged to its size (bilinear).
fn crop(rgb: &mut [u8], width: usize, height: usize, random: &mut Random) {
    let share = 0.75 + 0.15 * random.uniform();
    let (left, top) = (random.uniform(), random.uniform());
    let original = rgb.to_vec();
    // Where a pixel of the crop lies along one side: the pixel before, the one after, and the weight of the latter.
    let along = |at: usize, size: usize, start: f64| {
        let position = start * (1.0 - share) * size as f64 + (at as f64 + 0.5) * share - 0.5;
        let position = position.clamp(0.0, (size - 1) as f64);
        let before = position as usize;
        (before, (before + 1).min(size - 1), position - before as f64)
    };
    for y in 0..height {
        let (upper, lower, down) = along(y, height, top);
        for x in 0..width {
            let (before, after, right) = along(x, width, left);
            for channel in 0..3 {
                let at = |x: usize, y: usize| f64::from(original[(y * width + x) * 3 + channel]);
                let between = |y: usize| at(before, y) * (1.0 - right) + at(after, y) * right;
                let value = between(upper) * (1.0 - down) + between(lower) * down;
                rgb[(y * width + x) * 3 + channel] = (value + 0.5) as u8;
            }
        }
    }
}

/// Mirrors the image horizontally.
fn flip(rgb: &mut [u8], width: usize) {
    for row in rgb.chunks_exact_mut((width * 3).max(1)) {
        for x in 0..width / 2 {
            for channel in 0..3 {
                row.swap(x * 3 + channel, (width - 1 - x) * 3 + channel);
            }
        }
    }
}

/// Overlays rows of slanted bars, resembling repeated text, with an opacity of 40 to 60%.
fn overlay(rgb: &mut [u8], width: usize, height: usize, random: &mut Random) {
    // Black on bright images and white on dark ones, for contrast.
    let bright = rgb.iter().map(|&byte| u64::from(byte)).sum::<u64>() > 128 * rgb.len() as u64;
    let ink = if bright { 0.0 } else { 255.0 };
    let opacity = 0.4 + 0.2 * random.uniform();
    let short = width.min(height) as f64;
    // Line height, letter width and slant; every second line has letters.
    let line = (short * (0.10 + 0.04 * random.uniform())).max(2.0);
    let letter = line * 0.45;
    let slant = 0.3 + 0.3 * random.uniform();
    let letters = random.next_u64();
    for y in 0..height {
        for x in 0..width {
            // Rotated: the lines fall from left to right.
            let along = x as f64 + slant * y as f64;
            let down = y as f64 + 0.5 * x as f64;
            let row = (down / line).floor();
            if row.rem_euclid(2.0) != 0.0 {
                continue;
            }
            let column = (along / letter).floor();
            let (across, inside) = (along / letter - column, down / line - row);
            // Each letter is a stem and, depending on its number, one or two bars; every fifth is a space.
            let number = (column + 7.0 * row).rem_euclid(61.0) as u64;
            let shape = letters.rotate_left((number % 64) as u32) & 3;
            let inked = !number.is_multiple_of(5)
                && (across < 0.35
                    || (across < 0.8 && (inside < 0.25 || (shape & 1 == 1 && inside > 0.75)))
                    || (shape & 2 == 2 && across < 0.8 && (0.4..0.6).contains(&inside)));
            if inked {
                for byte in &mut rgb[(y * width + x) * 3..][..3] {
                    *byte = (f64::from(*byte) * (1.0 - opacity) + ink * opacity + 0.5) as u8;
                }
            }
        }
    }
}
