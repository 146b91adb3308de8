//! The CPU reference.

use rayon::prelude::*;

/// Numbers handled by one task.
const CHUNK: usize = 16_384;

/// `x·z`, number by number.
pub(crate) fn multiply(x: &[f32], z: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(CHUNK).zip(z).map(|(x, z)| x * z).collect()
}
