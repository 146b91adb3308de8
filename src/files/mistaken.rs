//! Detects files that are the result of a failed download or checkout: the name is right, but the first bytes are not.

use std::{fmt, fs, path::Path};

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Number of bytes inspected at the start of a file.
const LOOKED_AT: usize = 1024;

/// What a file contains instead of the expected contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistaken {
    /// An HTML page.
    Page,
    /// A Git LFS pointer whose file was not fetched.
    Pointer,
    /// XML, the format in which object stores return errors.
    Answer,
}

impl Mistaken {
    /// Detects the kind from a file or its first bytes; `None` if it is none of these.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let text = beginning(bytes);
        if text.starts_with("version https://git-lfs") {
            return Some(Self::Pointer);
        }
        // A page may start with a comment or an XML declaration.
        if text.starts_with("<!doctype html") || (text.starts_with('<') && text.contains("<html")) {
            return Some(Self::Page);
        }
        text.starts_with("<?xml").then_some(Self::Answer)
    }
}

impl fmt::Display for Mistaken {
    /// Describes the contents with a hint, to follow "not weights but".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, cure) = match self {
            Self::Page => (
                "an HTML page, probably an error or login page",
                "download the file again, with access to it",
            ),
            Self::Pointer => {
                ("a Git LFS pointer", "run `git lfs pull` in its repository, or download the file")
            }
            Self::Answer => ("an XML error response: the download was refused", "download the file again"),
        };
        write!(formatter, "{what}; {cure}")
    }
}

/// The start of a file in lower case, without a byte order mark and leading whitespace.
pub(crate) fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LOOKED_AT)]);
    text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_lowercase()
}

/// The message for a file in an unexpected format: what the file is, if it is recognized, else the parser's error.
pub(crate) fn refusal(expected: &str, bytes: &[u8], error: impl fmt::Display) -> String {
    match Mistaken::of(bytes) {
        Some(found) => format!("not {expected} but {found}"),
        None => format!("not {expected}: {error}"),
    }
}

/// Reads a JSON file from the folder of a model; `expected` describes it in errors.
///
/// # Errors
/// If it cannot be read or parsed.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    serde_json::from_slice(bytes).map_err(|error| Error::Checkpoint {
        path: path.to_path_buf(),
        message: refusal(expected, bytes, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_downloads_are_recognized_by_their_first_bytes() {
        for (content, expected) in [
            ("<!DOCTYPE html>\n<html><body>404", Some(Mistaken::Page)),
            ("\u{feff} \r\n<HTML>", Some(Mistaken::Page)),
            ("<!-- moved --><html>", Some(Mistaken::Page)),
            ("<?xml version=\"1.0\"?><html xmlns=\"http://www.w3.org/1999/xhtml\">", Some(Mistaken::Page)),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", Some(Mistaken::Pointer)),
            ("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", Some(Mistaken::Answer)),
            ("{\"<html\": 1}", None),
            ("#version: 0.2\ni n\n", None),
            ("", None),
        ] {
            assert_eq!(Mistaken::of(content.as_bytes()), expected, "{content:?}");
        }
    }
}
