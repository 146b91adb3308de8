//! What lies in a file's place where a download or a checkout went wrong: told by its first bytes, for it has the right
//! name.

use std::{fmt, fs, path::Path};

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Bytes at the beginning of a file that are looked at.
const LOOKED_AT: usize = 1024;

/// What lies in a file's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistaken {
    /// An HTML page.
    Page,
    /// The text that stands for a file which Git LFS did not fetch.
    Pointer,
    /// XML, in which stores of files refuse a download.
    Answer,
}

impl Mistaken {
    /// By the bytes of a file, or by the first of them; `None`: it is none of these.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let text = beginning(bytes);
        if text.starts_with("version https://git-lfs") {
            return Some(Self::Pointer);
        }
        // A page may begin with a comment or with what XML begins with.
        if text.starts_with("<!doctype html") || (text.starts_with('<') && text.contains("<html")) {
            return Some(Self::Page);
        }
        text.starts_with("<?xml").then_some(Self::Answer)
    }
}

impl fmt::Display for Mistaken {
    /// What it is and what to do, as it reads after "not weights but".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, cure) = match self {
            Self::Page => (
                "an HTML page: the download gave an error or a login page",
                "download the file again, with access to it",
            ),
            Self::Pointer => (
                "a Git LFS pointer, which only stands for the file",
                "run `git lfs pull` in its repository, or download the file itself",
            ),
            Self::Answer => ("an XML answer: the download was refused", "download the file again"),
        };
        write!(formatter, "{what}; {cure}")
    }
}

/// The text that a file begins with, in small letters, without a byte order mark and the spaces before it.
pub(crate) fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LOOKED_AT)]);
    text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_lowercase()
}

/// Says of a file that it is not what is expected: by what lies in its place, or else by what its reader stumbled over.
pub(crate) fn refusal(expected: &str, bytes: &[u8], error: impl fmt::Display) -> String {
    match Mistaken::of(bytes) {
        Some(found) => format!("not {expected} but {found}"),
        None => format!("not {expected}: {error}"),
    }
}

/// Reads a JSON file of a model's folder, which should be what is expected.
///
/// # Errors
/// If it cannot be read, or is something else.
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
    fn what_lies_in_a_files_place_is_told_by_its_beginning() {
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
