//! CPU reference.

use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 16_384;

/// Elementwise product `x·z`.
pub(crate) fn multiply(x: &[f32], z: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(CHUNK).zip(z).map(|(x, z)| x * z).collect()
}
