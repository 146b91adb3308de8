//! References to images that are read later.

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    data::{
        location::{EMPTY_PATH, Location, hint_of_missing},
        store::{Kind, Stamp},
    },
    error::{Error, Result},
};

/// An image that may be read later: a file, a member of an archive, or a cell of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    file: Location,
}

impl ImageRef {
    /// The path to show in messages.
    pub fn as_path(&self) -> &Path {
        self.file.as_path()
    }

    /// Its path, if it is a local file.
    pub fn local(&self) -> Option<&Path> {
        self.file.local()
    }

    /// Reads its bytes. A read that fails with an I/O error is retried once, because a transient error must not mark
    /// the image as unusable in a cache or a list of failed rows.
    ///
    /// # Errors
    /// If there is no such file, it is not a regular file, has more than `most` bytes, or cannot be read.
    /// [`Error::OpenFiles`] if the process has too many open files, which says nothing about the image.
    pub fn read(&self, most: u64) -> Result<Vec<u8>> {
        // Checked before opening: opening a named pipe blocks until there is a writer.
        let too_long = |length| {
            self.refuse(format!("the file has {length} bytes, more than any image within the limits"))
        };
        match self.length()? {
            Some(length) if length > most => Err(too_long(length.to_string())),
            Some(_) => self.bytes(most),
            None => {
                let bytes = self.bytes(most.saturating_add(1))?;
                if bytes.len() as u64 > most { Err(too_long(format!("over {most}"))) } else { Ok(bytes) }
            }
        }
    }

    /// Reads the first bytes, up to `most`.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn start(&self, most: u64) -> Result<Vec<u8>> {
        self.length()?;
        self.bytes(most)
    }

    fn bytes(&self, most: u64) -> Result<Vec<u8>> {
        let read = || {
            let mut bytes = Vec::new();
            self.file.open(0)?.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        twice(read).map_err(|error| self.unreadable(&error))
    }

    /// Its length in bytes, if it is known without reading.
    fn length(&self) -> Result<Option<u64>> {
        match twice(|| self.file.kind()).map_err(|error| self.unreadable(&error))? {
            Kind::File(stamp) => Ok(Some(stamp.bytes)),
            Kind::Cell(_) => Ok(None),
            Kind::Folder => Err(self.refuse("a folder, not an image; is the path in this row empty?")),
            Kind::Other => Err(self.refuse("not a regular file")),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        if too_many_files(error) {
            return Error::OpenFiles { path: self.as_path().to_path_buf() };
        }
        self.refuse(match error.kind() {
            io::ErrorKind::NotFound if self.as_path().as_os_str().is_empty() => EMPTY_PATH.to_owned(),
            // The container's error names the missing member or row.
            io::ErrorKind::NotFound if error.get_ref().is_some() => error.to_string(),
            io::ErrorKind::NotFound => format!("there is no such file{}", hint_of_missing(self.as_path())),
            io::ErrorKind::InvalidData => error.to_string(),
            io::ErrorKind::Unsupported => error.to_string(),
            _ => format!("cannot be read: {error}"),
        })
    }

    /// Opens it for reading, from the first byte.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn open(&self) -> io::Result<impl Read + io::Seek + Send> {
        twice(|| self.file.open(0))
    }

    /// Its stamp, without reading the contents; `None` if it is not a readable file.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        match twice(|| self.file.kind()) {
            Ok(Kind::File(stamp) | Kind::Cell(stamp)) => Some(stamp),
            _ => None,
        }
    }

    /// Whether anything exists at its path, an image or not.
    pub(crate) fn exists(&self) -> bool {
        self.look().is_ok()
    }

    /// Checks that something exists at its path.
    ///
    /// # Errors
    /// If nothing exists or it cannot be determined.
    pub(crate) fn look(&self) -> io::Result<()> {
        twice(|| self.file.kind()).map(drop)
    }

    /// The SHA-256 of its bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn digest(&self) -> io::Result<[u8; 32]> {
        twice(|| self.file.digest())
    }

    /// An error about this image.
    pub(crate) fn refuse(&self, message: impl Into<String>) -> Error {
        Error::Image { path: self.as_path().to_path_buf(), message: message.into() }
    }
}

/// Whether an error is due to the name: there is no readable file of this name, and a retry would fail in the same way.
pub(crate) fn is_of_name(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::Unsupported
    )
}

/// Calls `read`, retrying once on an I/O error that is not about the path.
fn twice<T>(read: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match read() {
        Err(error) if !is_of_name(&error) => read(),
        done => done,
    }
}

/// Whether the process, or the system, has too many open files.
fn too_many_files(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [rustix::io::Errno::MFILE.raw_os_error(), rustix::io::Errno::NFILE.raw_os_error()];
    #[cfg(not(unix))]
    let codes = [4]; // ERROR_TOO_MANY_OPEN_FILES
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// An empty path; reading it fails.
impl Default for ImageRef {
    fn default() -> Self {
        Self::from(PathBuf::new())
    }
}

impl From<Location> for ImageRef {
    fn from(file: Location) -> Self {
        Self { file }
    }
}

impl From<PathBuf> for ImageRef {
    fn from(path: PathBuf) -> Self {
        Self { file: Location::from(path) }
    }
}

impl From<&PathBuf> for ImageRef {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.clone())
    }
}

impl From<&Path> for ImageRef {
    fn from(path: &Path) -> Self {
        Self { file: Location::from(path) }
    }
}

impl From<&str> for ImageRef {
    fn from(path: &str) -> Self {
        Self::from(Path::new(path))
    }
}

impl From<&ImageRef> for ImageRef {
    fn from(image: &ImageRef) -> Self {
        image.clone()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A read that fails `times` times with the error `code`, and the number of calls.
    fn failing(times: usize, code: i32) -> (io::Result<&'static str>, usize) {
        let calls = Cell::new(0);
        let result = twice(|| {
            calls.set(calls.get() + 1);
            if calls.get() <= times { Err(io::Error::from_raw_os_error(code)) } else { Ok("read") }
        });
        (result, calls.get())
    }

    #[cfg(unix)]
    #[test]
    fn a_read_that_the_system_fails_is_tried_once_more() {
        use rustix::io::Errno;
        for error in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::ACCESS, Errno::NOMEM, Errno::STALE] {
            let code = error.raw_os_error();
            assert_eq!(failing(0, code).1, 1);
            let (result, calls) = failing(1, code);
            assert_eq!((result.unwrap(), calls), ("read", 2), "{error}");
            let (result, calls) = failing(2, code);
            assert_eq!((result.unwrap_err().raw_os_error(), calls), (Some(code), 2), "{error}");
        }
        // What does not exist is not looked for twice.
        for error in [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR] {
            assert_eq!(failing(1, error.raw_os_error()).1, 1, "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn too_many_open_files_say_nothing_about_the_image() {
        use rustix::io::Errno;
        let image = ImageRef::from("images/1.png");
        let of_machine = |error: Errno| {
            image.unreadable(&io::Error::from_raw_os_error(error.raw_os_error())).is_of_machine()
        };
        assert!(of_machine(Errno::MFILE) && of_machine(Errno::NFILE));
        assert!(!of_machine(Errno::IO) && !of_machine(Errno::ACCESS) && !of_machine(Errno::NOENT));
    }
}
