//! What a parameter's gradient is used for: chosen at backward time, not built into the ops.
//!
//! An op hands every parameter's contribution over as (input rows, output-gradient rows, the sample each row belongs
//! to). [`Accumulate`] sums them, as plain training does. [`Ghost`] finds inner products and norms of the samples' own gradients on
//! the way, and their sum with a weight for each sample.

mod ghost;

pub use ghost::{Direction, Ghost, GhostNumbers, Preconditioner, Repeated};

use crate::{
    engine::{
        ops::accumulate::{Contribution, accumulate},
        parameters::{ParameterId, Parameters},
        tensor::Tensor,
    },
    error::{Error, Result},
};

/// To which sample the rows of a value belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOwner {
    /// Row `r` belongs to sample `r / rows_per_sample` of the batch.
    Samples {
        /// Rows of one sample; all samples have as many.
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
    /// If the visitor cannot use it: an error, never silently left out.
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()>;
}

/// Drops every contribution: for gradients of inputs alone.
pub struct Ignore;

impl GradientVisitor for Ignore {
    fn visit(&mut self, _: &Parameters, _: ParameterId, _: RowOwner, _: &Contribution<'_>) -> Result<()> {
        Ok(())
    }
}

/// Why a parameter's contribution cannot be taken apart.
fn per_sample_refusal(parameters: &Parameters, id: ParameterId) -> Error {
    Error::invalid(format!(
        "{} mixes the samples of a batch, so its gradient has no per-sample parts",
        parameters.name(id)
    ))
}

/// Gradients of a network's parameters, in their order; `None` where nothing has arrived.
pub type Gradients = Vec<Option<Tensor>>;

/// Sums every contribution over all rows: the gradient of plain training.
#[derive(Default)]
pub struct Accumulate {
    /// The sums so far.
    pub gradients: Gradients,
}

impl GradientVisitor for Accumulate {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        _: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        self.gradients.resize(parameters.len(), None);
        accumulate(&mut self.gradients[id.0], parameters.value(id), contribution)
    }
}
