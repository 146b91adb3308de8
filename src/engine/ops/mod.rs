//! The operations: each has a tape function, a CPU reference and its backward, and most have CUDA kernels.
//!
//! An op takes the tape and its inputs and returns a [`Var`](crate::engine::Var). The letters in shapes are defined in
//! the documentation of the crate. All CPU references run in `f32` and `f64`, are bit-identical for any number of
//! threads, and sum in a fixed order.

pub mod activation;
pub mod adamw;
pub mod add_to_all;
pub mod affine_norm;
pub mod attention;
pub mod batch_softmax;
pub mod batch_statistics;
pub mod cast;
pub mod convolution;
pub mod cross_entropy;
pub mod first_sample;
pub mod group_norm;
pub mod layer_norm;
pub mod levels;
pub mod linear;
pub mod mean_tokens;
pub mod meta_gradient;
pub mod modulation;
pub mod multiply;
pub mod patch_embed;
pub mod pyramid;
pub mod rater_loss;
pub mod residual;
pub mod scale_all;
pub mod softmax;

pub(crate) use crate::engine::cuda::launches::{blocks, each_launch, share_of, size};
use crate::{
    engine::Tensor,
    error::{Error, Result},
};

/// The size of the last dimension.
pub(crate) fn last_dim(op: &'static str, tensor: &Tensor) -> Result<usize> {
    match tensor.shape().last() {
        Some(&size) if size > 0 => Ok(size),
        _ => Err(Error::shape(op, format!("{:?} has no last dimension", tensor.shape()))),
    }
}

/// Returns an error unless `tensor` has this shape.
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
