//! Numbers that tensors no longer need, kept for tensors of the same length.
//!
//! A training step asks for the same lengths over and over. Memory fresh from the system is cleared twice, by it and by
//! us, before anything is computed; numbers that are given back are only overwritten.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// Fewer numbers are not worth the lock.
const FEWEST: usize = 4096;
/// The most that is kept, in bytes; what comes back beyond it is freed.
const MOST_BYTES: usize = 1 << 30;

#[derive(Default)]
struct Kept {
    by_length: HashMap<usize, Vec<Vec<f32>>>,
    bytes: usize,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `length` numbers of no meaning, for what writes them all.
pub(super) fn take(length: usize) -> Vec<f32> {
    if length < FEWEST {
        return vec![0.0; length];
    }
    let mut kept = kept();
    let found = kept.by_length.get_mut(&length).and_then(Vec::pop);
    kept.bytes -= found.as_ref().map_or(0, |values| size_of_val(values.as_slice()));
    drop(kept);
    let mut values = found.unwrap_or_else(|| vec![0.0; length]);
    if cfg!(debug_assertions) {
        // Whoever reads before writing shows itself.
        values.fill(f32::NAN);
    }
    values
}

/// Keeps numbers that nobody needs.
pub(super) fn give_back(values: Vec<f32>) {
    let bytes = size_of_val(values.as_slice());
    if values.len() < FEWEST || values.capacity() != values.len() {
        return;
    }
    let mut kept = kept();
    if kept.bytes + bytes <= MOST_BYTES {
        kept.bytes += bytes;
        kept.by_length.entry(values.len()).or_default().push(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_by_their_length() {
        // A length that no other test of this process uses.
        let length = FEWEST + 12_345;
        let values = vec![1.5; length];
        let address = values.as_ptr();
        give_back(values);
        let (longer, again, another) = (take(length + 1), take(length), take(length));
        assert_eq!((again.as_ptr(), again.len()), (address, length));
        assert_ne!(longer.as_ptr(), address, "another length");
        assert_ne!(another.as_ptr(), address, "it is handed out once");
        assert_eq!(take(7), [0.0; 7]);
    }
}
