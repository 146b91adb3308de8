//! Host memory that uploads take turns with.

use super::driver::Staging;

/// Host memory and a block of the device that copies take turns with.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) staging: Staging,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// Slots that no copy uses.
#[derive(Debug, Default)]
pub(super) struct Stagings(pub(super) Vec<Slot>);
