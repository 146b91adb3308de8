//! The operations, each as large as the mathematics: what it computes on the tape, its CPU reference and its backward.
//!
//! An op takes the tape and its inputs and gives a [`Var`](crate::engine::Var). Shapes use the letters of the crate's
//! front page. All CPU references run in `f32` and `f64`, give the same bits for any number of threads, and keep the
//! order of every sum fixed.

pub mod accumulate;
pub mod activation;
pub mod adamw;
pub mod affine_norm;
pub mod attention;
pub mod cast;
pub mod convolution;
pub mod cross_entropy;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
pub mod meta_gradient;
pub mod modulation;
pub mod patch_embed;
pub mod pooling;
pub mod pyramid;
pub mod rater_loss;
pub mod residual;
pub mod softmax;

use crate::{
    engine::{
        Tensor,
        cuda::{DeviceNumber, Launch},
    },
    error::{Error, Result},
};

/// The size of the last dimension.
pub(crate) fn last_dim(op: &'static str, tensor: &Tensor) -> Result<usize> {
    match tensor.shape().last() {
        Some(&size) if size > 0 => Ok(size),
        _ => Err(Error::shape(op, format!("{:?} has no last dimension", tensor.shape()))),
    }
}

/// Refuses unless `tensor` has this shape.
pub(crate) fn expect_shape(op: &'static str, what: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} has the shape {:?}, expected {shape:?}", tensor.shape())))
}

/// The three sizes of a `[B, L, C]` tensor.
pub(crate) fn three_dims(op: &'static str, what: &str, tensor: &Tensor) -> Result<[usize; 3]> {
    <[usize; 3]>::try_from(tensor.shape()).map_err(|_| {
        Error::shape(op, format!("{what} has the shape {:?}, expected three dimensions", tensor.shape()))
    })
}

/// A size as kernels take it.
pub(crate) fn size(op: &'static str, what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(op, format!("{value} {what} are too many for a kernel")))
}

/// Blocks that cover `count` things, `each` a block.
pub(crate) fn blocks(op: &'static str, count: usize, each: usize) -> Result<u32> {
    size(op, "blocks", count.div_ceil(each))
}

/// Threads a block of the kernels of `kernels/elementwise.cuh`.
const EACH_THREADS: u32 = 256;

/// The launch of a kernel of `kernels/elementwise.cuh` over `samples` of `share` numbers.
pub(crate) fn each_launch<T: DeviceNumber>(op: &'static str, samples: usize, share: usize) -> Result<Launch> {
    let each = EACH_THREADS as usize * 16 / size_of::<T>();
    let grid = [blocks(op, share, each)?, size(op, "samples", samples)?, 1];
    Ok(Launch { grid, block: [EACH_THREADS, 1, 1], shared_bytes: 0 })
}

/// Numbers of each of `samples` equal parts of `count` numbers.
pub(crate) fn share_of(op: &'static str, count: usize, samples: usize) -> Result<usize> {
    if samples == 0 || !count.is_multiple_of(samples) {
        return Err(Error::shape(op, format!("{count} numbers do not make {samples} equal samples")));
    }
    Ok(count / samples)
}
