//! Visitors receive every parameter's contribution during a backward pass: how a gradient is used is chosen there, not
//! built into the ops.

use super::{
    contributions::Contribution,
    parameters::{ParameterId, Parameters},
};
use crate::{engine::Tensor, error::Result};

/// Which sample the rows of a value belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOwner {
    /// Row `r` belongs to sample `r / rows_per_sample` of the batch.
    Samples {
        /// Rows per sample; the same for all samples.
        rows_per_sample: usize,
    },
    /// The rows mix samples, so no per-sample gradient can be read off them.
    Batch,
}

impl RowOwner {
    /// The owner of rows made from two inputs: samples only if both are.
    pub fn joint(self, other: Self) -> Self {
        if other == Self::Batch { Self::Batch } else { self }
    }
}

/// Receives every parameter's contribution during a backward pass.
pub trait GradientVisitor {
    /// One contribution; a parameter used several times is visited several times.
    ///
    /// # Errors
    /// If the visitor cannot use it; a visitor never skips a contribution silently.
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()>;
}

/// Gradients of a network's parameters, in their order; `None` where none has arrived.
pub type Gradients = Vec<Option<Tensor>>;
