//! The pictures' paths of one table in another one that lies elsewhere.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::folder_of,
};

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
        self.from.is_some()
            && !written.is_empty()
            && !written.contains("://")
            && Path::new(written).is_relative()
    }

    /// A path as it is written in the one table, as the other has to write it.
    ///
    /// # Errors
    /// If the one table's folder has a name that is not UTF-8.
    pub fn moved<'a>(&self, written: &'a str) -> Result<Cow<'a, str>> {
        let Some(from) = self.from.as_ref().filter(|_| self.changes(written)) else {
            return Ok(Cow::Borrowed(written));
        };
        let path = from.join(written);
        match path.to_str() {
            Some(path) => Ok(Cow::Owned(path.to_owned())),
            None => {
                Err(Error::invalid(format!("{} is not UTF-8, which a table's paths must be", path.display())))
            }
        }
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
        for unchanged in ["", "/pictures/b.png", "https://host/b.png"] {
            assert_eq!(elsewhere.moved(unchanged).unwrap(), unchanged);
        }
        let missing = MovedPaths::between(&table, &here.join("nowhere/ratings.csv")).unwrap_err();
        assert!(missing.to_string().contains("nowhere"), "{missing}");
    }
}
