//! The library's error type: one variant per cause; each message says what, where and how to fix it.

mod reasons;

use std::path::{Path, PathBuf};

pub(crate) use reasons::LeftOutRows;
pub use reasons::Reasons;

/// A `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors of the library. Messages are written for users of the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tensor shapes that do not fit an operation: a bug in the caller, or an incompatible checkpoint.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The expected and actual shapes.
        detail: String,
    },
    /// An I/O error.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted operation, as a verb: `read`, `write`, `create`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A table (CSV or Parquet) that cannot be used.
    #[error("{}{}: {message}", path.display(), line.map_or(String::new(), |line| format!(", line {line}")))]
    Table {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1 including the header, if known.
        line: Option<u64>,
        /// The problem and a hint.
        message: String,
    },
    /// An invalid configuration key or value.
    #[error("{source_name}: {}{message}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
    Config {
        /// The source of the key: a file or `--set`.
        source_name: String,
        /// The key, with dots if nested; empty for the file as a whole.
        key: String,
        /// The problem and a hint.
        message: String,
    },
    /// An unusable image. Its record is counted, logged and skipped.
    #[error("{}{message}", if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) })]
    Image {
        /// The image file; empty if its row has no path.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// A checkpoint or weights file that is damaged or does not fit.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// The problem and a hint.
        message: String,
    },
    /// An output that must not be written: it is an input, was not written by this program, or exists already.
    #[error("{}: {message}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// The reason and a hint.
        message: String,
    },
    /// Another process is writing the same output.
    #[error("{}: is being written by {holder}; wait for it or choose another --out", path.display())]
    Locked {
        /// The output.
        path: PathBuf,
        /// The process.
        holder: String,
    },
    /// An argument out of range, or arguments that exclude each other. The message names them and the accepted
    /// values.
    #[error("{0}")]
    Argument(String),
    /// Too few usable records, images or ratings.
    #[error("{0}")]
    NotEnoughData(String),
    /// A value that is not finite (NaN or Inf) in an image, a table, or the output of a network.
    #[error("{0}")]
    NotFinite(String),
    /// An existing run, checkpoint or other output that was created with other inputs or settings than the requested
    /// ones.
    #[error("{message}")]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// The difference and a hint.
        message: String,
    },
    /// An input without required contents, such as a run without a checkpoint.
    #[error("{message}")]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// A description of what is missing, with a hint.
        message: String,
    },
    /// A bug in the caller, or an operating system error without a variant of its own.
    #[error("{0}")]
    Invalid(String),
    /// A loss or gradient that is not finite.
    #[error("{0}")]
    Diverged(String),
    /// The program was built without kernels for this kind of device.
    #[error("{device}: this program was built without its kernels: {reason}")]
    KernelsNotBuilt {
        /// The kind of device: `cuda`, `emulated`.
        device: &'static str,
        /// The reason, which suggests what to change in the build.
        reason: String,
    },
    /// A device that is missing, unsuitable or has failed.
    #[error("{device}: {message}")]
    Device {
        /// The device, as named by the user.
        device: String,
        /// The problem and a hint.
        message: String,
    },
    /// The device does not have enough free memory.
    #[error(
        "{device}: out of memory: {} were requested, {} of {} are free; a smaller batch (bs, with a larger ac for the \
         same steps), --recompute, or 16-bit activations (fp16) need less",
        size(*requested_bytes), size(*free_bytes), size(*total_bytes)
    )]
    OutOfMemory {
        /// The device, as named by the user.
        device: String,
        /// Size of the failed request.
        requested_bytes: usize,
        /// Free memory, in bytes.
        free_bytes: usize,
        /// Total memory, in bytes.
        total_bytes: usize,
    },
    /// The host does not have enough memory, or the process is not allowed more.
    #[error("{}: not enough memory: {} were requested for {what}", path.display(), size(*bytes))]
    Memory {
        /// The file being read.
        path: PathBuf,
        /// The purpose of the memory.
        what: String,
        /// Size of the failed request.
        bytes: usize,
    },
    /// A file cannot be opened because the process has too many open files.
    #[error("{}: cannot be read: too many open files; allow more (ulimit -n)", path.display())]
    OpenFiles {
        /// The file to be read.
        path: PathBuf,
    },
    /// A faulty kernel, or a launch that the device does not support: a bug in this program.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// The name of the kernel.
        kernel: String,
        /// What happened, and where.
        message: String,
    },
    /// The user interrupted the job; completed work is saved.
    #[error("interrupted; {saved}")]
    Interrupted {
        /// A description of what was saved and how to continue.
        saved: String,
    },
}

/// Formats a number of bytes.
fn size(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} bytes");
    }
    let unit = (bytes.ilog2() as usize / 10 - 1).min(UNITS.len() - 1);
    format!("{:.1} {}", bytes as f64 / f64::powi(1024.0, unit as i32 + 1), UNITS[unit])
}

/// Allocates an empty vector with capacity for `length` values. `path` and `what` describe the purpose in the error.
///
/// # Errors
/// [`Error::Memory`] if the allocation fails.
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
    /// Creates an [`Error::Io`] in `map_err`: `File::open(path).map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }

    /// Whether the error says nothing about the image that it occurred with: with more memory or fewer open files, the
    /// image could be read. Jobs that skip unusable images stop at such an error, because results must not depend on
    /// the machine's state.
    pub(crate) fn is_of_machine(&self) -> bool {
        matches!(self, Self::Memory { .. } | Self::OpenFiles { .. })
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
