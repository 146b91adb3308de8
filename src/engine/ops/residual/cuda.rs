//! Launchers for `kernels/residual.cu`: the forward is
//! [`residual_forward`](crate::engine::autograd::contributions::cuda::residual_forward), which also adds gradients. For
//! a residual followed by a layer norm, see
//! [`residual_layer_norm_forward`](crate::engine::ops::layer_norm::cuda::residual_layer_norm_forward).

use crate::{
    engine::{
        autograd::contributions::cuda::scale_samples,
        cuda::{Buffer, device::Factor},
    },
    error::Result,
};

/// The branch's gradient, `d_branch = keep_i·d`, `[B, ..]`; that of `x` is `d` itself. Without `d`, in place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn residual_backward<T: Factor>(
    d_branch: &mut Buffer<T>,
    d: Option<&Buffer<T>>,
    keep: &Buffer<f32>,
) -> Result<()> {
    scale_samples(d_branch, d, keep)
}
