//! Contact sheets: thumbnails in rows, one row per decile of the ranking, as figures 4 and 5 of the paper show a
//! selection.

use image::{RgbImage, imageops};

use super::raster::{Color, Raster, shortened, text_width, wrapped};
use crate::{
    error::{Error, Result},
    select::Ranking,
};

const PAPER: Color = [255, 255, 255];
const INK: Color = [34, 34, 34];
const FAINT_INK: Color = [105, 105, 105];
const RULE: Color = [225, 225, 225];

/// An image with its caption and rating.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail {
    /// Width and height in pixels.
    pub side: u32,
    /// RGB, row by row from the top: `side · side · 3` bytes.
    pub rgb: Vec<u8>,
    /// The caption, of which two short lines are shown.
    pub caption: String,
    /// The rating, if known.
    pub rating: Option<f64>,
}

/// One row of the sheet.
#[derive(Clone, Debug, PartialEq)]
pub struct SheetRow {
    /// The row's label, such as `0–10%`.
    pub label: String,
    /// Further lines below the label, such as the range of ratings.
    pub details: Vec<String>,
    /// The images, left to right.
    pub thumbnails: Vec<Thumbnail>,
}

/// A decile of a ranking and a sample of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DecileSample {
    /// 0 for the best-rated decile.
    pub decile: usize,
    /// The highest rating in it.
    pub highest: f64,
    /// The lowest rating in it.
    pub lowest: f64,
    /// The sampled rows, evenly spaced over the decile, best-rated first.
    pub rows: Vec<u32>,
}

impl DecileSample {
    /// The row of a contact sheet for this decile.
    pub fn sheet_row(&self, thumbnails: Vec<Thumbnail>) -> SheetRow {
        SheetRow {
            label: format!("{}–{}%", self.decile * 10, self.decile * 10 + 10),
            details: vec![rating_text(self.highest), format!("to {}", rating_text(self.lowest))],
            thumbnails,
        }
    }
}

/// Samples `each` rows from every decile of the ranking, evenly spaced. Empty deciles are left out.
///
/// # Errors
/// If `ratings` is empty or a rating is not finite.
#[expect(clippy::cast_possible_truncation, reason = "ranks are bounded by the ranking")]
pub fn decile_samples(ratings: &[f64], each: usize) -> Result<Vec<DecileSample>> {
    let ranking = Ranking::new(ratings)?;
    let order = ranking.order();
    let mut samples = Vec::new();
    for decile in 0..10 {
        let (begin, end) = ((order.len() * decile).div_ceil(10), (order.len() * (decile + 1)).div_ceil(10));
        let decile_rows = &order[begin..end];
        let (Some(&first), Some(&last)) = (decile_rows.first(), decile_rows.last()) else { continue };
        let count = each.min(decile_rows.len());
        let offset =
            |index: usize| ((2 * index as u64 + 1) * decile_rows.len() as u64 / (2 * count as u64)) as usize;
        samples.push(DecileSample {
            decile,
            highest: ratings[first as usize],
            lowest: ratings[last as usize],
            rows: (0..count).map(|index| decile_rows[offset(index)]).collect(),
        });
    }
    Ok(samples)
}

/// A rating with about four significant digits.
fn rating_text(rating: f64) -> String {
    let magnitude = rating.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        format!("{rating:.3e}").replace('-', "−")
    } else {
        let decimals = if magnitude >= 1000.0 {
            0
        } else if magnitude >= 10.0 {
            2
        } else {
            4
        };
        format!("{rating:.decimals$}").replace('-', "−")
    }
}

/// Renders a sheet: the title on top, a row's label and details at its left (if any row has some), and under each image
/// its caption and rating.
///
/// # Errors
/// If there is no image, or a thumbnail does not have `side · side · 3` bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positions in an image")]
pub fn contact_sheet(title: &str, rows: &[SheetRow]) -> Result<Raster> {
    const SIDE: u32 = 144;
    const GAP: u32 = 14;
    const MARGIN: u32 = 28;
    const CAPTION: f32 = 15.0;
    const LABEL: f32 = 26.0;
    const DETAIL: f32 = 17.0;
    const TITLE: f32 = 34.0;
    const TITLE_HEIGHT: u32 = 64;
    // Under an image: two lines of its caption, and its rating.
    const BELOW: u32 = 44;
    const RATING_HEIGHT: u32 = 22;

    let columns = rows.iter().map(|row| row.thumbnails.len()).max().unwrap_or(0);
    if columns == 0 {
        return Err(Error::argument("a contact sheet needs at least one image"));
    }
    let label_width = rows
        .iter()
        .flat_map(|row| {
            let details = row.details.iter().map(|detail| text_width(detail, DETAIL));
            details.chain([text_width(&row.label, LABEL)])
        })
        .fold(0.0f32, f32::max)
        .clamp(60.0, 320.0)
        .ceil() as u32;
    let rated = rows.iter().flat_map(|row| &row.thumbnails).any(|thumbnail| thumbnail.rating.is_some());
    let row_height = SIDE + BELOW + if rated { RATING_HEIGHT } else { 0 };
    let labeled = rows.iter().any(|row| !row.label.is_empty() || !row.details.is_empty());
    let left = MARGIN + if labeled { label_width + 24 } else { 0 };
    let width = left + columns as u32 * (SIDE + GAP) - GAP + MARGIN;
    let height = TITLE_HEIGHT + MARGIN + rows.len() as u32 * (row_height + GAP) - GAP + MARGIN;
    let mut sheet = Raster::new(width, height, PAPER);
    let title = shortened(title, TITLE, (width - 2 * MARGIN) as f32);
    sheet.text(MARGIN, MARGIN + 30, TITLE, INK, &title);

    for (index, row) in rows.iter().enumerate() {
        let top = TITLE_HEIGHT + MARGIN + index as u32 * (row_height + GAP);
        sheet.fill(MARGIN, top - GAP / 2 - 1, width - 2 * MARGIN, 1, RULE);
        let label = shortened(&row.label, LABEL, label_width as f32);
        sheet.text(MARGIN, top + 30, LABEL, INK, &label);
        for (line, detail) in row.details.iter().enumerate() {
            let detail = shortened(detail, DETAIL, label_width as f32);
            sheet.text(MARGIN, top + 58 + line as u32 * 22, DETAIL, FAINT_INK, &detail);
        }
        for (column, thumbnail) in row.thumbnails.iter().enumerate() {
            let x = left + column as u32 * (SIDE + GAP);
            sheet.paste(x, top, SIDE, &resized(thumbnail, SIDE)?);
            let lines = wrapped(&thumbnail.caption, CAPTION, SIDE as f32, 2);
            for (line, text) in lines.iter().enumerate() {
                sheet.text(x, top + SIDE + 17 + line as u32 * 17, CAPTION, INK, text);
            }
            if let Some(rating) = thumbnail.rating {
                let rating = shortened(&rating_text(rating), CAPTION, SIDE as f32);
                sheet.text(x, top + SIDE + 17 + lines.len() as u32 * 17 + 2, CAPTION, FAINT_INK, &rating);
            }
        }
    }
    Ok(sheet)
}

/// The thumbnail at the sheet's size: an integer factor repeats pixels, any other resamples.
fn resized(thumbnail: &Thumbnail, side: u32) -> Result<Vec<u8>> {
    let Some(image) =
        RgbImage::from_raw(thumbnail.side, thumbnail.side, thumbnail.rgb.clone()).filter(|_| {
            thumbnail.side > 0 && thumbnail.rgb.len() == thumbnail.side as usize * thumbnail.side as usize * 3
        })
    else {
        return Err(Error::shape(
            "contact_sheet",
            format!("{} bytes are not an image of {1}×{1} pixels", thumbnail.rgb.len(), thumbnail.side),
        ));
    };
    if thumbnail.side == side {
        return Ok(image.into_raw());
    }
    let filter = if side.is_multiple_of(thumbnail.side) {
        imageops::FilterType::Nearest
    } else {
        imageops::FilterType::CatmullRom
    };
    Ok(imageops::resize(&image, side, side, filter).into_raw())
}
