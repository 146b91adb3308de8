//! Host memory for uploads, used in turn.

use super::driver::Staging;

/// Host memory and a device block that uploads use in turn.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) staging: Staging,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// Slots that no copy uses.
#[derive(Debug, Default)]
pub(super) struct Stagings(pub(super) Vec<Slot>);
