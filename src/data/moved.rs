//! The pictures' paths of one table in another one that lies elsewhere.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::folder_of,
};

/// The scheme of what is written in place of a path: `https`, `s3`, `gs`, `file`, `data` and so on; `None`: it is a path.
///
/// A scheme has two characters at least, so that a drive's letter is none.
pub fn scheme_of(written: &str) -> Option<&str> {
    let (scheme, rest) = written.split_once(':')?;
    let is_scheme = scheme.len() >= 2
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    // `data:` goes on with a type and a comma, and `file:` may do with one slash.
    let has_address = rest.starts_with("//")
        || scheme.eq_ignore_ascii_case("data") && rest.contains(',')
        || scheme.eq_ignore_ascii_case("file") && rest.starts_with('/');
    (is_scheme && has_address).then_some(scheme)
}

/// Why an image that is written this way cannot be read from here; `None`: it is a path.
pub fn not_local(written: &str) -> Option<String> {
    if written.is_empty() {
        return Some("its path is empty".to_owned());
    }
    let scheme = scheme_of(written)?;
    Some(match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => format!(
            "{scheme}: is an address, not a file; download images first, with img2dataset for example"
        ),
        "file" => "file: is an address; write the path alone, without file:".to_owned(),
        "data" => "data: holds the image itself, not its path; write it to a file first".to_owned(),
        _ => format!("{scheme}: is an address, not a local file; copy the images to this machine first"),
    })
}

/// Why a file that is not there may be looked for in the wrong place, by how its path is written; to follow `there is no such file`.
pub(crate) fn hint_of_missing(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A table's folder stands in front of what is written in it.
    let starts = std::iter::once(0).chain(text.match_indices('/').map(|(at, _)| at + 1));
    for start in starts {
        if let Some(why) = scheme_of(&text[start..]).and_then(|_| not_local(&text[start..])) {
            return format!(": {why}");
        }
    }
    let mut parts = text.split('/');
    if parts.clone().any(|part| part == "~") {
        return ": `~` means a home folder to a shell only; write the whole path".to_owned();
    }
    let is_drive = |part: &str| {
        let mut characters = part.chars();
        characters.next().is_some_and(|first| first.is_ascii_alphabetic()) && characters.next() == Some(':')
    };
    if cfg!(unix) && parts.clone().any(|part| is_drive(part) && (part.len() == 2 || part.contains('\\'))) {
        return ": it is a path of another machine, with a drive's letter; write it as it is here".to_owned();
    }
    if cfg!(unix) && text.contains('\\') {
        return ": folders are separated by `/` here, not by `\\`".to_owned();
    }
    if parts.any(|part| part != part.trim()) {
        return ": a part of the path begins or ends with a space".to_owned();
    }
    String::new()
}

/// How an image is to be written in a table anywhere: by its whole path, or as it is written where that is an address or empty.
///
/// # Errors
/// If the path is not UTF-8, which a table's text must be.
pub fn whole_path<'a>(written: &'a str, image: &Path) -> Result<Cow<'a, str>> {
    if not_local(written).is_some() {
        return Ok(Cow::Borrowed(written));
    }
    let path = std::path::absolute(image).map_err(Error::io("resolve", image))?;
    path_text(path).map(Cow::Owned)
}

/// A path as text, for a table or a configuration.
///
/// # Errors
/// If it is not UTF-8.
pub fn path_text(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        Error::invalid(format!(
            "{}: the path is not UTF-8, as text has to be; rename the folder",
            Path::new(&path).display()
        ))
    })
}

/// Rewrites paths for a table in another folder. A relative path starts at the folder of its table, so it is made absolute
/// there; between tables of one folder, and where it is absolute already, it stays as it is written.
#[derive(Clone, Debug)]
pub struct MovedPaths {
    /// The folder that relative paths start at, absolute; none where they stay.
    from: Option<PathBuf>,
}

impl MovedPaths {
    /// From the table `from` to the table `to`, which need not exist yet; its folder must.
    ///
    /// # Errors
    /// If one of their folders cannot be looked up.
    pub fn between(from: &Path, to: &Path) -> Result<Self> {
        let (from, to) = (folder_of(from), folder_of(to));
        let real = |folder: &Path| folder.canonicalize().map_err(Error::io("look up", folder));
        if real(from)? == real(to)? {
            return Ok(Self { from: None });
        }
        let from = std::path::absolute(from).map_err(Error::io("look up", from))?;
        Ok(Self { from: Some(from) })
    }

    /// Whether a path as it is written in the one table names another file, or none, in the other.
    pub fn changes(&self, written: &str) -> bool {
        self.from.is_some() && not_local(written).is_none() && Path::new(written).is_relative()
    }

    /// A path as it is written in the one table, as the other has to write it.
    ///
    /// # Errors
    /// If the one table's folder has a name that is not UTF-8.
    pub fn moved<'a>(&self, written: &'a str) -> Result<Cow<'a, str>> {
        let Some(from) = self.from.as_ref().filter(|_| self.changes(written)) else {
            return Ok(Cow::Borrowed(written));
        };
        path_text(from.join(written)).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_stays_in_its_folder_and_is_whole_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let here = std::path::absolute(folder.path()).unwrap();
        fs::create_dir(here.join("other")).unwrap();
        let table = here.join("corpus.csv");
        let beside = MovedPaths::between(&table, &here.join("other/../ratings.csv")).unwrap();
        assert_eq!(beside.moved("a/b.png").unwrap(), "a/b.png");
        let elsewhere = MovedPaths::between(&table, &here.join("other/ratings.csv")).unwrap();
        assert_eq!(Path::new(elsewhere.moved("a/b.png").unwrap().as_ref()), here.join("a/b.png"));
        let addresses =
            ["https://host/b.png", "s3://bucket/b.png", "gs://bucket/b.png", "file:///b.png", "file:/b.png"];
        for unchanged in ["", "/pictures/b.png", "data:image/png;base64,AAAA"].into_iter().chain(addresses) {
            assert_eq!(elsewhere.moved(unchanged).unwrap(), unchanged);
        }
        for path in ["a:b.png", "at 12:30/b.png", "data:b.png", "http:b.png", "x://b.png"] {
            assert_eq!(Path::new(elsewhere.moved(path).unwrap().as_ref()), here.join(path));
            // A path may come without what stands twice in it.
            assert_eq!(Path::new(whole_path(path, &here.join(path)).unwrap().as_ref()), here.join(path));
        }
        let missing = MovedPaths::between(&table, &here.join("nowhere/ratings.csv")).unwrap_err();
        assert!(missing.to_string().contains("nowhere"), "{missing}");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_from_elsewhere_is_told_by_how_it_is_written() {
        for (written, hint) in [
            ("https://host/b.png", "https: is an address"),
            ("file:///a/b.png", "file: is an address"),
            ("s3://bucket/b.png", "s3: is an address"),
            ("~/images/b.png", "home folder"),
            ("C:\\images\\b.png", "drive's letter"),
            ("C:/images/b.png", "drive's letter"),
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

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_not_utf_8_is_refused() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let folder = tempfile::tempdir().unwrap();
        let latin = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
        fs::create_dir(&latin).unwrap();
        let elsewhere =
            MovedPaths::between(&latin.join("corpus.csv"), &folder.path().join("out.csv")).unwrap();
        for error in
            [elsewhere.moved("a.png").unwrap_err(), whole_path("a.png", &latin.join("a.png")).unwrap_err()]
        {
            assert!(error.to_string().contains("not UTF-8"), "{error}");
        }
        assert_eq!(elsewhere.moved("https://host/a.png").unwrap(), "https://host/a.png");
    }
}
