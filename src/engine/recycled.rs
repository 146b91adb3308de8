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

/// What is kept of one length.
#[derive(Default)]
struct Length {
    /// As many as had to be made, which is how many were in use at once: more are never kept.
    made: usize,
    kept: Vec<Vec<f32>>,
}

#[derive(Default)]
struct Kept {
    lengths: HashMap<usize, Length>,
    bytes: usize,
}

/// Whether numbers of no meaning are made not to be numbers, so that whoever reads before writing shows itself:
/// `ALCHEMIST_POISON_MEMORY=1`.
static POISONED: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALCHEMIST_POISON_MEMORY").is_ok_and(|value| value == "1"));

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
    let of_length = kept.lengths.entry(length).or_default();
    let found = of_length.kept.pop();
    of_length.made += usize::from(found.is_none());
    kept.bytes -= found.as_ref().map_or(0, |values| size_of_val(values.as_slice()));
    drop(kept);
    let mut values = found.unwrap_or_else(|| vec![0.0; length]);
    if *POISONED {
        values.fill(f32::NAN);
    }
    values
}

/// Keeps numbers that nobody needs, if their length has been asked for.
pub(super) fn give_back(values: Vec<f32>) {
    let bytes = size_of_val(values.as_slice());
    if values.len() < FEWEST || values.capacity() != values.len() {
        return;
    }
    let mut kept = kept();
    if kept.bytes + bytes > MOST_BYTES {
        return;
    }
    if let Some(length) = kept.lengths.get_mut(&values.len())
        && length.kept.len() < length.made
    {
        length.kept.push(values);
        kept.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_by_their_length() {
        // A length that no other test of this process uses.
        let length = FEWEST + 12_345;
        give_back(vec![1.5; length]);
        let values = take(length);
        assert!(values.iter().all(|value| *value != 1.5), "nobody had asked for this length");
        let address = values.as_ptr();
        give_back(values);
        give_back(vec![1.5; length]);
        let (longer, again, another) = (take(length + 1), take(length), take(length));
        assert_eq!((again.as_ptr(), again.len()), (address, length));
        assert_ne!(longer.as_ptr(), address, "another length");
        assert_ne!(another.as_ptr(), address, "it is handed out once");
        assert_eq!(take(7), [0.0; 7]);
    }
}
