//! One error type for the library: each variant is a cause, each message says what, where and what to do.

mod reasons;

use std::path::{Path, PathBuf};

pub(crate) use reasons::LeftOutRows;
pub use reasons::Reasons;

/// Shorthand for a result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in the library. Messages are whole sentences for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tensors whose shapes do not fit an operation: a mistake in the calling code or a foreign checkpoint.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// What was expected and what came.
        detail: String,
    },
    /// Reading, writing or creating a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: `read`, `write`, `create`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A table (CSV or Parquet) that cannot be used as it is.
    #[error("{}{}: {message}", path.display(), line.map_or(String::new(), |line| format!(", line {line}")))]
    Table {
        /// The file.
        path: PathBuf,
        /// The line in the file, counted from 1 with the header, where one is known.
        line: Option<u64>,
        /// What is wrong and what to do.
        message: String,
    },
    /// A configuration key or value that cannot be used.
    #[error("{source_name}: {key}: {message}")]
    Config {
        /// The file, or `--set`, that the key came from.
        source_name: String,
        /// The key, dotted when nested.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// An image that cannot be used. Such a record is counted, logged and left out.
    #[error("{}: {message}", path.display())]
    Image {
        /// The image's file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A checkpoint or weights file that does not fit or is damaged.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// An output that may not be written: it is an input, or not this program's own, or there already.
    #[error("{}: {message}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not, and what to do.
        message: String,
    },
    /// Another process writes the same output.
    #[error("{}: is being written by {holder}; wait for it or choose another --out", path.display())]
    Locked {
        /// The output.
        path: PathBuf,
        /// The process.
        holder: String,
    },
    /// An argument out of range, or arguments that exclude each other: the message says which, and what is accepted.
    #[error("{0}")]
    Argument(String),
    /// Too few records, images or ratings that can be used.
    #[error("{0}")]
    NotEnoughData(String),
    /// A value that is not finite (NaN or Inf) in an image, in a table, or in what a network computes of them.
    #[error("{0}")]
    NotFinite(String),
    /// A run, a checkpoint or another output that is there already and was made of something else than was asked for.
    #[error("{message}")]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// What differs and what to do.
        message: String,
    },
    /// An input that does not hold what is needed of it, such as a run without a checkpoint.
    #[error("{message}")]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What is missing and what to do.
        message: String,
    },
    /// A mistake in the calling code, or a refusal of the operating system that no other variant names.
    #[error("{0}")]
    Invalid(String),
    /// A loss or gradient that is no longer a number.
    #[error("{0}")]
    Diverged(String),
    /// The program holds no kernels for this kind of device.
    #[error("{device}: this program was built without its kernels: {reason}")]
    KernelsNotBuilt {
        /// The kind of device: `cuda`, `emulated`.
        device: &'static str,
        /// Why, and so what to change before building again.
        reason: String,
    },
    /// A device that is missing, unfit or has failed.
    #[error("{device}: {message}")]
    Device {
        /// The device, as the user names it.
        device: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A device has not enough memory left.
    #[error(
        "{device}: out of memory: {} were asked for, and {} of {} are free; a smaller batch (bs, with a larger ac for the \
         same steps), --recompute, or 16-bit activations (fp16) need less",
        size(*asked_bytes), size(*free_bytes), size(*total_bytes)
    )]
    OutOfMemory {
        /// The device, as the user names it.
        device: String,
        /// Bytes of this one request.
        asked_bytes: usize,
        /// Bytes that were free.
        free_bytes: usize,
        /// Bytes in all.
        total_bytes: usize,
    },
    /// The memory of this machine, or what the process may have of it, is not enough.
    #[error("{}: not enough memory: {} were requested for {what}", path.display(), size(*bytes))]
    Memory {
        /// The file that is read.
        path: PathBuf,
        /// What the memory is for.
        what: String,
        /// Bytes of this one request.
        bytes: usize,
    },
    /// A kernel that did wrong, or a launch that its device cannot do: a mistake in the program.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// What happened, and where.
        message: String,
    },
    /// The user asked to stop; what was done so far is saved.
    #[error("interrupted; {saved}")]
    Interrupted {
        /// What was saved and how to go on.
        saved: String,
    },
}

/// A number of bytes, to read.
fn size(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} bytes");
    }
    let unit = (bytes.ilog2() as usize / 10 - 1).min(UNITS.len() - 1);
    format!("{:.1} {}", bytes as f64 / f64::powi(1024.0, unit as i32 + 1), UNITS[unit])
}

/// An empty list with room for `length` values, which a file asks for; `what` says for what.
///
/// # Errors
/// [`Error::Memory`] if there is not enough.
pub fn reserved<T>(length: usize, path: &Path, what: &str) -> Result<Vec<T>> {
    let mut list = Vec::new();
    match list.try_reserve_exact(length) {
        Ok(()) => Ok(list),
        Err(_) => Err(Error::Memory {
            path: path.to_path_buf(),
            what: what.to_owned(),
            bytes: length.saturating_mul(size_of::<T>()),
        }),
    }
}

impl Error {
    /// An [`Error::Io`] for use in `map_err`: `File::open(path).map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }

    /// An [`Error::Argument`].
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }

    /// An [`Error::NotEnoughData`].
    pub(crate) fn not_enough_data(message: impl Into<String>) -> Self {
        Self::NotEnoughData(message.into())
    }

    /// An [`Error::NotFinite`].
    pub(crate) fn not_finite(message: impl Into<String>) -> Self {
        Self::NotFinite(message.into())
    }

    /// An [`Error::Mismatch`].
    pub(crate) fn mismatch(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Mismatch { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Input`].
    pub(crate) fn input(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_that_fails_says_what_was_requested() {
        assert_eq!(reserved::<f32>(3, Path::new("a.pth"), "a tensor").unwrap().capacity(), 3);
        let refused = reserved::<f32>(1 << 60, Path::new("a.pth"), "tensor w of 2^60 floats").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a.pth: not enough memory: 4096.0 PiB were requested for tensor w of 2^60 floats"
        );
    }
}
