//! One safe launcher for each kernel: it checks sizes, decides grid and block, and knows the order of the arguments.
//!
//! Buffers are dense and row-major. Numbers are stored as `T` (f32, bf16 or f16) and computed in f32; every sum has a fixed
//! order, so results are the same bits on every run.

mod adamw;
mod cast;
mod cross_entropy;
mod gelu;
mod layer_norm;

pub use adamw::{AdamWStep, AdamWTensor, AdamWTensors, adamw_norm, adamw_update};
pub use cast::{narrow, widen};
pub use cross_entropy::{CrossEntropyOutput, cross_entropy};
pub use gelu::{column_sum, gelu_backward, gelu_forward};
pub use layer_norm::{
    LayerNormInput, ModulationRows, layer_norm_backward, layer_norm_forward, modulation_backward,
};

use crate::error::{Error, Result};

/// A size as kernels take it.
fn size(op: &'static str, what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(op, format!("{value} {what} are too many for a kernel")))
}

/// Blocks that cover `count` things, `each` a block.
fn blocks(op: &'static str, count: usize, each: usize) -> Result<u32> {
    size(op, "blocks", count.div_ceil(each))
}
