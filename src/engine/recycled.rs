//! Recycles the memory of dropped tensors for tensors of the same length.
//!
//! A training step allocates the same lengths over and over. Fresh memory is cleared twice, by the system and by us,
//! before anything is computed; recycled memory is only overwritten.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// Shorter vectors do not justify taking the lock.
const MIN_LENGTH: usize = 4096;
/// Maximum bytes kept; vectors that would exceed it are freed.
const MAX_BYTES: usize = 1 << 30;

/// Vectors kept of one length.
#[derive(Default)]
struct Length {
    /// Vectors allocated so far: the most that have been live at once. No more than that are kept.
    made: usize,
    kept: Vec<Vec<f32>>,
}

#[derive(Default)]
struct Kept {
    lengths: HashMap<usize, Length>,
    bytes: usize,
}

/// Whether unspecified values are set to NaN, so that reading them before writing is noticed:
/// `ALCHEMIST_POISON_MEMORY=1`.
static POISONED: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALCHEMIST_POISON_MEMORY").is_ok_and(|value| value == "1"));

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `length` unspecified values, for a caller that overwrites all of them.
pub(super) fn take(length: usize) -> Vec<f32> {
    if length < MIN_LENGTH {
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

/// Recycles values if their length has been requested before.
pub(super) fn give_back(values: Vec<f32>) {
    let bytes = size_of_val(values.as_slice());
    if values.len() < MIN_LENGTH || values.capacity() != values.len() {
        return;
    }
    let mut kept = kept();
    if kept.bytes + bytes > MAX_BYTES {
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
        let length = MIN_LENGTH + 12_345;
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
