//! The images' paths of one table in another one that lies elsewhere.

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

/// How an image is to be written in a table anywhere: by its whole path, or as it is written where that is an address or empty.
///
/// # Errors
/// If the path is not UTF-8, which a table's text must be.
pub fn whole_path<'a>(written: &'a str, image: &ImageRef) -> Result<Cow<'a, str>> {
    let (Some(image), None) = (image.local(), not_local(written)) else {
        return Ok(Cow::Borrowed(written));
    };
    let path = std::path::absolute(image).map_err(Error::io("resolve", image))?;
    path_text(path).map(Cow::Owned)
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
        for unchanged in ["", "/images/b.png", "data:image/png;base64,AAAA"].into_iter().chain(addresses) {
            assert_eq!(elsewhere.moved(unchanged).unwrap(), unchanged);
        }
        for path in ["a:b.png", "at 12:30/b.png", "data:b.png", "http:b.png", "x://b.png"] {
            assert_eq!(Path::new(elsewhere.moved(path).unwrap().as_ref()), here.join(path));
            // A path may come without what stands twice in it.
            assert_eq!(
                Path::new(whole_path(path, &here.join(path).into()).unwrap().as_ref()),
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
            whole_path("a.png", &latin.join("a.png").into()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("not UTF-8"), "{error}");
        }
        assert_eq!(elsewhere.moved("https://host/a.png").unwrap(), "https://host/a.png");
    }
}
