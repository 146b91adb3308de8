//! The layout of generated images: a flat folder, or the folders that GenEval's scorer reads
//! (<https://github.com/djghosh13/geneval>, `generation/diffusers_generate.py` and its README).

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    data::{FullImage, Preprocess, load_full_image},
    error::{Error, Result},
    files::{
        text::{filled_lines, read_text},
        write_atomic,
    },
    report::{
        contact_sheet::{SheetRow, Thumbnail, contact_sheet},
        raster::Raster,
    },
};

/// The layout of images in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageLayout {
    /// `0000_00.png` for the first image of the first prompt, and `grid.png` with all images.
    Flat,
    /// Like `Flat`, without `grid.png`.
    Bare,
    /// One folder per prompt, `00000`, with `metadata.jsonl`, `samples/0000.png` and so on, and `grid.png`.
    GenEval {
        /// The content of `metadata.jsonl`: per prompt, its line of GenEval's prompt file, verbatim.
        metadata: Vec<String>,
    },
}

/// Reads GenEval's prompts: one JSON object per line, with a string `prompt`. Returns the prompts and the lines.
///
/// # Errors
/// If the file cannot be read, a line is not such an object, or there is none.
pub fn geneval_prompts(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let text = read_text(path)?;
    let refuse =
        |line, message: &str| Error::Table { path: path.to_path_buf(), line, message: message.to_owned() };
    let (mut prompts, mut lines) = (Vec::new(), Vec::new());
    for (at, line) in filled_lines(&text) {
        let value: Option<Value> = serde_json::from_str(line).ok();
        let Some(prompt) = value.as_ref().and_then(|value| value.get("prompt")?.as_str()) else {
            return Err(refuse(
                Some(at),
                "is not a JSON object with a string `prompt`; GenEval's prompt file is \
                 prompts/evaluation_metadata.jsonl",
            ));
        };
        prompts.push(prompt.to_owned());
        lines.push(line.to_owned());
    }
    if prompts.is_empty() {
        return Err(refuse(None, "contains no prompts"));
    }
    Ok((prompts, lines))
}

/// Writes images, in the order of the prompts.
pub(super) struct ImageWriter<'a> {
    layout: &'a ImageLayout,
    out: &'a Path,
    each: usize,
    /// Flat layout: all images, one row per prompt.
    rows: Vec<SheetRow>,
    /// GenEval layout: the images of the current prompt.
    strip: Vec<Raster>,
}

impl<'a> ImageWriter<'a> {
    pub(super) fn new(layout: &'a ImageLayout, out: &'a Path, each: usize) -> Self {
        Self { layout, out, each, rows: Vec::new(), strip: Vec::new() }
    }

    /// The path of an image, relative to the folder.
    fn name(&self, prompt: usize, number: usize) -> String {
        match self.layout {
            ImageLayout::Flat | ImageLayout::Bare => format!("{prompt:04}_{number:02}.png"),
            ImageLayout::GenEval { .. } => format!("{prompt:05}/samples/{number:04}.png"),
        }
    }

    /// The image, if an earlier process wrote it and the file has not changed since. Decoders accept some damaged
    /// files, so the file must equal a new encoding of its pixels, byte for byte.
    pub(super) fn kept(&self, prompt: usize, number: usize) -> Option<Raster> {
        let path = self.out.join(self.name(prompt, number));
        let bytes = fs::read(&path).ok()?;
        let FullImage { width, height, rgb } = load_full_image(path, &Preprocess::default_for(1)).ok()?;
        let image = Raster::from_rgb(u32::try_from(width).ok()?, u32::try_from(height).ok()?, rgb).ok()?;
        (image.to_png().ok()? == bytes).then_some(image)
    }

    /// Writes an image, and returns its path relative to the folder.
    pub(super) fn write(
        &mut self,
        prompt: usize,
        number: usize,
        caption: &str,
        image: Raster,
    ) -> Result<String> {
        match self.layout {
            ImageLayout::Flat | ImageLayout::Bare => {
                let name = self.name(prompt, number);
                image.write_png(&self.out.join(&name))?;
                if *self.layout == ImageLayout::Bare {
                    return Ok(name);
                }
                if number == 0 {
                    self.rows.push(unlabeled(Vec::new()));
                }
                if let Some(row) = self.rows.last_mut() {
                    let (side, rgb) = (image.width(), image.rgb().to_vec());
                    row.thumbnails.push(Thumbnail { side, rgb, caption: caption.to_owned(), rating: None });
                }
                Ok(name)
            }
            ImageLayout::GenEval { metadata } => {
                let folder = self.out.join(format!("{prompt:05}"));
                if number == 0 {
                    let samples = folder.join("samples");
                    fs::create_dir_all(&samples).map_err(Error::io("create", &samples))?;
                    let line = format!("{}\n", metadata[prompt]);
                    write_atomic(&folder.join("metadata.jsonl"), line.as_bytes())?;
                }
                let name = self.name(prompt, number);
                image.write_png(&self.out.join(&name))?;
                self.strip.push(image);
                if number + 1 == self.each {
                    side_by_side(&std::mem::take(&mut self.strip)).write_png(&folder.join("grid.png"))?;
                }
                Ok(name)
            }
        }
    }

    /// Writes the grid of all images, if the layout has one.
    pub(super) fn finish(self) -> Result<Option<PathBuf>> {
        match self.layout {
            ImageLayout::Bare | ImageLayout::GenEval { .. } => Ok(None),
            ImageLayout::Flat => {
                let grid = self.out.join("grid.png");
                grid_of(self.rows, self.each)?.write_png(&grid)?;
                Ok(Some(grid))
            }
        }
    }
}

/// Images of one size in a row, with two black pixels around each, like torchvision's `make_grid`.
fn side_by_side(images: &[Raster]) -> Raster {
    const GAP: u32 = 2;
    let side = images.first().map_or(0, Raster::width);
    let count = u32::try_from(images.len()).unwrap_or(u32::MAX);
    let mut row = Raster::new(count.saturating_mul(side + GAP) + GAP, side + 2 * GAP, [0; 3]);
    let offsets = (0..count).map(|at| GAP + at * (side + GAP));
    offsets.zip(images).for_each(|(x, image)| row.paste(x, GAP, side, image.rgb()));
    row
}

fn unlabeled(thumbnails: Vec<Thumbnail>) -> SheetRow {
    SheetRow { label: String::new(), details: Vec::new(), thumbnails }
}

/// Images per row of the grid, with one image per prompt.
const COLUMNS: usize = 5;

/// The images of a prompt in one row; single images share rows.
fn grid_of(rows: Vec<SheetRow>, each: usize) -> Result<Raster> {
    let rows = if each > 1 {
        rows
    } else {
        let all: Vec<Thumbnail> = rows.into_iter().flat_map(|row| row.thumbnails).collect();
        all.chunks(COLUMNS).map(|part| unlabeled(part.to_vec())).collect()
    };
    contact_sheet("Samples", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_any_flipped_bit_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ImageWriter::new(&ImageLayout::Bare, folder.path(), 1);
        let pixels = (0..8 * 8 * 3).map(|at: u8| at.wrapping_mul(37)).collect();
        let image = Raster::from_rgb(8, 8, pixels).unwrap();
        let name = writer.write(0, 0, "a caption", image.clone()).unwrap();
        assert_eq!(writer.kept(0, 0).as_ref().map(Raster::rgb), Some(image.rgb()));
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for bit in 0..8 * whole.len() {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            assert!(writer.kept(0, 0).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_row_has_two_black_pixels_around_each_image() {
        let row = side_by_side(&[Raster::new(3, 3, [9; 3]), Raster::new(3, 3, [7; 3])]);
        assert_eq!((row.width(), row.height()), (12, 7));
        let line: Vec<u8> = row.rgb()[2 * 36..3 * 36].iter().step_by(3).copied().collect();
        assert_eq!(line, [0, 0, 9, 9, 9, 0, 0, 7, 7, 7, 0, 0]);
        assert!(row.rgb()[..2 * 36].iter().all(|&level| level == 0));
    }
}
