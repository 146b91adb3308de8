//! Locations of tables and images: local paths and URLs.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// A local path or a URL.
///
/// Its contents are read through its [`Store`](super::store::Store).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The path or URL, as written.
    written: PathBuf,
    is_url: bool,
}

impl Location {
    /// The path or URL, for messages.
    pub fn as_path(&self) -> &Path {
        &self.written
    }

    /// The path, if it is a local one.
    pub fn local(&self) -> Option<&Path> {
        (!self.is_url).then_some(&self.written)
    }

    /// Resolves a path written in this file: a URL or an absolute path is unchanged, a relative path is relative to
    /// the folder of this file.
    #[must_use]
    pub fn sibling(&self, written: &str) -> Self {
        if scheme_of(written).is_some() {
            return Self::from(Path::new(written));
        }
        let folder = self.written.parent().unwrap_or(Path::new(""));
        Self { written: folder.join(written), is_url: self.is_url }
    }

    /// The last component of the path.
    pub fn name(&self) -> String {
        self.written.file_name().unwrap_or(self.written.as_os_str()).to_string_lossy().into_owned()
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        path.to_path_buf().into()
    }
}

impl From<PathBuf> for Location {
    fn from(written: PathBuf) -> Self {
        let is_url = written.to_str().and_then(scheme_of).is_some();
        Self { written, is_url }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.display().fmt(formatter)
    }
}

/// The scheme of a URL: `https`, `s3`, `gs`, `file`, `data` and so on; `None` for a path.
///
/// A scheme has at least two characters, so drive letters are not schemes.
pub fn scheme_of(written: &str) -> Option<&str> {
    let (scheme, rest) = written.split_once(':')?;
    let is_scheme = scheme.len() >= 2
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    // `data:` continues with a type and a comma, and `file:` may have a single slash.
    let has_address = rest.starts_with("//")
        || scheme.eq_ignore_ascii_case("data") && rest.contains(',')
        || scheme.eq_ignore_ascii_case("file") && rest.starts_with('/');
    (is_scheme && has_address).then_some(scheme)
}

/// Why a row without a path has no image.
pub const EMPTY_PATH: &str = "the path of the image is empty";

/// Why an image with this path is not a local file; `None` if it is.
pub fn not_local(written: &str) -> Option<String> {
    if written.is_empty() {
        return Some(EMPTY_PATH.to_owned());
    }
    let scheme = scheme_of(written)?;
    Some(match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {
            format!("a URL ({scheme}:), not a file; download the images first, for example with img2dataset")
        }
        "file" => "a URL (file:); write the path without file:".to_owned(),
        "data" => "a URL (data:) with the image itself; write it to a file first".to_owned(),
        _ => format!("a URL ({scheme}:), not a local file; copy the images to this machine first"),
    })
}

/// Explains, from how its path is written, why a file may be missing; to be appended to `there is no such file`.
pub(crate) fn hint_of_missing(path: &Path) -> String {
    let text = path.to_string_lossy();
    // Starts at every component, because the path in the table is preceded by the table's folder.
    let starts = std::iter::once(0).chain(text.match_indices('/').map(|(at, _)| at + 1));
    for start in starts {
        if let Some(why) = scheme_of(&text[start..]).and_then(|_| not_local(&text[start..])) {
            return format!(": {why}");
        }
    }
    let mut parts = text.split('/');
    if parts.clone().any(|part| part == "~") {
        return ": `~` is expanded only by a shell; write the absolute path".to_owned();
    }
    let is_drive = |part: &str| {
        let mut characters = part.chars();
        characters.next().is_some_and(|first| first.is_ascii_alphabetic()) && characters.next() == Some(':')
    };
    if cfg!(unix) && parts.clone().any(|part| is_drive(part) && (part.len() == 2 || part.contains('\\'))) {
        return ": the path has a drive letter of another machine; write the path on this machine".to_owned();
    }
    if cfg!(unix) && text.contains('\\') {
        return ": folders are separated by `/` here, not by `\\`".to_owned();
    }
    if parts.any(|part| part != part.trim()) {
        return ": a component of the path starts or ends with a space".to_owned();
    }
    String::new()
}

/// Converts a path to text, for a table or a configuration.
///
/// # Errors
/// If it is not UTF-8.
pub fn path_text(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        Error::invalid(format!("{}: the path is not UTF-8; rename the folder", Path::new(&path).display()))
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn paths_of_other_machines_are_explained() {
        for (written, hint) in [
            ("https://host/b.png", "a URL (https:)"),
            ("file:///a/b.png", "a URL (file:)"),
            ("s3://bucket/b.png", "a URL (s3:)"),
            ("~/images/b.png", "expanded only by a shell"),
            ("C:\\images\\b.png", "drive letter"),
            ("C:/images/b.png", "drive letter"),
            ("images\\b.png", "separated by `/`"),
            (" b.png", "a space"),
        ] {
            let found = hint_of_missing(&Path::new("some folder").join(written));
            assert!(found.contains(hint), "{written}: {found}");
        }
        for plain in ["b.png", "~b/b.png", "at 12:30/b.png", "a:b.png", "../b c.png", "/images/b.png"] {
            assert_eq!(hint_of_missing(&Path::new("folder").join(plain)), "", "{plain}");
        }
    }
}
