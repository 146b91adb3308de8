//! CPU reference.

use rayon::prelude::*;

use crate::{
    engine::{Float, Tensor},
    error::Result,
};

/// `x + keep_i·branch`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn residual<T: Float>(x: &Tensor, branch: &Tensor, keep: Option<&[f64]>) -> Result<Tensor> {
    let share = x.len() / x.dim(0).max(1);
    let mut y = T::numbers(x.len());
    y.par_chunks_mut(share.max(1))
        .zip(x.as_slice::<T>()?.par_chunks(share.max(1)))
        .zip(branch.as_slice::<T>()?.par_chunks(share.max(1)))
        .enumerate()
        .for_each(|(sample, ((y, x), branch))| {
            let keep = T::of(keep.map_or(1.0, |keep| keep[sample]));
            for ((y, x), branch) in y.iter_mut().zip(x).zip(branch) {
                *y = *x + keep * *branch;
            }
        });
    Tensor::new(x.shape(), y)
}

/// Elements per task.
const CHUNK: usize = 16_384;

/// `x += branch`.
pub(crate) fn add_in_place(x: &mut [f32], branch: &[f32]) {
    x.par_chunks_mut(CHUNK)
        .zip(branch.par_chunks(CHUNK))
        .for_each(|(x, branch)| x.iter_mut().zip(branch).for_each(|(x, branch)| *x += branch));
}
