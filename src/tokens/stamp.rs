//! The state of an image when it was read: enough to detect that it has changed.

use serde::{Deserialize, Serialize};

use crate::{
    data::{ImageRef, store::Stamp},
    files::hexadecimal,
};

/// An image file as a job read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    bytes: u64,
    modified: i64,
    changed: i64,
    /// Hex of the first half of its SHA-256; empty if it could not be read.
    digest: String,
}

/// The state of an image: its file, or `None` if there was none.
pub(crate) type ImageState = Option<Image>;

impl Image {
    /// Combines a stamp and, if it could be computed, a digest.
    pub(super) fn new(stamp: Stamp, digest: Option<&[u8; 32]>) -> Self {
        let Stamp { bytes, modified, changed } = stamp;
        Self { bytes, modified, changed, digest: digest.map(half).unwrap_or_default() }
    }

    /// The state of an image that the token cache served without its file.
    pub(super) fn served(digest: &[u8; 32]) -> Self {
        Self { bytes: 0, modified: 0, changed: 0, digest: half(digest) }
    }

    /// Whether its contents have this digest.
    pub(super) fn has_digest(&self, digest: &[u8; 32]) -> bool {
        self.digest == half(digest)
    }

    /// Whether its contents are the same as those of `other`.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Whether an image with this stamp is still the one that was read.
    pub(super) fn is_still(&self, image: &ImageRef, stamp: Stamp) -> bool {
        if (stamp.bytes, stamp.modified, stamp.changed) == (self.bytes, self.modified, self.changed) {
            return true;
        }
        // An image served by the cache has no length.
        (stamp.bytes == self.bytes || self.modified == 0)
            && !self.digest.is_empty()
            && image.digest().is_ok_and(|digest| self.has_digest(&digest))
    }
}

fn half(digest: &[u8; 32]) -> String {
    hexadecimal(&digest[..16])
}
