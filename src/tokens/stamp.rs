//! What a file was when it was read: enough to notice that it is another one now.

use std::{fs, path::Path, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::{digest_of_file, hexadecimal};

/// Length and time of an image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(super) bytes: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: i64,
    /// The same for the last change of the file's state; 0 where the system has none.
    changed: i64,
}

impl Stamp {
    /// Of a regular file; nothing of anything else.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let about = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let since = about.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        Some(Self { bytes: about.len(), modified, changed: state_changed(&about) })
    }
}

#[cfg(unix)]
fn state_changed(about: &fs::Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    about.ctime().saturating_mul(1_000_000_000).saturating_add(about.ctime_nsec())
}

#[cfg(not(unix))]
fn state_changed(_about: &fs::Metadata) -> i64 {
    0
}

/// An image's file as a job read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    bytes: u64,
    modified: i64,
    changed: i64,
    /// The first half of its SHA-256; empty if it could not be read.
    digest: String,
}

/// An image's file, or that there was none.
pub(crate) type Seen = Option<Image>;

impl Image {
    /// One whose digest was taken elsewhere, if it could be.
    pub(super) fn new(stamp: Stamp, digest: Option<&[u8; 32]>) -> Self {
        let Stamp { bytes, modified, changed } = stamp;
        Self { bytes, modified, changed, digest: digest.map(half).unwrap_or_default() }
    }

    /// One that the token cache served without its file.
    pub(super) fn served(digest: &[u8; 32]) -> Self {
        Self { bytes: 0, modified: 0, changed: 0, digest: half(digest) }
    }

    /// Whether its contents are those of this digest.
    pub(super) fn has_digest(&self, digest: &[u8; 32]) -> bool {
        self.digest == half(digest)
    }

    /// Whether its contents are those of another.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Whether the file `path`, which has this stamp now, is still the one that was read.
    pub(super) fn is_still(&self, path: &Path, stamp: Stamp) -> bool {
        if (stamp.bytes, stamp.modified, stamp.changed) == (self.bytes, self.modified, self.changed) {
            return true;
        }
        // One that was served by the cache alone has no length.
        (stamp.bytes == self.bytes || self.modified == 0)
            && !self.digest.is_empty()
            && digest_of_file(path).is_ok_and(|digest| self.has_digest(&digest))
    }
}

fn half(digest: &[u8; 32]) -> String {
    hexadecimal(&digest[..16])
}
