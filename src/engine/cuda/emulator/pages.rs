//! Page allocator for the emulated memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::runtime::{emulator_arena_base, emulator_arena_open};
use crate::error::{Error, Result};

/// Alignment of allocations, as in `kernels/host/memory.h`.
pub(super) const PAGE: usize = 4096;

/// Free pages of the emulated memory, which is one per process.
pub(super) struct Pages {
    pub(super) base: u64,
    pub(super) total: usize,
    pub(super) used: usize,
    /// Free ranges by first page; adjacent ranges are always merged.
    free: BTreeMap<usize, usize>,
    /// End of the last allocation. The search continues from there, so that freed memory is reused as late as possible
    /// and a dangling address refers to no allocation.
    next: usize,
}

impl Pages {
    pub(super) fn get() -> Result<MutexGuard<'static, Self>> {
        static PAGES: OnceLock<Mutex<Pages>> = OnceLock::new();
        let pages = PAGES.get_or_init(|| {
            // SAFETY: called once, before any other use of the emulated memory.
            let bytes = unsafe { emulator_arena_open() };
            let total = usize::try_from(bytes).unwrap_or(0) / PAGE;
            // SAFETY: the memory has been opened.
            let base = unsafe { emulator_arena_base() }.addr() as u64;
            // The first page stays free, so that the address just before an allocation never belongs to another.
            let free = BTreeMap::from([(1, total.saturating_sub(1))]);
            Mutex::new(Self { base, total, used: 0, free, next: 1 })
        });
        let pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.total == 0 {
            return Err(Error::Device {
                device: "emulated".to_owned(),
                message: "no address space for the emulated memory".to_owned(),
            });
        }
        Ok(pages)
    }

    /// The next free range that is long enough; one page is left between allocations.
    pub(super) fn take(&mut self, pages: usize) -> Option<usize> {
        // The range that contains `next` offers only what follows it.
        let around =
            self.free.range(..self.next).next_back().map(|(&first, &length)| (first, first + length));
        let rest =
            around.filter(|&(_, end)| end > self.next + pages).map(|(first, end)| (first, self.next, end));
        let whole =
            |(&first, &length): (&usize, &usize)| (length > pages).then_some((first, first, first + length));
        let (key, first, end) = rest
            .or_else(|| self.free.range(self.next..).find_map(whole))
            .or_else(|| self.free.range(..self.next).find_map(whole))?;
        self.free.remove(&key);
        if first > key {
            self.free.insert(key, first - key);
        }
        self.next = first + pages + 1;
        if end > self.next {
            self.free.insert(self.next, end - self.next);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_pages_are_reused_last() {
        let mut pages = Pages { base: 0, total: 10, used: 0, free: BTreeMap::from([(1, 9)]), next: 1 };
        assert_eq!(pages.take(1), Some(1));
        pages.put_back(1, 1);
        assert_eq!(pages.take(2), Some(3), "what was given back has to wait");
        assert_eq!(pages.take(3), Some(6), "to the last page");
        assert_eq!(pages.take(1), Some(1), "nothing else is left");
        assert_eq!((pages.take(1), pages.used), (None, 9));
        for (first, length) in [(3, 2), (1, 1), (6, 3)] {
            pages.put_back(first, length);
        }
        assert_eq!((pages.take(8), pages.used), (Some(1), 9), "stretches grow together again");
    }
}
