//! Per-sample gradients that are used without being formed: inner products with a given gradient, squared norms, and
//! the weighted sum, from one backward pass of `Σ_i ℓ_i` (method.md, "The fused meta-gradient").

use super::per_sample_refusal;
use crate::{
    engine::{
        Contribution, GradientVisitor, Gradients, ParameterId, Parameters, RowOwner, Tensor,
        autograd::contributions::{add, scale_samples},
        ops::meta_gradient::{self, GradientRequest, SampleProducts, meta_gradient, stacked, totals},
    },
    error::{Error, Result},
};

/// A gradient of the same network with which each per-sample gradient is multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Direction<'a> {
    /// V: one tensor per parameter, on the device of the network; `None` counts as zeros.
    pub gradients: &'a Gradients,
    /// Turns V into the direction of an optimizer step; see [`Preconditioner`].
    pub preconditioner: Option<Preconditioner<'a>>,
}

/// The geometry of AdamW: V becomes `V / (√v̂ + ε)`, where `v̂` is the bias-corrected second moment.
#[derive(Clone, Copy, Debug)]
pub struct Preconditioner<'a> {
    /// Second moments, one per parameter.
    pub second_moments: &'a [Tensor],
    /// `[2]`: the bias correction (`1 / (1 − β₂ᵗ)`; 0 while there is no moment, which makes all products 0), and ε. In
    /// f64 on the host, in f32 on a device.
    pub factors: &'a Tensor,
}

/// Parameters that a network reads more than once per forward pass. Their contributions must be summed before a norm
/// can be computed, so they are kept until the end of the pass; only small parameters qualify.
pub type Repeated = [ParameterId];

/// Computes any of `ghost_dot`, `ghost_norm` and `weighted` in one backward pass whose outputs are the samples' losses,
/// all seeded with the same value.
pub struct Ghost<'a> {
    samples: usize,
    direction: GhostDirection<'a>,
    norms: bool,
    weights: Option<Tensor>,
    repeated: &'a Repeated,
    gradients: Gradients,
    found: Vec<Option<SampleProducts>>,
    /// Gradients `[S, N]` of the repeated parameters, so far.
    kept: Vec<(ParameterId, Tensor)>,
}

/// The direction of the products.
enum GhostDirection<'a> {
    None,
    Borrowed(Direction<'a>),
    /// Freed parameter by parameter.
    Owned {
        gradients: Gradients,
        preconditioner: Option<Preconditioner<'a>>,
        share: Option<Tensor>,
    },
}

/// The results of a pass.
#[derive(Clone, Debug)]
pub struct GhostNumbers {
    /// `⟨g_i, V⟩` by parameter, `[P, S]`, if requested: in f64 on the host, in f32 on a device.
    pub products: Option<Tensor>,
    /// `‖g_i‖²` by parameter, `[P, S]`, if requested.
    pub squared_norms: Option<Tensor>,
    /// `Σ_i W_i g_i` added to the previous gradients; unchanged where no weights were given.
    pub gradients: Gradients,
}

impl GhostNumbers {
    /// `⟨g_i, V⟩` over all parameters, `[S]`.
    ///
    /// # Errors
    /// If a device fails.
    pub fn product(&self) -> Result<Option<Tensor>> {
        self.products.as_ref().map(totals).transpose()
    }

    /// `‖g_i‖²` over all parameters, `[S]`.
    ///
    /// # Errors
    /// If a device fails.
    pub fn squared_norm(&self) -> Result<Option<Tensor>> {
        self.squared_norms.as_ref().map(totals).transpose()
    }
}

impl<'a> Ghost<'a> {
    /// Starts a pass over a batch of `samples` samples; nothing is requested yet.
    pub fn new(samples: usize) -> Self {
        Self {
            samples,
            direction: GhostDirection::None,
            norms: false,
            weights: None,
            repeated: &[],
            gradients: Gradients::new(),
            found: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// `ghost_dot`: each sample's inner product with a gradient.
    #[must_use]
    pub fn with_dot(self, direction: Direction<'a>) -> Self {
        Self { direction: GhostDirection::Borrowed(direction), ..self }
    }

    /// As [`with_dot`](Self::with_dot), with a direction that is not needed afterwards: its memory is freed during the
    /// pass. `share` (`[1]`, in f64 on the host, in f32 on a device) times V is added to the sum of gradients.
    #[must_use]
    pub fn with_last_dot(
        self,
        gradients: Gradients,
        preconditioner: Option<Preconditioner<'a>>,
        share: Option<Tensor>,
    ) -> Self {
        Self { direction: GhostDirection::Owned { gradients, preconditioner, share }, ..self }
    }

    /// `ghost_norm`: each sample's squared norm.
    #[must_use]
    pub fn with_norms(self) -> Self {
        Self { norms: true, ..self }
    }

    /// `weighted`: the sum of the samples' gradients, each times its weight (`[S]`, in f64 on the host, in f32 on a
    /// device).
    #[must_use]
    pub fn with_weights(self, weights: Tensor) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// Sets the gradients that the sums are added to.
    #[must_use]
    pub fn onto(self, gradients: Gradients) -> Self {
        Self { gradients, ..self }
    }

    /// Declares the parameters that are read more than once.
    #[must_use]
    pub fn with_repeated(self, repeated: &'a Repeated) -> Self {
        Self { repeated, ..self }
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// If a parameter got no contribution, so that its share is unknown, or a device fails.
    pub fn finish(mut self, parameters: &Parameters) -> Result<GhostNumbers> {
        for (id, gradient) in std::mem::take(&mut self.kept) {
            let contribution = Contribution::PerSample { d_value: &gradient };
            self.take(parameters, id, &contribution)?;
        }
        let (mut products, mut squared_norms) = (Vec::new(), Vec::new());
        let dot = !matches!(self.direction, GhostDirection::None);
        if dot || self.norms {
            for (id, name, _) in parameters.iter() {
                let Some(SampleProducts { products: product, squared_norms: norm }) =
                    self.found.get_mut(id.0).and_then(Option::take)
                else {
                    return Err(Error::invalid(format!(
                        "{name} got no gradient in the backward pass, so its share of the per-sample gradients is unknown"
                    )));
                };
                products.extend(product);
                squared_norms.extend(norm);
            }
        }
        Ok(GhostNumbers {
            products: dot.then(|| stacked(&products)).transpose()?,
            squared_norms: self.norms.then(|| stacked(&squared_norms)).transpose()?,
            gradients: self.gradients,
        })
    }

    /// Computes everything requested from one contribution, the only one of its parameter.
    fn take(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        let value = parameters.value(id);
        self.gradients.resize(parameters.len(), None);
        let sum = &mut self.gradients[id.0];
        let (v, preconditioner) = match &mut self.direction {
            GhostDirection::None => (None, None),
            GhostDirection::Borrowed(Direction { gradients, preconditioner }) => {
                (Some(gradients.get(id.0).cloned().flatten()), *preconditioner)
            }
            GhostDirection::Owned { gradients, preconditioner, share } => {
                let v = gradients.get_mut(id.0).and_then(Option::take);
                if let (Some(v), Some(share)) = (&v, share) {
                    add_to(sum, scale_samples(v, share)?)?;
                }
                (Some(v), *preconditioner)
            }
        };
        let direction = match (v, preconditioner) {
            (None, _) => None,
            (Some(None), _) => Some(value.zeros_like(value.shape())?),
            (Some(Some(v)), None) => Some(v),
            (Some(Some(v)), Some(Preconditioner { second_moments, factors })) => {
                Some(meta_gradient::precondition(&v, &second_moments[id.0], factors)?)
            }
        };
        let asked = GradientRequest {
            direction: direction.as_ref(),
            norms: self.norms,
            weights: self.weights.as_ref(),
        };
        let numbers = meta_gradient(asked, sum, value, contribution, self.samples)?;
        self.found.resize(parameters.len(), None);
        if self.found[id.0].replace(numbers).is_some() {
            return Err(Error::invalid(format!(
                "{} is used more than once, and no formula covers the norm of a sample's gradient of it; name it to \
                 `with_repeated` if it is small",
                parameters.name(id)
            )));
        }
        Ok(())
    }
}

impl GradientVisitor for Ghost<'_> {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        let RowOwner::Samples { rows_per_sample } = owner else {
            return Err(per_sample_refusal(parameters, id));
        };
        let rows = contribution.rows();
        let held = rows.len() / rows.shape().last().copied().unwrap_or(1).max(1);
        let per_sample = match contribution {
            Contribution::PerSample { .. } => 1,
            _ => rows_per_sample,
        };
        if held != per_sample * self.samples {
            return Err(Error::shape(
                "ghost",
                format!("expected {} samples of {per_sample} rows each, got {held} rows", self.samples),
            ));
        }
        if !self.repeated.contains(&id) {
            return self.take(parameters, id, contribution);
        }
        let gradient = meta_gradient::gradients(contribution, self.samples, parameters.value(id).len())?;
        match self.kept.iter_mut().find(|(kept, _)| *kept == id) {
            Some((_, sum)) => add(sum, &gradient),
            None => {
                self.kept.push((id, gradient));
                Ok(())
            }
        }
    }
}

/// Adds to a sum that starts as `None`.
fn add_to(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    match sum {
        Some(sum) => add(sum, &more),
        None => {
            *sum = Some(more);
            Ok(())
        }
    }
}
