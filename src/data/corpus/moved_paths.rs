//! Rewrites image paths for tables in other folders.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::{
    data::{
        image::ImageRef,
        location::{not_local, path_text},
    },
    error::{Error, Result},
    files::folder_of,
};

/// The absolute path of an image, or the text as written if it is a URL or empty.
///
/// # Errors
/// If the path is not UTF-8.
pub fn absolute_path<'a>(written: &'a str, image: &ImageRef) -> Result<Cow<'a, str>> {
    let (Some(image), None) = (image.local(), not_local(written)) else {
        return Ok(Cow::Borrowed(written));
    };
    let path = std::path::absolute(image).map_err(Error::io("resolve", image))?;
    path_text(path).map(Cow::Owned)
}

/// Rewrites paths for a table in another folder. A relative path is relative to the folder of its table, so it is
/// made absolute; absolute paths, and all paths between tables of the same folder, are left unchanged.
#[derive(Clone, Debug)]
pub struct MovedPaths {
    /// The absolute folder that relative paths refer to; `None` if paths are left unchanged.
    from: Option<PathBuf>,
}

impl MovedPaths {
    /// Rewrites paths of the table `from` for the table `to`, which need not exist yet; its folder must exist.
    ///
    /// # Errors
    /// If one of the folders cannot be resolved.
    pub fn between(from: &Path, to: &Path) -> Result<Self> {
        Self::from_folder(folder_of(from), to)
    }

    /// Rewrites paths relative to the folder `from` for the table `to`; see [`between`](Self::between).
    ///
    /// # Errors
    /// If one of the folders cannot be resolved.
    pub fn from_folder(from: &Path, to: &Path) -> Result<Self> {
        let to = folder_of(to);
        let real = |folder: &Path| folder.canonicalize().map_err(Error::io("look up", folder));
        if real(from)? == real(to)? {
            return Ok(Self { from: None });
        }
        let from = std::path::absolute(from).map_err(Error::io("look up", from))?;
        Ok(Self { from: Some(from) })
    }

    /// Whether the path would refer to another file, or none, in the other table.
    pub fn changes(&self, written: &str) -> bool {
        self.from.is_some() && not_local(written).is_none() && Path::new(written).is_relative()
    }

    /// The path to write in the other table.
    ///
    /// # Errors
    /// If the name of the source folder is not UTF-8.
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
    fn a_path_is_unchanged_in_its_folder_and_absolute_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let here = std::path::absolute(folder.path()).unwrap();
        fs::create_dir(here.join("other")).unwrap();
        let table = here.join("corpus.csv");
        let alongside = MovedPaths::between(&table, &here.join("other/../ratings.csv")).unwrap();
        assert_eq!(alongside.moved("a/b.png").unwrap(), "a/b.png");
        let elsewhere = MovedPaths::between(&table, &here.join("other/ratings.csv")).unwrap();
        assert_eq!(Path::new(elsewhere.moved("a/b.png").unwrap().as_ref()), here.join("a/b.png"));
        let addresses =
            ["https://host/b.png", "s3://bucket/b.png", "gs://bucket/b.png", "file:///b.png", "file:/b.png"];
        for unchanged in ["", "/images/b.png", "data:image/png;base64,AAAA"].into_iter().chain(addresses) {
            assert_eq!(elsewhere.moved(unchanged).unwrap(), unchanged);
        }
        for path in ["a:b.png", "at 12:30/b.png", "data:b.png", "http:b.png", "x://b.png"] {
            assert_eq!(Path::new(elsewhere.moved(path).unwrap().as_ref()), here.join(path));
            // Components that occur twice may be removed from a path.
            assert_eq!(
                Path::new(absolute_path(path, &here.join(path).into()).unwrap().as_ref()),
                here.join(path)
            );
        }
        let missing = MovedPaths::between(&table, &here.join("nowhere/ratings.csv")).unwrap_err();
        assert!(missing.to_string().contains("nowhere"), "{missing}");
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
        for error in [
            elsewhere.moved("a.png").unwrap_err(),
            absolute_path("a.png", &latin.join("a.png").into()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("not UTF-8"), "{error}");
        }
        assert_eq!(elsewhere.moved("https://host/a.png").unwrap(), "https://host/a.png");
    }
}
