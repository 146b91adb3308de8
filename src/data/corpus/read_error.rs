//! The error of a file that cannot be read.

use std::io;

use crate::{data::location::Location, error::Error};

/// The error of a file that cannot be read: damaged contents are a fault of the table, others of the system.
pub(super) fn read_error(at: &Location) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::Table { path: at.as_path().to_path_buf(), line: None, message: error.to_string() }
        }
        _ => Error::io("read", at.as_path())(error),
    }
}
