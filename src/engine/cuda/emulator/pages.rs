//! The address space of the emulated memory, by pages.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::runtime::{emulator_arena_base, emulator_arena_open};
use crate::error::{Error, Result};

/// Allocations start on pages, as `kernels/host/memory.h` has it.
pub(super) const PAGE: usize = 4096;

/// Which pages of the emulated memory are free; one for the whole process, as the memory is.
pub(super) struct Pages {
    pub(super) base: u64,
    pub(super) total: usize,
    pub(super) used: usize,
    /// Freed stretches, by first page, none touching another.
    free: BTreeMap<usize, usize>,
}

impl Pages {
    pub(super) fn get() -> Result<MutexGuard<'static, Self>> {
        static PAGES: OnceLock<Mutex<Pages>> = OnceLock::new();
        let pages = PAGES.get_or_init(|| {
            // SAFETY: called once, before anything else of the emulator's memory.
            let bytes = unsafe { emulator_arena_open() };
            let total = usize::try_from(bytes).unwrap_or(0) / PAGE;
            // SAFETY: the memory has been opened.
            let base = unsafe { emulator_arena_base() }.addr() as u64;
            // The first page stays free, so that what lies just before an allocation is never another.
            Mutex::new(Self { base, total, used: 0, free: BTreeMap::from([(1, total.saturating_sub(1))]) })
        });
        let pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.total == 0 {
            return Err(Error::Device {
                device: "emulated".to_owned(),
                message: "the system grants no address space for the emulated memory".to_owned(),
            });
        }
        Ok(pages)
    }

    /// The first stretch that is long enough; one page is left between allocations.
    pub(super) fn take(&mut self, pages: usize) -> Option<usize> {
        let (&first, &length) = self.free.iter().find(|(_, length)| **length > pages)?;
        self.free.remove(&first);
        if length > pages + 1 {
            self.free.insert(first + pages + 1, length - pages - 1);
        }
        self.used += pages + 1;
        Some(first)
    }

    pub(super) fn put_back(&mut self, first: usize, pages: usize) {
        let (mut first, mut length) = (first, pages + 1);
        self.used -= length;
        if let Some(after) = self.free.remove(&(first + length)) {
            length += after;
        }
        if let Some((&before, &size)) = self.free.range(..first).next_back()
            && before + size == first
        {
            first = before;
            length += size;
        }
        self.free.insert(first, length);
    }
}
