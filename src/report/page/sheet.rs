//! Contact sheets of a page: images by decile of the ranking. Each image opens with its neighbors in rank.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use maud::{Markup, PreEscaped, html};

use crate::error::{Error, Result};

/// Quality of JPEGs in pages.
const JPEG_QUALITY: u8 = 85;

/// One pair.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tile {
    /// Its rank, 0 is the best rated.
    pub rank: usize,
    /// Its id.
    pub id: String,
    /// Its caption.
    pub caption: String,
    /// Further information, such as its flaw; empty for none.
    pub note: String,
    /// Its rating.
    pub rating: f64,
    /// Its training loss, if recorded.
    pub loss: Option<f64>,
    /// Why it is rated low, in a few words; empty if unknown.
    pub reason: &'static str,
    /// Its measurements, one per line.
    pub measured: Vec<String>,
    /// The image as a `data:` URL, or why there is none.
    pub image: std::result::Result<String, String>,
}

/// A decile of the ranking.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SheetDecile {
    /// 0 for the best rated.
    pub decile: usize,
    /// The highest and the lowest rating in it.
    pub ratings: (f64, f64),
    /// The tiles shown for it, as indices into [`Sheet::tiles`]; empty for an empty decile.
    pub shown: Vec<usize>,
}

/// Images by rating.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sheet {
    /// Number of rows in the ranking.
    pub rows: usize,
    /// The images shown and their neighbors, by rank.
    pub tiles: Vec<Tile>,
    /// All ten deciles.
    pub deciles: Vec<SheetDecile>,
}

/// Encodes an RGB image of `side` × `side` pixels as a `data:` URL.
///
/// # Errors
/// If the number of bytes does not match.
pub(crate) fn data_address(side: usize, rgb: &[u8]) -> Result<String> {
    let size = u32::try_from(side).map_err(|_| Error::argument("an image is too large for a page"))?;
    if rgb.len() != side * side * 3 {
        return Err(Error::invalid(format!(
            "{} bytes do not match an image of {side}×{side} pixels",
            rgb.len()
        )));
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode(rgb, size, size, ExtendedColorType::Rgb8)
        .map_err(|error| Error::invalid(format!("cannot encode an image for the page: {error}")))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}

/// Maximum number of characters of a caption on a page; no encoder reads more.
const CAPTION: usize = 2_000;

/// A caption, truncated to [`CAPTION`] characters.
fn beginning(caption: &str) -> Cow<'_, str> {
    match caption.char_indices().nth(CAPTION) {
        Some((end, _)) => Cow::Owned(format!("{}…", &caption[..end])),
        None => Cow::Borrowed(caption),
    }
}

/// A rating or loss, formatted.
fn number(value: f64) -> String {
    let digits = if value.abs() >= 100.0 { 1 } else { 4 };
    format!("{value:.digits$}").replace('-', "−")
}

impl Sheet {
    pub(super) fn markup(&self, number_of_part: usize) -> Markup {
        let name = format!("tiles-{number_of_part}");
        let shown: Vec<bool> = {
            let mut shown = vec![false; self.tiles.len()];
            self.deciles.iter().flat_map(|decile| &decile.shown).for_each(|&at| shown[at] = true);
            shown
        };
        // Images that the sheet shows are not embedded twice.
        let tiles_json: Vec<serde_json::Value> = std::iter::zip(&self.tiles, &shown)
            .map(|(tile, &shown)| {
                serde_json::json!({
                    "rank": tile.rank,
                    "id": tile.id,
                    "caption": beginning(&tile.caption),
                    "note": tile.note,
                    "rating": number(tile.rating),
                    "loss": tile.loss.map(number),
                    "measured": tile.measured,
                    "image": match &tile.image { Ok(address) if !shown => Some(address), _ => None },
                    "missing": tile.image.as_ref().err(),
                })
            })
            .collect();
        // `<` would end the script element.
        let tiles_json = serde_json::Value::from(tiles_json).to_string().replace('<', "\\u003c");
        html! {
            div.sheet data-tiles=(name) data-rows=(self.rows) {
                @for decile in &self.deciles {
                    div.decile {
                        h4 {
                            (decile.decile * 10) "–" (decile.decile * 10 + 10) "%"
                            small { (number(decile.ratings.0)) " to " (number(decile.ratings.1)) }
                        }
                        @if decile.shown.is_empty() { p { "no pair has such a rank" } }
                        @for &at in &decile.shown { (self.tiles[at].markup(at)) }
                    }
                }
            }
            script type="application/json" id=(name) { (PreEscaped(tiles_json)) }
        }
    }
}

impl Tile {
    fn markup(&self, at: usize) -> Markup {
        let caption = beginning(&self.caption);
        html! {
            button.tile type="button" data-tile=(at) {
                @match &self.image {
                    Ok(address) => img src=(address) alt=(caption) width="96" height="96";,
                    Err(why) => span.missing title=(why) { "cannot be read" },
                }
                @if !self.note.is_empty() { em { (self.note) } }
                span { (caption) }
                small {
                    (number(self.rating))
                    @if let Some(loss) = self.loss { " · loss " (format!("{loss:.2}")) }
                    @if !self.reason.is_empty() { br; (self.reason) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::{Content, Page, Section};

    fn tile(rank: usize, image: std::result::Result<String, String>) -> Tile {
        let caption = "a </script> & a \"b\"".to_owned();
        let id = format!("pair-{rank}");
        let measured = vec!["caption gain 0.1".to_owned()];
        let note = "noise".to_owned();
        Tile { rank, id, caption, note, rating: -0.5, loss: Some(4.25), reason: "low gain", measured, image }
    }

    #[test]
    fn a_sheet_holds_each_image_once_and_says_what_cannot_be_read() {
        let address = |shade: u8| data_address(8, &[shade; 192]).unwrap();
        let sheet = Sheet {
            rows: 3,
            tiles: vec![tile(0, Ok(address(10))), tile(1, Ok(address(200))), tile(2, Err("gone".to_owned()))],
            deciles: vec![
                SheetDecile { decile: 0, ratings: (1.0, 0.5), shown: vec![0, 2] },
                SheetDecile { decile: 1, ratings: (f64::NAN, f64::NAN), shown: vec![] },
            ],
        };
        let section = Section { title: "Sheets".to_owned(), parts: vec![Content::Sheet(sheet)] };
        let page = Page { title: "Pairs".to_owned(), lead: vec![], sections: vec![section] };
        let html = page.to_html();
        for shade in [10, 200] {
            assert_eq!(html.matches(&address(shade)).count(), 1);
        }
        assert!(html.contains("cannot be read") && html.contains("no pair has such a rank"));
        // Only the page's own two scripts are closed.
        assert_eq!(html.matches("</script>").count(), 2);
        assert_eq!(html.matches("loss 4.25").count(), 2);
        assert_eq!(html.matches("low gain").count(), 2);
        assert_eq!(html.matches("caption gain 0.1").count(), 3);
        assert!(data_address(8, &[0; 10]).is_err());
        // A long caption is truncated.
        assert_eq!(beginning(&"狐".repeat(CAPTION)), "狐".repeat(CAPTION));
        assert_eq!(beginning(&"狐".repeat(1_000_000)), "狐".repeat(CAPTION) + "…");
        // The URL is an image.
        let bytes = STANDARD.decode(address(200).rsplit(',').next().unwrap()).unwrap();
        let image = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (8, 8));
        assert!(image.pixels().all(|pixel| pixel.0.iter().all(|&value| value.abs_diff(200) < 4)));
    }
}
