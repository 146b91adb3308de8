//! Stores: where the bytes at a [`Location`] come from.
//!
//! Tables and images are read through [`Store`] alone, so a new kind of store is one implementation and one line in [`Location::store`].

mod local;

use std::io;

use super::location::{Location, not_local};
use crate::files::digest_of;
pub use local::LocalStore;

/// What a store says of an object without reading it. Two looks that give the same found the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub bytes: u64,
    /// The last change of its contents, in nanoseconds since 1970.
    pub modified: i64,
    /// The last change of its metadata, which a program cannot set back, in nanoseconds since 1970; 0 where the store has none.
    pub changed: i64,
}

/// What is at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or an object.
    File(Stamp),
    /// A folder.
    Folder,
    /// Something that can only be read once, or never: a pipe, a device.
    Other,
}

/// An open file.
pub trait Readable: io::Read + io::Seek + Send {}

impl<T: io::Read + io::Seek + Send> Readable for T {}

/// A place that bytes are read from.
pub trait Store: Send + Sync {
    /// What is at a location.
    ///
    /// # Errors
    /// If there is nothing, or the store cannot be asked.
    fn kind(&self, at: &Location) -> io::Result<Kind>;

    /// Opens a file at this byte, to be read from there on.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    fn open(&self, at: &Location, from: u64) -> io::Result<Box<dyn Readable>>;
}

impl Location {
    /// The store that it is in.
    ///
    /// # Errors
    /// If this program reads no such store.
    pub fn store(&self) -> io::Result<&'static dyn Store> {
        match self.local() {
            Some(_) => Ok(&LocalStore),
            None => {
                let why = self.as_path().to_str().and_then(not_local).unwrap_or_default();
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
        }
    }

    /// What is there; see [`Store::kind`].
    ///
    /// # Errors
    /// As for [`Store::kind`] and [`store`](Self::store).
    pub fn kind(&self) -> io::Result<Kind> {
        self.store()?.kind(self)
    }

    /// Opens the file that is there; see [`Store::open`].
    ///
    /// # Errors
    /// As for [`Store::open`] and [`store`](Self::store).
    pub fn open(&self, from: u64) -> io::Result<Box<dyn Readable>> {
        self.store()?.open(self, from)
    }

    /// The stamp of a regular file; nothing of anything else.
    pub fn stamp(&self) -> Option<Stamp> {
        match self.kind() {
            Ok(Kind::File(stamp)) => Some(stamp),
            _ => None,
        }
    }

    /// The SHA-256 of the file that is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self) -> io::Result<[u8; 32]> {
        digest_of(self.open(0)?)
    }
}
