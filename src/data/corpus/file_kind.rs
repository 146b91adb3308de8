//! Recognizes, by content, files that are not delimited text, and suggests what to do.

use std::{fs, path::Path};

use memchr::memmem;

/// Offset of the magic in the first header of a tar archive.
const TAR_MAGIC: usize = 257;

/// Extensions of images in folders.
pub(super) const IMAGE_ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Names in a zip archive that identify an Excel workbook.
const WORKBOOK: [&[u8]; 4] = [b"xl/workbook", b"xl/worksheets", b"xl/theme", b"xl/styles"];

/// Describes the kind of a file that starts with `start`, with a hint; `None` if it may be delimited UTF-8 text.
pub fn foreign(start: &[u8]) -> Option<String> {
    binary(start).or_else(|| text(start)).map(|(kind, cure)| format!("the file is {kind}; {cure}"))
}

/// Whether a file that starts with `start` is a Parquet file.
pub fn is_parquet(start: &[u8]) -> bool {
    // The second marks a file whose footer is encrypted.
    start.starts_with(b"PAR1") || start.starts_with(b"PARE")
}

/// Whether a file that starts with `start` is JSON Lines, or a single JSON object.
pub(super) fn is_json_lines(start: &[u8]) -> bool {
    is_object(start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start).trim_ascii_start())
}

/// Whether text starts a JSON object.
fn is_object(text: &[u8]) -> bool {
    text.strip_prefix(b"{").is_some_and(|rest| matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')))
}

fn binary(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let has = |text: &[u8]| memmem::find(start, text).is_some();
    Some(match start {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            ("UTF-16 text", "save it as UTF-8 (in Excel: \"CSV UTF-8\" as the file type)")
        }
        // The first character takes two bytes, one of them zero.
        [first, 0, second, 0, ..] | [0, first, 0, second, ..] if *first != 0 && *second != 0 => {
            ("UTF-16 text", "save it as UTF-8 (in Excel: \"CSV UTF-8\" as the file type)")
        }
        _ if is_parquet(start) => ("a Parquet file", "convert it to CSV"),
        // A compressed table is decompressed only once.
        [0x1F, 0x8B, ..] => ("compressed twice, with gzip", "unpack it (gunzip)"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => {
            ("compressed twice, with zstd", "unpack it (zstd -d)")
        }
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => {
            ("compressed with bzip2", "unpack it (bunzip2)")
        }
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => ("compressed with xz", "unpack it (unxz)"),
        [0x04, 0x22, 0x4D, 0x18, ..] => ("compressed with lz4", "unpack it (lz4 -d)"),
        [b'7', b'z', 0xBC, 0xAF, 0x27, 0x1C, ..] => ("a 7z archive", "unpack it"),
        [b'R', b'a', b'r', b'!', 0x1A, 0x07, ..] => ("a RAR archive", "unpack it"),
        [b'P', b'K', 3, 4, ..] if WORKBOOK.iter().any(|name| has(name)) => {
            ("an Excel workbook", "save it as CSV UTF-8")
        }
        [b'P', b'K', 3, 4, ..] if has(b"oasis.opendocument") => {
            ("an OpenDocument spreadsheet", "save it as CSV")
        }
        [b'P', b'K', 3, 4, ..] => ("a zip archive", "unpack it, or save the spreadsheet as CSV"),
        [0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1, ..] => {
            ("an old Excel workbook (.xls)", "save it as CSV UTF-8")
        }
        _ if start.get(TAR_MAGIC..).is_some_and(|rest| rest.starts_with(b"ustar")) => {
            ("a tar archive", "unpack it and pass a CSV that lists its images")
        }
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => ("an Arrow file", "convert it to CSV"),
        [b'O', b'R', b'C', ..] if !start.is_ascii() => ("an ORC file", "convert it to CSV"),
        [b'O', b'b', b'j', 1, ..] => ("an Avro file", "convert it to CSV"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => ("a NumPy array", "convert it to CSV"),
        [0x80, 2..=5, ..] => ("a Python pickle", "convert it to CSV"),
        [0x89, b'P', b'N', b'G', ..] | [0xFF, 0xD8, 0xFF, ..] => {
            ("an image", "pass the CSV that lists the images")
        }
        _ if start.starts_with(b"SQLite format 3\0") => ("an SQLite database", "export the table as CSV"),
        _ => return None,
    })
}

fn text(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start).trim_ascii_start();
    let begins =
        |text: &str| start.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()));
    if is_object(start) || start.strip_prefix(b"[").is_some_and(|rest| is_object(rest.trim_ascii_start())) {
        Some(("JSON", "convert it to CSV, or for a corpus to JSON Lines (jq -c '.[]')"))
    } else if begins("<!doctype html") || begins("<html") {
        Some(("a web page", "the download may have returned an error page; download it again"))
    } else if begins("version https://git-lfs.github.com/spec/") {
        Some(("a Git LFS pointer", "run `git lfs pull` in its repository"))
    } else {
        None
    }
}

/// Describes a folder that contains no corpus in the given format, with a hint.
pub(super) fn folder(path: &Path) -> String {
    let names: Vec<String> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let holds = |ending: &str| names.iter().any(|name| name.to_ascii_lowercase().ends_with(ending));
    let has = |name: &str| names.iter().any(|other| other == name);
    let (kind, cure) = if has("metadata.csv") || has("metadata.jsonl") || has("metadata.parquet") {
        ("an image folder", "pass its metadata table")
    } else if has("dataset_info.json") && holds(".arrow") {
        ("a data set saved by `datasets` in Arrow files", "write it as Parquet (dataset.to_parquet)")
    } else if holds(".tar") || holds(".tgz") || holds(".tar.gz") {
        ("a folder of tar shards", "leave out --format, or pass --format webdataset")
    } else if holds(".parquet") {
        ("a folder of Parquet files", "leave out --format, or pass --format parquet")
    } else if IMAGE_ENDINGS.iter().any(|ending| holds(&format!(".{ending}"))) {
        (
            "a folder of images without captions",
            "put each caption into a text file of the image's name (cat.jpg, cat.txt), or list them in metadata.csv",
        )
    } else {
        ("a folder", "pass the table that lists the images, or a folder of shards or of images with captions")
    };
    format!("is {kind}; {cure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_not_mistaken_for_something_else() {
        for text in [
            "id,image,caption\n",
            "\u{feff}id;image\n",
            "BZh,id\n",
            "ORC,id\n",
            "[id],x\n",
            "{id},x\n",
            "PK,x\n",
            "Object,x\n",
            "\u{feff}\"{\"\"a\"\"}\",b\n",
            "ключ,картинка\n",
        ] {
            assert_eq!(foreign(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(foreign(b""), None);
    }
}
