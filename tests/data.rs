//! Reading corpora and images: every way in which they go wrong, and Pillow's numbers where they go right.

use std::fs;
use std::path::{Path, PathBuf};

use alchemist_engine::{
    Error,
    data::{
        ColumnNames, Corpus, ImageRef, Loader, Preprocess, Record, RecordBatch, SquareImage,
        corpus::{RELEASED_EMPTY_CAPTION, Schema},
        decode_image, load_image,
    },
    training::sampler::{BatchSampler, ReleasedOrder, ReleasedSampler},
};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

fn table(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corpus.csv");
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn read(path: &Path) -> Result<Vec<Record>, Error> {
    Corpus::open(path, &ColumnNames::default())?.read_all()
}

/// The one error that reading the table gives, which must be of the table, on the line and with the words expected.
fn table_error(content: impl AsRef<[u8]>, expected_line: Option<u64>, words: &[&str]) {
    let (_folder, path) = table(content);
    let error = read(&path).unwrap_err();
    let Error::Table { line, .. } = &error else { panic!("not an error of the table: {error}") };
    let message = error.to_string();
    assert_eq!(*line, expected_line, "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_table_is_read_in_any_column_order_with_further_columns_kept_as_written() {
    let text = "\u{feff}width,cogvlm_caption,image_save_path,id,note\n\
                064,\"a cat, \"\"black\"\"\nand tall\",images/1.png,007,\n\
                \n\
                1e3,,/absolute/2.png,12345678901234567890123,\" x \"\r\n\
                5,5\" nail,3.png,ключ,end";
    let (folder, path) = table(text);
    let records = read(&path).unwrap();
    let column = |f: fn(&Record) -> String| records.iter().map(f).collect::<Vec<_>>();
    assert_eq!(column(|r| r.id.clone()), ["007", "12345678901234567890123", "ключ"]);
    assert_eq!(column(|r| r.caption.clone()), ["a cat, \"black\"\nand tall", "", "5\" nail"]);
    assert_eq!(records.iter().map(|r| r.row).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(column(|r| r.origin.to_string()), [2, 5, 6].map(|line| format!("corpus.csv:{line}")));
    assert_eq!(records[0].image.local().unwrap(), folder.path().join("images/1.png"));
    assert_eq!(records[1].image.local().unwrap(), Path::new("/absolute/2.png"));
    assert_eq!(records[1].fields, ["1e3", "", "/absolute/2.png", "12345678901234567890123", " x "]);
    let corpus = Corpus::open(&path, &ColumnNames::default()).unwrap();
    let Schema { columns, id, image, caption, ids_are_paths } = corpus.schema();
    assert_eq!(*columns, ["width", "cogvlm_caption", "image_save_path", "id", "note"]);
    assert_eq!((*id, *image, *caption, *ids_are_paths), (3, 2, 1, false));
}

#[test]
fn column_names_can_be_chosen() {
    let (_folder, path) = table("key,file,text,caption\n1,a.png,ours,theirs\n");
    let names = ColumnNames { id: "key".to_owned(), image: "file".to_owned(), caption: "text".to_owned() };
    let records = Corpus::open(&path, &names).unwrap().read_all().unwrap();
    assert_eq!((records[0].id.as_str(), records[0].caption.as_str()), ("1", "ours"));
}

#[test]
fn a_missing_table_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let message = read(&folder.path().join("none.csv")).unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("none.csv"), "{message}");
    let message = read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is a folder; pass the table that lists the images"), "{message}");
}

#[test]
fn an_empty_table_is_an_error() {
    table_error("", None, &["the file is empty", "`image_save_path`"]);
    table_error("\n\n", None, &["the file is empty"]);
    table_error("id,image_save_path,caption\n\n\r\n", None, &["a header but no rows"]);
}

#[test]
fn a_missing_column_is_an_error_that_lists_the_columns_and_suggests_one() {
    table_error(
        "id,image_sav_path,caption\n1,a,b\n",
        Some(1),
        &[
            "no column `image_save_path`",
            "`id`, `image_sav_path`, `caption`",
            "did you mean `image_sav_path`?",
        ],
    );
    table_error(
        "id|image_save_path|caption\n1|a|b\n",
        Some(1),
        &["no column `image_save_path`", "separated by commas, tabs or semicolons"],
    );
    table_error(
        "id,image_save_path,x,y\n1,a,b,c\n",
        Some(1),
        &["no column `caption`", "--set columns.caption=NAME", "--caption-column"],
    );
    table_error(
        "id,id,image_save_path,caption\n1,1,a,b\n",
        Some(1),
        &["two columns are called", "columns 1 and 2"],
    );
}

#[test]
fn duplicate_ids_are_an_error_that_names_both_lines() {
    let text = "id,image_save_path,caption\n1,a,\"two\nlines\"\n01,b,c\n1,c,d\n";
    table_error(text, Some(5), &["`1`", "already on line 2"]);
    let (_folder, path) = table(text);
    let streamed: Vec<_> = Corpus::open(&path, &ColumnNames::default()).unwrap().collect();
    assert_eq!(streamed.len(), 3, "streaming compares ids only when asked to");
    assert!(streamed.iter().all(Result::is_ok));
    table_error("id,image_save_path,caption\n,a,b\n", Some(2), &["the id", "is empty"]);
}

#[test]
fn a_row_that_is_not_utf_8_is_an_error_with_its_line() {
    table_error(
        b"id,image_save_path,caption\n1,a,b\n2,c,caf\xe9\n",
        Some(3),
        &["field 3 is not UTF-8", "0xe9"],
    );
    table_error(b"id,image_save_path,caption\n1,a,\"b\nc\nd\xff\"\n", Some(4), &["not UTF-8"]);
    // Two halves of one character in neighboring fields are not a character.
    table_error(b"id,image_save_path,caption\n1,a\xc3,\xa9b\n", Some(2), &["field 2 is not UTF-8"]);
    table_error(b"\xff\xfei\0d\0,\0", None, &["UTF-16"]);
    table_error(b"PAR1\x15\x04", None, &["Parquet"]);
    table_error(b"\x1f\x8b\x08\0", None, &["gzip"]);
}

#[test]
fn an_unbalanced_row_is_an_error_with_its_line() {
    table_error("id,image_save_path,caption\n1,a,b\n2,c,d,e\n", Some(3), &["found 4", "expected 3"]);
    table_error("id,image_save_path,caption\n1,a\n", Some(2), &["found 2"]);
    table_error("id,image_save_path,caption\n1,a,b\n2,c,\"d\n3,e,f\n", Some(3), &["never closed"]);
    table_error(
        "id,image_save_path,caption\n1,a,\"b\"c\n",
        Some(2),
        &["unbalanced quotes", "opened on line 2"],
    );
    table_error("id,image_save_path,caption\n1,a,\"b\n2,c,\"d\"\n", Some(3), &["opened on line 2"]);
}

/// A quote that is never closed must not draw a file of any size into memory.
#[test]
fn a_row_without_end_is_an_error_before_it_fills_the_memory() {
    let mut text = b"id,image_save_path,caption\n1,a,b\n2,b,\"".to_vec();
    text.resize(text.len() + (18 << 20), b'x');
    table_error(text, Some(3), &["longer than 16 MiB", "quote is not closed"]);
}

#[test]
fn an_empty_caption_is_empty_unless_the_released_text_is_asked_for() {
    let (_folder, path) = table("id,image_save_path,caption\n1,a,\n2,b,\" \"\n");
    let captions = |corpus: Corpus| corpus.map(|record| record.unwrap().caption).collect::<Vec<_>>();
    let open = || Corpus::open(&path, &ColumnNames::default()).unwrap();
    assert_eq!(captions(open()), ["", " "]);
    assert_eq!(captions(open().with_empty_caption(RELEASED_EMPTY_CAPTION)), ["empty caption", " "]);
    let record = open().with_empty_caption(RELEASED_EMPTY_CAPTION).next().unwrap().unwrap();
    assert_eq!(record.fields, ["1", "a", ""], "the fields stay as they are written");
}

#[test]
fn captions_and_paths_are_in_any_script() {
    let captions =
        ["一只黑猫", "قطة سوداء", "чёрный кот", "काली बिल्ली", "👩‍👩‍👧 e\u{301}", "\u{202e}abc", "a\0b"];
    let mut text = String::from("id,image_save_path,caption\n");
    for (index, caption) in captions.iter().enumerate() {
        text.push_str(&format!("{index},图 {index}.png,{caption}\n"));
    }
    let (folder, path) = table(text);
    let records = read(&path).unwrap();
    assert_eq!(records.iter().map(|r| r.caption.as_str()).collect::<Vec<_>>(), captions);
    assert_eq!(records[1].image.local().unwrap(), folder.path().join("图 1.png"));
}

#[test]
fn reading_goes_on_from_any_row() {
    let mut text = String::from("id,image_save_path,caption\r\n");
    for row in 0..500 {
        text.push_str(&format!("{row},{row}.png,\"line one of {row}\nline two\"\r\n"));
    }
    let (_folder, path) = table(text);
    let all = read(&path).unwrap();
    let open = || Corpus::open(&path, &ColumnNames::default()).unwrap();
    for start in [1, 123, 499] {
        let RecordBatch { records, next } = open().batch(None, start).unwrap();
        assert_eq!(records, all[..start]);
        // A reader that has read something else, and one that is new.
        let mut used = open();
        used.nth(7).unwrap().unwrap();
        for mut corpus in [open(), used] {
            let RecordBatch { records, next } = corpus.batch(next, 1000).unwrap();
            assert_eq!((&records[..], next), (&all[start..], None));
        }
    }
    // A batch that ends with the corpus is its last, whether it is full or not.
    for most in [500, 501] {
        let RecordBatch { records, next } = open().batch(None, most).unwrap();
        assert_eq!((records.len(), next), (500, None));
    }
    let next = open().batch(None, 499).unwrap().next;
    fs::write(&path, "id,image_save_path,caption\n1,1.png,x\n").unwrap();
    assert!(open().batch(next, 1).unwrap_err().to_string().contains("changed"));
}

fn image_error(bytes: &[u8], words: &[&str]) {
    let error = decode_image(bytes, Path::new("some.png"), &Preprocess::default_for(8)).unwrap_err();
    assert!(matches!(error, Error::Image { .. }), "{error}");
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(samples().join(name)).unwrap()
}

fn decode(name: &str, preprocess: &Preprocess) -> SquareImage {
    load_image(samples().join(name), preprocess).unwrap()
}

fn largest_difference(left: &[u8], right: &[u8]) -> u8 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

const ALL: [&str; 20] = [
    "alpha.png",
    "alpha.webp",
    "animated.gif",
    "animated.webp",
    "bilevel.png",
    "cmyk.jpg",
    "cmyk_subsampled.jpg",
    "grey16.png",
    "lossless.webp",
    "lossy.webp",
    "orientation6.jpg",
    "orientation6.png",
    "orientation6.webp",
    "palette_transparent.png",
    "progressive.jpg",
    "rgb.jpg",
    "rgb.png",
    "rgb16.png",
    "still.gif",
    "ycck.jpg",
];

/// `pillow_8x8.json` holds what Pillow makes of each sample in the released way: the first frame, alpha dropped,
/// EXIF ignored, the middle square, Lanczos to 8 x 8.
#[test]
fn every_form_is_decoded_as_pillow_decodes_it() {
    let json = fs::read(samples().join("pillow_8x8.json")).unwrap();
    let expected: std::collections::BTreeMap<String, Vec<u8>> = serde_json::from_slice(&json).unwrap();
    assert_eq!(expected.keys().map(String::as_str).collect::<Vec<_>>(), ALL);
    for (name, levels) in expected {
        let ours = decode(&name, &Preprocess::released(8));
        let difference = largest_difference(&ours.rgb, &levels);
        assert_eq!(difference, 0, "{name}: {difference} levels from Pillow");
    }
}

/// The fixture made with the released code: equal to the last level.
#[test]
fn the_released_preprocessing_is_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image_preproc");
    let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(!tensors.is_empty());
    for (name, expected) in tensors.iter() {
        let (file, side) = name.rsplit_once(".r").unwrap();
        let side: usize = side.parse().unwrap();
        let image = load_image(folder.join(file), &Preprocess::released(side)).unwrap();
        assert_eq!(expected.shape(), [3, side, side]);
        let planes: Vec<u8> =
            (0..3).flat_map(|channel| image.rgb.iter().skip(channel).step_by(3).copied()).collect();
        let difference = largest_difference(&planes, expected.data());
        assert_eq!(difference, 0, "{name}: {difference} levels");

        let tensor = image.to_tensor().unwrap();
        assert_eq!(tensor.shape(), [3, side, side]);
        for (value, level) in tensor.as_slice::<f32>().unwrap().iter().zip(&planes) {
            let x = f32::from(*level) / 255.0;
            assert_eq!(*value, x + x - 1.0);
        }
    }
}

#[test]
fn only_the_first_frame_of_an_animation_is_taken() {
    let preprocess = Preprocess::default_for(16);
    assert_eq!(decode("animated.webp", &preprocess), decode("rgb.png", &preprocess));
    assert_eq!(decode("animated.gif", &preprocess), decode("still.gif", &preprocess));
}

#[test]
fn cmyk_is_decoded_in_the_colors_that_were_meant() {
    let preprocess = Preprocess::default_for(16);
    // The lower rows have more black; the corner at the top left is blue, as in the original.
    let (cmyk, rgb) = (decode("cmyk.jpg", &preprocess), decode("rgb.png", &preprocess));
    assert!(largest_difference(&cmyk.rgb[..16 * 3], &rgb.rgb[..16 * 3]) < 24, "{:?}", &cmyk.rgb[..48]);
    let brightness = |image: &SquareImage| image.rgb[15 * 48..].iter().map(|&l| u32::from(l)).sum::<u32>();
    assert!(brightness(&cmyk) * 10 < brightness(&rgb) * 7);
}

#[test]
fn transparency_is_laid_over_white_unless_the_released_way_is_asked_for() {
    let white = decode("alpha.png", &Preprocess::default_for(16));
    let dropped = decode("alpha.png", &Preprocess::released(16));
    assert_eq!(dropped, decode("rgb.png", &Preprocess::released(16)));
    assert_eq!(white.rgb[..3], [255; 3], "fully transparent is white");
    let last = white.rgb.len() - 3;
    assert_eq!(white.rgb[last..], dropped.rgb[last..], "opaque stays");
    // Row 8, column 0 of the square: alpha 136.
    let at = 8 * 48;
    for (over, level) in white.rgb[at..at + 3].iter().zip(&dropped.rgb[at..at + 3]) {
        let expected = (f64::from(*level) * 136.0 + 255.0 * 119.0) / 255.0;
        assert!((f64::from(*over) - expected).abs() <= 0.5 + 1e-9, "{over} for {expected}");
    }
}

#[test]
fn images_are_turned_as_exif_says_unless_the_released_way_is_asked_for() {
    let preprocess = Preprocess::default_for(16);
    for (name, upright) in [
        ("orientation6.png", "rgb.png"),
        ("orientation6.webp", "lossless.webp"),
        ("orientation6.jpg", "rgb.jpg"),
    ] {
        assert_eq!(
            decode(name, &Preprocess::released(16)),
            decode(upright, &Preprocess::released(16)),
            "{name}"
        );
        let (turned, stored) = (decode(name, &preprocess), decode(upright, &preprocess));
        // A quarter turn clockwise: the row at the top is the column at the left, from the bottom up.
        for x in 0..16 {
            for y in 0..16 {
                let (here, there) = ((y * 16 + x) * 3, ((15 - x) * 16 + y) * 3);
                assert_eq!(turned.rgb[here..here + 3], stored.rgb[there..there + 3], "{name} at {x}, {y}");
            }
        }
    }
}

#[test]
fn sixteen_bits_and_palettes_give_the_colors_of_eight_bits() {
    let preprocess = Preprocess::default_for(16);
    assert_eq!(decode("rgb16.png", &preprocess), decode("rgb.png", &preprocess));
    let gray = decode("grey16.png", &preprocess);
    let rgb = decode("rgb.png", &preprocess);
    for (gray, rgb) in gray.rgb.chunks_exact(3).zip(rgb.rgb.chunks_exact(3)) {
        let luma = 0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2]);
        assert!(gray[0] == gray[1] && gray[1] == gray[2] && (f64::from(gray[0]) - luma).abs() <= 1.0);
    }
}

#[test]
fn what_is_no_image_is_named() {
    image_error(b"", &["some.png: ", "empty (0 bytes)"]);
    image_error(b"<!DOCTYPE html>\n<html><body>404", &["HTML page"]);
    image_error(b"\xef\xbb\xbf  <HTML>", &["HTML page"]);
    image_error(b"<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"/>", &["SVG"]);
    image_error(b"version https://git-lfs.github.com/spec/v1\n", &["Git LFS"]);
    image_error(b"\0\0\0 ftypheic\0\0\0\0", &["HEIF"]);
    image_error(b"BM\x3a\0\0\0\0\0\0\0", &["corrupt or truncated BMP"]);
    image_error(b"II*\0\x08\0\0\0", &["truncated TIFF"]);
    image_error(b"8BPS\0\x01", &["PSD", "convert it"]);
    image_error(b"hello", &["not a recognized image"]);
    image_error(&[0; 4096], &["every byte is 0"]);
    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| load_image(path, &Preprocess::default_for(8)).unwrap_err().to_string();
    assert!(load(&folder.path().join("none.png")).contains("no such file"));
    assert!(load(folder.path()).contains("folder"));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    let error = load_image("/dev/zero", &Preprocess::default_for(8)).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

/// The form is told by the content, whatever the name says.
#[test]
fn a_wrong_ending_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.jpg");
    fs::write(&path, sample("rgb.png")).unwrap();
    let preprocess = Preprocess::default_for(8);
    assert_eq!(load_image(&path, &preprocess).unwrap(), decode("rgb.png", &preprocess));
}

fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// The sample with another width and height in its header.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = sample("rgb.png");
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = checksum(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

#[test]
fn an_enormous_image_is_refused_from_its_header() {
    image_error(&png_claiming(60_000, 60_000), &["60000 x 60000 = 3600000000 pixels", "limit of 89478485"]);
    image_error(&png_claiming(u32::MAX >> 1, u32::MAX >> 1), &["pixels"]);
    let mut gif = sample("still.gif");
    gif[6..10].copy_from_slice(&[0xFF; 4]);
    image_error(&gif, &["65535 x 65535"]);
    let mut jpeg = sample("rgb.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    image_error(&jpeg, &["65535 x 65535"]);
    // A frame that is larger than the screen it is shown on.
    let mut gif = sample("still.gif");
    let frame = gif.windows(5).position(|bytes| bytes == [0x2C, 0, 0, 0, 0]).unwrap();
    gif[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    image_error(&gif, &["corrupt or truncated GIF"]);
    // The limit itself is allowed, one below it is not.
    let limited = |max_pixels| Preprocess { max_pixels, ..Preprocess::default_for(8) };
    assert!(load_image(samples().join("rgb.png"), &limited(24 * 16)).is_ok());
    assert!(load_image(samples().join("rgb.png"), &limited(24 * 16 - 1)).is_err());
}

/// Claimed sizes below the limit with next to no data behind them.
#[test]
fn a_image_with_less_data_than_its_header_claims_is_refused() {
    image_error(&png_claiming(24, 17), &["corrupt or truncated PNG"]);
    image_error(&png_claiming(9_000, 9_000), &["corrupt or truncated PNG"]);
}

/// Whatever is cut off the end, the image is refused or whole: never one with a gray or empty rest.
#[test]
fn a_truncated_image_is_refused_or_whole() {
    let preprocess = Preprocess::default_for(16);
    for name in ALL {
        let bytes = sample(name);
        let whole = decode(name, &preprocess);
        let mut complete = 0;
        for length in 0..bytes.len() {
            if let Ok(image) = decode_image(&bytes[..length], Path::new(name), &preprocess) {
                assert_eq!(image, whole, "{name} cut to {length} of {} bytes", bytes.len());
                complete += 1;
            }
        }
        if name.ends_with("webp") {
            assert_eq!(complete, 0, "{name}: these end with their last byte");
        }
        if name.ends_with("jpg") {
            assert_eq!(complete, 2, "{name}: these end with a marker of two bytes, and pixels before it");
        }
    }
    // The end marker is there, but the middle is not.
    let mut jpeg = sample("rgb.jpg");
    let length = jpeg.len();
    jpeg.drain(length - 60..length - 2);
    image_error(&jpeg, &["corrupt or truncated JPEG"]);
}

/// Bytes changed, cut out and doubled at random: an error or an image of the right size, never a panic. Checksums are
/// not repaired, so most mutants of PNG end early; those of the other forms reach their decoders.
#[test]
fn no_bytes_whatever_make_it_panic() {
    use alchemist_engine::engine::random::{Purpose, Random};
    let preprocess = Preprocess { max_pixels: 1 << 20, ..Preprocess::default_for(4) };
    let (mut decoded, mut refused) = (0, 0);
    let mut random = Random::new(2, Purpose::Test, 0);
    for _ in 0..4000 {
        for name in ALL {
            let mut bytes = sample(name);
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                let end = (at + usize::try_from(random.below(32)).unwrap()).min(bytes.len());
                match random.below(5) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = 0xFF,
                    2 => bytes[at] = random.next_u32().to_le_bytes()[0],
                    3 if end - at < bytes.len() => drop(bytes.drain(at..end)),
                    _ => {
                        let piece = bytes[at..end].to_vec();
                        bytes.splice(at..at, piece);
                    }
                }
            }
            match decode_image(&bytes, Path::new(name), &preprocess) {
                Ok(image) => {
                    assert_eq!(image.rgb.len(), 4 * 4 * 3);
                    decoded += 1;
                }
                Err(Error::Image { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(decoded > 0 && refused > 0);
}

#[test]
fn the_loader_keeps_the_order_and_reports_failures_in_their_place() {
    let preprocess = Preprocess::default_for(8);
    let requests: Vec<(usize, ImageRef)> = (0..200)
        .map(|index| {
            let name = if index % 7 == 3 { "missing.png" } else { ALL[index % ALL.len()] };
            (index, samples().join(name).into())
        })
        .collect();
    for (threads, ahead) in [(1, 1), (2, 5), (8, 3), (3, 1000)] {
        let loader = Loader::new(requests.clone(), preprocess, threads, ahead).unwrap();
        let mut count = 0;
        for (index, image) in loader {
            assert_eq!(index, count);
            match image {
                Ok(image) => assert_eq!(image, load_image(&requests[index].1, &preprocess).unwrap()),
                Err(error) => assert!(index % 7 == 3, "{error}"),
            }
            count += 1;
        }
        assert_eq!(count, requests.len());
    }
    assert!(Loader::new(requests.clone(), preprocess, 0, 1).is_err());
    assert!(Loader::new(requests, preprocess, 1, 0).is_err());
}

#[test]
fn the_loader_draws_no_further_than_allowed_and_stops_when_dropped() {
    let drawn = std::cell::Cell::new(0);
    let image = ImageRef::from(samples().join("rgb.png"));
    let endless = (0u64..).map(|index| {
        drawn.set(drawn.get() + 1);
        (index, image.clone())
    });
    let mut loader = Loader::new(endless, Preprocess::default_for(8), 2, 6).unwrap();
    assert_eq!(drawn.get(), 6);
    for expected in 0..10 {
        assert_eq!(loader.next().unwrap().0, expected);
        assert_eq!(drawn.get(), 7 + expected, "six in flight after each");
    }
    drop(loader);
}

#[test]
fn each_epoch_of_the_sampler_is_a_fresh_permutation() {
    let mut sampler = BatchSampler::new(10, 4, 7).unwrap();
    assert_eq!(sampler.steps_per_epoch(), 3);
    let epoch = |sampler: &mut BatchSampler, epoch: u64| -> Vec<usize> {
        (0..3).flat_map(|step| sampler.batch(epoch * 3 + step)).collect()
    };
    let (first, second) = (epoch(&mut sampler, 0), epoch(&mut sampler, 1));
    assert_ne!(first, second);
    for order in [&first, &second] {
        let mut sorted = order[..10].to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(order[10..], order[..2], "filled up from the head");
    }
    // Any step can be asked for, in any order, of any sampler made alike.
    let mut fresh = BatchSampler::new(10, 4, 7).unwrap();
    assert_eq!(fresh.batch(5), second[8..]);
    assert_eq!(fresh.batch(0), first[..4]);
    assert_ne!(epoch(&mut BatchSampler::new(10, 4, 8).unwrap(), 0), first);
    assert_eq!(BatchSampler::new(4, 4, 0).unwrap().batch(9).len(), 4);
}

#[test]
fn a_sampler_that_cannot_fill_a_batch_says_so() {
    let message = BatchSampler::new(3, 4, 0).unwrap_err().to_string();
    assert!(message.contains("3 usable samples") && message.contains("batch of 4"), "{message}");
    assert!(BatchSampler::new(3, 0, 0).is_err());
}

/// `sampler.json` was made by running the released sampler; its keys are the settings.
#[test]
fn the_released_sampler_is_reproduced() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampler.json");
    let cases: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let setting = |key: &str| -> Option<usize> {
            let (_, rest) = name.split_once(&format!("{key}="))?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let mut sampler = ReleasedSampler::new(ReleasedOrder {
            dataset_len: setting("len").unwrap(),
            global_batch: setting("glb_bs").unwrap(),
            world_size: setting("world").unwrap_or(1),
            rank: setting("rank").unwrap_or(0),
            seed: 0,
            start_epoch: 0,
            fill_last: true,
            shuffle: true,
        })
        .unwrap();
        let batches = case.get("batches").unwrap_or(case).as_array().unwrap();
        if let Some(steps) = case.get("iters_per_ep") {
            assert_eq!(steps.as_u64().unwrap(), sampler.steps_per_epoch() as u64, "{name}");
        }
        for (step, batch) in batches.iter().enumerate() {
            let expected: Vec<usize> = serde_json::from_value(batch.clone()).unwrap();
            assert_eq!(sampler.batch(step as u64).unwrap(), expected, "{name}, step {step}");
        }
    }
}
