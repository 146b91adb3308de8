//! Stores: the sources of the bytes at a [`Location`].
//!
//! Tables and images are read through [`Store`] only, so a new kind of store is one implementation and one line in
//! [`Location::store`]. A file in a [`container`] has a path, too, which starts with that of the container.

mod compressed;
pub mod container;
mod local;
mod parquet_file;

use std::io;

use super::location::{Location, not_local};
use crate::files::digest_of;
pub use compressed::{Codec, Decompressed};
pub use local::LocalStore;
pub(crate) use parquet_file::open_parquet;

/// Metadata of an object. Equal stamps mean that the object is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub bytes: u64,
    /// Last modification of the contents, in nanoseconds since 1970.
    pub modified: i64,
    /// Last change of the metadata, which programs cannot set, in nanoseconds since 1970; 0 if the store has none.
    pub changed: i64,
}

/// The kind of object at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or an object.
    File(Stamp),
    /// A cell of a table. Its length is known once it is read; the stamp is that of the file.
    Cell(Stamp),
    /// A folder.
    Folder,
    /// Anything else, such as a pipe or a device, which cannot be read repeatedly.
    Other,
}

/// An open file.
pub trait Readable: io::Read + io::Seek + Send {}

impl<T: io::Read + io::Seek + Send> Readable for T {}

/// A source of bytes.
pub trait Store: Send + Sync {
    /// The kind of object at a location.
    ///
    /// # Errors
    /// If there is no object, or the store cannot be queried.
    fn kind(&self, at: &Location) -> io::Result<Kind>;

    /// Opens a file for reading, starting at byte `from`.
    ///
    /// # Errors
    /// If there is no file, or it cannot be read.
    fn open(&self, at: &Location, from: u64) -> io::Result<Box<dyn Readable>>;
}

impl Location {
    /// The store of this location.
    ///
    /// # Errors
    /// If the store is not supported.
    pub fn store(&self) -> io::Result<&'static dyn Store> {
        match self.local() {
            Some(_) => Ok(&LocalStore),
            None => {
                let why = self.as_path().to_str().and_then(not_local).unwrap_or_default();
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
        }
    }

    /// The kind of object at this location; see [`Store::kind`].
    ///
    /// # Errors
    /// See [`Store::kind`] and [`store`](Self::store).
    pub fn kind(&self) -> io::Result<Kind> {
        self.store()?.kind(self)
    }

    /// Opens the file at this location; see [`Store::open`].
    ///
    /// # Errors
    /// See [`Store::open`] and [`store`](Self::store).
    pub fn open(&self, from: u64) -> io::Result<Box<dyn Readable>> {
        self.store()?.open(self, from)
    }

    /// The stamp of a regular file; `None` for anything else.
    pub fn stamp(&self) -> Option<Stamp> {
        match self.kind() {
            Ok(Kind::File(stamp)) => Some(stamp),
            _ => None,
        }
    }

    /// The SHA-256 of the file at this location.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self) -> io::Result<[u8; 32]> {
        digest_of(self.open(0)?)
    }
}
