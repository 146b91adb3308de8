//! Text files with or without a byte order mark and with any line breaks.

use std::{fs, path::Path};

use crate::error::{Error, Result};

/// Reads a UTF-8 text file without its byte order mark.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let refuse = |message: String| Error::Table { path: path.to_path_buf(), line: None, message };
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(refuse("is UTF-16 text; save it as UTF-8".to_owned()));
    }
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err(refuse(format!("byte {at} is 0, so it is not a text file")));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        refuse(format!("byte {} is not UTF-8; save the file as UTF-8", error.utf8_error().valid_up_to()))
    })?;
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

/// The byte order mark.
const MARK: char = '\u{feff}';

/// The non-blank lines of a text, trimmed, with their line numbers from 1. A line ends with `\n`, `\r\n` or `\r`.
pub(crate) fn filled_lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let (mut number, mut after_return) = (1, false);
    text.split_inclusive(['\n', '\r']).filter_map(move |line| {
        // The second byte of `\r\n` does not end another line.
        let half = after_return && line == "\n";
        after_return = line.ends_with('\r');
        let this = number;
        number += u64::from(!half);
        let line = line.trim();
        (!line.is_empty()).then_some((this, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_line_ends_are_no_part_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xef\xbb\xbfa fox\n").as_deref(), Ok("a fox\n"));
        assert_eq!(read(b"a fox").as_deref(), Ok("a fox"));
        assert!(read(b"\xff\xfea\0").is_err_and(|error| error.contains("is UTF-16 text")));
        assert!(read(b"a\0").is_err_and(|error| error.contains("not a text file")));
        assert!(read(b"caf\xe9").is_err_and(|error| error.contains("byte 3 is not UTF-8")));
        for text in ["a\n\n b \n", "a\r\n\r\n b\r\n\r\n", "a\r\rb"] {
            assert_eq!(filled_lines(text).collect::<Vec<_>>(), [(1, "a"), (3, "b")], "{text:?}");
        }
    }
}
