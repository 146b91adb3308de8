//! Images as people have them: what `make_images.py` made, against what Pillow made of each.

use std::{collections::BTreeMap, io::Read, path::Path};

use alchemist_engine::{
    Error,
    data::{FullImage, Preprocess, decode_image, load_full_image},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// Width, height and CRC-32 of the levels.
type Value = [u32; 3];

/// What is expected of a file, see `make_images.py`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    default: Option<Value>,
    truncated: Option<Value>,
    within: Option<u8>,
    levels: Option<String>,
    refused: Option<String>,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_str(include_str!("images.json")).unwrap()
}

/// The files by their names.
fn files() -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(include_bytes!("images.tar.gz").as_slice()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    });
    entries.collect()
}

/// Pillow's way with alpha and 16-bit gray, and images turned.
fn preprocess(truncated: bool) -> Preprocess {
    Preprocess { apply_orientation: true, truncated, ..Preprocess::released(8) }
}

fn load(folder: &Path, bytes: &[u8], truncated: bool) -> Result<FullImage, Error> {
    // The name says nothing of the format.
    let path = folder.join("image.dat");
    std::fs::write(&path, bytes).unwrap();
    load_full_image(&path, &preprocess(truncated))
}

fn value(image: &FullImage) -> Value {
    [image.width as u32, image.height as u32, crc32fast::hash(&image.rgb)]
}

/// Where what comes out is not what is expected, a line for each.
fn differences(name: &str, bytes: &[u8], expected: &Expected, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (truncated, wanted) in [(false, expected.default), (true, expected.truncated)] {
        let mode = if truncated { "truncated" } else { "default" };
        let loaded = load(folder, bytes, truncated);
        match (&loaded, wanted, &expected.refused) {
            (Err(Error::Image { message, .. }), _, Some(format)) if message.contains(format.as_str()) => {}
            (Ok(image), Some(wanted), None) if value(image) == wanted => {}
            (Ok(image), Some([width, height, _]), None) if [width, height] == value(image)[..2] => {
                let levels = expected.levels.as_ref().map(|levels| STANDARD.decode(levels).unwrap());
                let differs = |levels: Vec<u8>| {
                    std::iter::zip(levels, &image.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
                };
                match levels.map(differs) {
                    Some(most) if most <= expected.within.unwrap_or(0) => {}
                    most => found.push(format!("{name}: {mode}: other levels ({most:?})")),
                }
            }
            (Err(_), None, None) => {}
            (Ok(image), ..) => found.push(format!("{name}: {mode}: {:?} for {wanted:?}", value(image))),
            (Err(error), ..) => found.push(format!("{name}: {mode}: {error}")),
        }
    }
    found
}

#[test]
fn every_image_comes_out_as_pillows() {
    let folder = tempfile::tempdir().unwrap();
    let (files, expected) = (files(), expected());
    assert!(files.keys().eq(expected.keys()) && files.len() > 600, "{} files", files.len());
    let found: Vec<String> = expected
        .iter()
        .flat_map(|(name, expected)| differences(name, &files[name], expected, folder.path()))
        .collect();
    assert!(found.is_empty(), "{} of {}:\n{}", found.len(), expected.len(), found.join("\n"));
}

/// Cut anywhere, an image is refused by default or comes out whole; with the key it comes out at its size or is refused.
#[test]
fn an_image_cut_anywhere_is_refused_or_whole() {
    let names = [
        "rgb.jpg",
        "cmyk.jpg",
        "progressive.jpg",
        "interlaced.png",
        "palette.png",
        "plain.gif",
        "rgb_24.bmp",
        "palette_4.bmp",
        "rgb_last.tif",
        "tiff_lzw.tif",
    ];
    let files = files();
    for name in names {
        let bytes = &files[name];
        let whole = decode_image(bytes, Path::new(name), &preprocess(false)).unwrap();
        let mut counts = [0; 3];
        for length in (0..bytes.len()).step_by(if bytes.len() > 1500 { 3 } else { 1 }) {
            let cut = |truncated| decode_image(&bytes[..length], Path::new(name), &preprocess(truncated));
            let (default, truncated) = (cut(false), cut(true));
            if let Ok(image) = &default {
                assert_eq!(*image, whole, "{name} cut to {length} of {}", bytes.len());
                assert_eq!(*truncated.as_ref().unwrap(), whole, "{name} cut to {length}");
            }
            counts[usize::from(default.is_ok()) + usize::from(truncated.is_ok())] += 1;
        }
        let [refused, cut, _] = counts;
        assert!(refused > 0 && (cut > 0 || name == "tiff_lzw.tif"), "{name}: {counts:?}");
    }
}

/// Claims of sizes, tables and tiles without the bytes for them are refused before memory is taken.
#[test]
fn what_a_header_claims_is_checked_first() {
    let files = files();
    let refused = |bytes: &[u8]| {
        for truncated in [false, true] {
            let preprocess = Preprocess { max_pixels: 1 << 20, ..preprocess(truncated) };
            let error = decode_image(bytes, Path::new("claims"), &preprocess).unwrap_err();
            assert!(matches!(error, Error::Image { .. }), "{error}");
        }
    };
    let mut bmp = files["rgb_24.bmp"].clone();
    bmp[18..22].copy_from_slice(&60_000_u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000_u32.to_le_bytes());
    refused(&bmp);
    for (tag, kind) in [(256_u16, 4_u16), (257, 4), (322, 4), (323, 4)] {
        for name in ["rgb_II.tif", "tiles.tif", "rgb_last.tif", "strips.tif"] {
            let mut tiff = files[name].clone();
            let start = [tag.to_le_bytes(), kind.to_le_bytes()].concat();
            let Some(at) = tiff.windows(4).position(|window| window == start) else { continue };
            tiff[at + 8..at + 12].copy_from_slice(&0x0FFF_FFF0_u32.to_le_bytes());
            refused(&tiff);
        }
    }
    let mut gif = files["plain_screen_0.gif"].clone();
    let frame = gif.windows(5).position(|bytes| bytes == [0x2C, 0, 0, 0, 0]).unwrap();
    gif[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    refused(&gif);
}
