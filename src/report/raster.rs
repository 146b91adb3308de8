//! Images in memory, text rendering, and PNG files.

use std::{io::Cursor, path::Path, sync::OnceLock};

use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont, point};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::{
    error::{Error, Result},
    files::write_atomic,
};

/// DejaVu Sans, subset to Latin, Greek, Cyrillic and common symbols; its license is in the same folder.
pub(super) static FONT_FILE: &[u8] = include_bytes!("fonts/DejaVuSans.ttf");

fn font() -> &'static FontRef<'static> {
    static FONT: OnceLock<FontRef<'static>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(FONT_FILE).expect("the embedded font is a TrueType font"))
}

/// An RGB color.
pub type Color = [u8; 3];

/// An RGB image, rows from top to bottom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raster {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl Raster {
    /// A uniformly colored image.
    pub(crate) fn new(width: u32, height: u32, color: Color) -> Self {
        let pixels = width as usize * height as usize;
        Self { width, height, rgb: color.repeat(pixels) }
    }

    /// An image of `width` × `height` pixels from RGB bytes, row by row.
    ///
    /// # Errors
    /// If the number of bytes does not match.
    pub(crate) fn from_rgb(width: u32, height: u32, rgb: Vec<u8>) -> Result<Self> {
        if rgb.len() != width as usize * height as usize * 3 {
            return Err(Error::invalid(format!(
                "{} bytes do not match an image of {width}×{height} pixels",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// RGB bytes, row by row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    pub(super) fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }

    /// Encodes the image as PNG.
    ///
    /// # Errors
    /// If the encoder fails.
    pub(crate) fn to_png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        PngEncoder::new(Cursor::new(&mut bytes))
            .write_image(&self.rgb, self.width, self.height, ExtendedColorType::Rgb8)
            .map_err(|error| Error::invalid(format!("cannot encode an image as PNG: {error}")))?;
        Ok(bytes)
    }

    /// Writes the image as a PNG file, atomically.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_png()?)
    }

    /// Blends `color` into a pixel; a `share` of 1 replaces it. Pixels outside the image are ignored.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    fn mix(&mut self, x: i64, y: i64, color: Color, share: f32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.width || y >= self.height {
            return;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        for (channel, color) in self.rgb[at..at + 3].iter_mut().zip(color) {
            let mixed = f32::from(*channel) + (f32::from(color) - f32::from(*channel)) * share;
            *channel = mixed.round().clamp(0.0, 255.0) as u8;
        }
    }

    /// Fills the rectangle with the top left corner (`x`, `y`), clipped to the image.
    pub(crate) fn fill(&mut self, x: u32, y: u32, width: u32, height: u32, color: Color) {
        let right = x.saturating_add(width).min(self.width) as usize;
        for row in y..y.saturating_add(height).min(self.height) {
            let begin = row as usize * self.width as usize;
            if (x as usize) < right {
                for pixel in self.rgb[(begin + x as usize) * 3..(begin + right) * 3].chunks_exact_mut(3) {
                    pixel.copy_from_slice(&color);
                }
            }
        }
    }

    /// Copies a square of `side`² pixels to (`x`, `y`), clipped to the image.
    pub(crate) fn paste(&mut self, x: u32, y: u32, side: u32, rgb: &[u8]) {
        let columns = side.min(self.width.saturating_sub(x)) as usize;
        for row in 0..side.min(self.height.saturating_sub(y)) {
            let from = row as usize * side as usize * 3;
            let to = ((y + row) as usize * self.width as usize + x as usize) * 3;
            self.rgb[to..to + columns * 3].copy_from_slice(&rgb[from..from + columns * 3]);
        }
    }

    /// Renders one line of text, `size` pixels high, with its left end at `x` and its baseline at `y`, clipped to the
    /// image.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "positions in an image")]
    pub(crate) fn text(&mut self, x: u32, y: u32, size: f32, color: Color, text: &str) {
        let font = font().as_scaled(PxScale::from(size));
        let mut line = Line { width: x as f32, ..Line::new(size) };
        for character in text.chars().take(most_characters(size, self.width as f32)).map(drawable_character) {
            let (id, at) = line.push(character);
            let glyph = id.with_scale_and_position(PxScale::from(size), point(at, y as f32));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                let (left, top) = (bounds.min.x as i64, bounds.min.y as i64);
                outline.draw(|column, row, share| {
                    self.mix(left + i64::from(column), top + i64::from(row), color, share);
                });
            }
        }
    }
}

/// A line of text that is laid out character by character.
#[derive(Clone, Copy)]
struct Line {
    size: f32,
    width: f32,
    last: Option<GlyphId>,
}

impl Line {
    fn new(size: f32) -> Self {
        Self { size, width: 0.0, last: None }
    }

    /// Appends a character; returns its glyph and x offset.
    fn push(&mut self, character: char) -> (GlyphId, f32) {
        let font = font().as_scaled(PxScale::from(self.size));
        let id = font.glyph_id(character);
        if let Some(last) = self.last.replace(id) {
            self.width += font.kern(last, id);
        }
        let begin = self.width;
        self.width += font.h_advance(id);
        (id, begin)
    }

    /// The width after appending a character.
    fn width_with(&self, character: char) -> f32 {
        let mut longer = *self;
        longer.push(character);
        longer.width
    }
}

/// An upper bound on the characters that fit into `width` pixels. The narrowest are a quarter of their height wide; the
/// bound also limits the number of accents, which have no width.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width in pixels")]
fn most_characters(size: f32, width: f32) -> usize {
    (8.0 * width / size).max(0.0) as usize + 16
}

/// The character, or `·` if it cannot be rendered.
fn drawable_character(character: char) -> char {
    if character.is_whitespace() || character.is_control() {
        ' '
    } else if font().glyph_id(character).0 == 0 {
        '·'
    } else {
        character
    }
}

/// `text` on one line, with `·` for characters that the font lacks.
pub fn drawable(text: &str) -> String {
    text.chars().map(drawable_character).collect()
}

/// The width in pixels of one line of text `size` pixels high.
pub fn text_width(text: &str, size: f32) -> f32 {
    let mut line = Line::new(size);
    text.chars().map(drawable_character).for_each(|character| {
        line.push(character);
    });
    line.width
}

/// `text` if it fits into `width` pixels, otherwise as much of it as fits, followed by an ellipsis. Reads only as much
/// of a long text as may fit.
pub fn shortened(text: &str, size: f32, width: f32) -> String {
    let most = most_characters(size, width);
    let kept: Vec<char> = text.chars().take(most + 1).map(drawable_character).collect();
    let mut line = Line::new(size);
    // Where the text may end before an ellipsis: not after a space.
    let mut fitting = (line.width_with('…') <= width).then_some(0);
    for (at, &character) in kept.iter().enumerate() {
        line.push(character);
        if character != ' ' && at + 1 < kept.len() && line.width_with('…') <= width {
            fitting = Some(at + 1);
        }
    }
    if kept.len() <= most && line.width <= width {
        return kept.into_iter().collect();
    }
    fitting.map_or_else(String::new, |end| kept[..end].iter().chain(&['…']).collect())
}

/// Breaks `text` between words into at most `lines` lines of `width` pixels; the last ends in an ellipsis if text
/// remains. Reads only as much as may fit, like [`shortened`].
pub fn wrapped(text: &str, size: f32, width: f32, lines: usize) -> Vec<String> {
    let most = most_characters(size, width);
    let words = first_words(text, most + 1, (most + 2) * (lines + 1));
    let mut done = Vec::new();
    let mut next = 0;
    while next < words.len() && done.len() < lines {
        let is_last = done.len() + 1 == lines;
        let mut line = Line::new(size);
        let mut width_with = |characters: &mut dyn Iterator<Item = char>| {
            characters.for_each(|character| {
                line.push(character);
            });
            line.width
        };
        width_with(&mut words[next].chars());
        let mut end = next + 1;
        while end < words.len() && width_with(&mut std::iter::once(' ').chain(words[end].chars())) <= width {
            end += 1;
        }
        let line = if is_last { words[next..].join(" ") } else { words[next..end].join(" ") };
        done.push(shortened(&line, size, width));
        next = end;
    }
    done
}

/// The first words of a text in renderable characters, until they have `enough` characters in total; at most `most`
/// characters per word.
fn first_words(text: &str, most: usize, enough: usize) -> Vec<String> {
    let (mut words, mut characters) = (Vec::new(), 0);
    let ends = |character: char| character.is_whitespace() || character.is_control();
    for word in text.split(ends).filter(|word| !word.is_empty()) {
        if characters >= enough {
            break;
        }
        let word: String = word.chars().take(most).map(drawable_character).collect();
        characters += word.chars().count() + 1;
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference implementation of [`shortened`] that measures every candidate from its start.
    fn shortened_slowly(text: &str, size: f32, width: f32) -> String {
        let text = drawable(text);
        if text_width(&text, size) <= width {
            return text;
        }
        let mut kept: Vec<char> = text.chars().collect();
        while kept.pop().is_some() {
            let candidate = kept.iter().collect::<String>().trim_end().to_owned() + "…";
            if text_width(&candidate, size) <= width {
                return candidate;
            }
        }
        String::new()
    }

    #[test]
    fn what_fits_is_what_measuring_everything_finds() {
        let texts = [
            "",
            " ",
            "a fox",
            "a fox   ",
            "WAVE To AVAIL iiii llll ....",
            "a large red circle above a small green square, on a table of wood  ",
            "e\u{301}e\u{301}e\u{301} 狐 \t tab\nline",
            "   a space before",
        ];
        for text in texts {
            for width in [0.0, 3.0, 9.0, 20.0, 60.5, 144.0, 400.0] {
                for size in [15.0, 26.0] {
                    let found = shortened(text, size, width);
                    assert_eq!(found, shortened_slowly(text, size, width), "{text:?} in {width}");
                }
            }
        }
    }

    #[test]
    fn lines_break_between_words_and_end_in_an_ellipsis() {
        let text = "a large red circle above a small green square on a wooden table";
        let lines = wrapped(text, 15.0, 144.0, 2);
        assert_eq!(lines.len(), 2);
        let second = lines[1].strip_suffix('…').expect("more would follow");
        assert!(text.starts_with(&format!("{} {second}", lines[0])), "{lines:?}");
        // The first line is full: the next word does not fit.
        let next = text[lines[0].len() + 1..].split(' ').next().unwrap();
        assert!(text_width(&format!("{} {next}", lines[0]), 15.0) > 144.0, "{lines:?}");
        assert_eq!(wrapped(text, 15.0, 144.0, 9).join(" "), text);
        assert_eq!(wrapped("one  two\n\nthree", 15.0, 400.0, 2), ["one two three"]);
        assert!(wrapped(" \n ", 15.0, 144.0, 2).is_empty() && wrapped("a", 15.0, 144.0, 0).is_empty());
    }

    /// Quadratic fitting would take hours for these.
    #[test]
    fn only_what_may_fit_of_a_long_text_is_looked_at() {
        const MANY: usize = 1_000_000;
        for unit in ["x", "xy ", " ", "\u{301}", "狐", "word\n"] {
            let text = unit.repeat(MANY);
            for line in wrapped(&text, 15.0, 144.0, 2) {
                assert!(text_width(&line, 15.0) <= 144.0);
            }
            assert!(text_width(&shortened(&text, 15.0, 144.0), 15.0) <= 144.0);
            Raster::new(144, 20, [255; 3]).text(0, 15, 15.0, [0; 3], &text);
        }
    }
}
