//! References to images that are read later.

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    data::{
        location::{Location, hint_of_missing},
        store::{Kind, Stamp},
    },
    error::Error,
};

/// An image that may be read later: a file.
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

    /// Reads its bytes.
    ///
    /// # Errors
    /// A message without the file name, if there is no such file, it is not a regular file, has more than `most`
    /// bytes, or cannot be read.
    pub fn read(&self, most: u64) -> Result<Vec<u8>, String> {
        // Checked before opening: opening a named pipe blocks until there is a writer.
        let length = self.length()?;
        if length > most {
            return Err(format!("the file has {length} bytes, more than any image within the limits"));
        }
        self.bytes(most)
    }

    /// Reads the first bytes, up to `most`.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn start(&self, most: u64) -> Result<Vec<u8>, String> {
        self.length()?;
        self.bytes(most)
    }

    fn bytes(&self, most: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let input = self.file.open(0).map_err(|error| self.unreadable(&error))?;
        input.take(most).read_to_end(&mut bytes).map_err(|error| self.unreadable(&error))?;
        Ok(bytes)
    }

    fn length(&self) -> Result<u64, String> {
        match self.file.kind().map_err(|error| self.unreadable(&error))? {
            Kind::File(stamp) => Ok(stamp.bytes),
            Kind::Folder => Err("a folder, not an image; is the path in this row empty?".to_owned()),
            Kind::Other => Err("not a regular file".to_owned()),
        }
    }

    fn unreadable(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::NotFound => format!("there is no such file{}", hint_of_missing(self.as_path())),
            io::ErrorKind::Unsupported => error.to_string(),
            _ => format!("cannot be read: {error}"),
        }
    }

    /// Opens it for reading, from the first byte.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn open(&self) -> io::Result<impl Read + io::Seek + Send> {
        self.file.open(0)
    }

    /// Its stamp, without reading the contents; `None` if it is not a readable file.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.file.stamp()
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
        self.file.kind().map(drop)
    }

    /// The SHA-256 of its bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn digest(&self) -> io::Result<[u8; 32]> {
        self.file.digest()
    }

    /// An error about this image.
    pub(crate) fn refuse(&self, message: impl Into<String>) -> Error {
        Error::Image { path: self.as_path().to_path_buf(), message: message.into() }
    }
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
