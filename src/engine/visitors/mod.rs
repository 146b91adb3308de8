//! What a parameter's gradient is used for: chosen at backward time, not built into the ops.
//!
//! An op hands every parameter's contribution over as (input rows, output-gradient rows, the sample each row belongs
//! to). [`Accumulate`] sums them, as plain training does. [`Ghost`] finds inner products and norms of the samples' own gradients on
//! the way, and their sum with a weight for each sample.

mod ghost;

pub use ghost::{Direction, Ghost, GhostNumbers, Preconditioner, Repeated};

use crate::{
    engine::{
        GradientVisitor, Gradients, ParameterId, Parameters, RowOwner,
        autograd::contributions::{Contribution, accumulate},
    },
    error::{Error, Result},
};

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
