//! Gradient visitors: the use of a parameter's gradient is chosen at backward time, not built into the ops.
//!
//! An op passes every parameter's contribution on as (input rows, output-gradient rows, the sample of each row).
//! [`Accumulate`] sums them, as in plain training. [`Ghost`] computes inner products and norms of per-sample gradients
//! during the pass, and their weighted sum.

mod ghost;

pub use ghost::{Direction, Ghost, GhostNumbers, Preconditioner, Repeated};

use crate::{
    engine::{
        GradientVisitor, Gradients, ParameterId, Parameters, RowOwner,
        autograd::contributions::{Contribution, accumulate},
    },
    error::{Error, Result},
};

/// Ignores every contribution: for gradients of inputs only.
pub struct Ignore;

impl GradientVisitor for Ignore {
    fn visit(&mut self, _: &Parameters, _: ParameterId, _: RowOwner, _: &Contribution<'_>) -> Result<()> {
        Ok(())
    }
}

/// The error for a contribution without per-sample parts.
fn per_sample_refusal(parameters: &Parameters, id: ParameterId) -> Error {
    Error::invalid(format!(
        "{} mixes the samples of a batch, so its gradient has no per-sample parts",
        parameters.name(id)
    ))
}

/// Sums every contribution over all rows: the gradient in plain training.
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
