//! The local file system, including the contents of containers.

use std::{
    fs::{self, File, Metadata},
    io::{self, Seek, SeekFrom},
    path::Path,
    time::UNIX_EPOCH,
};

use super::{Kind, Readable, Stamp, Store, container};
use crate::data::location::Location;

/// The local file system.
#[derive(Clone, Copy, Debug)]
pub struct LocalStore;

impl LocalStore {
    fn path(at: &Location) -> io::Result<&Path> {
        at.local().ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "not a local path"))
    }
}

impl Store for LocalStore {
    fn kind(&self, at: &Location) -> io::Result<Kind> {
        let path = Self::path(at)?;
        let about = match fs::metadata(path) {
            Err(error) if is_below_a_file(&error) => return container::kind(path)?.ok_or(error),
            about => about?,
        };
        if about.is_dir() {
            return Ok(Kind::Folder);
        }
        if !about.is_file() {
            return Ok(Kind::Other);
        }
        let since = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        Ok(Kind::File(Stamp { bytes: about.len(), modified, changed: state_changed(&about) }))
    }

    fn open(&self, at: &Location, from: u64) -> io::Result<Box<dyn Readable>> {
        let path = Self::path(at)?;
        let mut file = match File::open(path) {
            Err(error) if is_below_a_file(&error) => return container::open(path, from)?.ok_or(error),
            file => file?,
        };
        if from > 0 {
            file.seek(SeekFrom::Start(from))?;
        }
        Ok(Box::new(file))
    }
}

/// Whether an error may be due to a path that leads into a file, as if it were a folder.
fn is_below_a_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotADirectory || cfg!(windows) && error.kind() == io::ErrorKind::NotFound
}

#[cfg(unix)]
fn state_changed(about: &Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    about.ctime().saturating_mul(1_000_000_000).saturating_add(about.ctime_nsec())
}

#[cfg(not(unix))]
fn state_changed(_about: &Metadata) -> i64 {
    0
}
