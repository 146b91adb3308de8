//! The pyramids that every kernel is tested with.

/// `patch_nums` of all configurations in `configs`, as tests/config.rs makes sure, and one that is in none.
pub(crate) const PYRAMIDS: [&[usize]; 4] =
    [&[1, 2, 3, 5], &[1, 2, 3, 4, 6], &[1, 2, 3, 4, 6, 8], &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]];
