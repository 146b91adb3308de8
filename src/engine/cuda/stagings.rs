//! Host memory for uploads, reused from upload to upload.

use super::driver::Staging;

/// Host memory and a device block for one upload at a time.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) staging: Staging,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// Slots that no copy uses.
#[derive(Debug, Default)]
pub(super) struct Stagings(pub(super) Vec<Slot>);
