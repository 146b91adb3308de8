//! The rules by which the rater learns: what each takes a training sample to be worth to the proxy (method.md, the table of
//! rules).
//!
//! A rule gives one constant a sample, `c_i`: the rater descends `Σ_i c_i W_i(μ)` with the constants held fixed, so a small
//! constant makes a sample's weight grow. Everything else (backward passes, weights, scaling, teaching) is common to all. How to add one:
#![doc = include_str!("../../docs/rules.md")]

use crate::{
    config::RuleName,
    engine::{Tensor, ops::rater_loss::linear_combination},
    error::{Error, Result},
};

/// What a rule wants to be measured of each training sample beside its loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The inner product of its gradient with the validation gradient.
    pub products: bool,
    /// The norm of its gradient.
    pub norms: bool,
    /// Its loss under the reference proxy θ̂, which is then trained beside the proxy.
    pub reference: bool,
}

/// What has been measured of a batch of training samples, `[B]` each: in the float type of the host's networks, in f32 on a
/// device.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// `ℓ_i(θ)`
    pub loss: &'a Tensor,
    /// `ℓ_i(θ̂)`, if the rule needs it.
    pub reference_loss: Option<&'a Tensor>,
    /// `⟨∇ℓ_i(θ), ∇L_val(θ)⟩`, or with AdamW's step in place of the validation gradient, if the rule needs it.
    pub product: Option<&'a Tensor>,
    /// `‖∇ℓ_i(θ)‖²`, if the rule needs it.
    pub squared_norm: Option<&'a Tensor>,
}

/// A way to say what a training sample is worth.
pub trait Rule: Sync {
    /// What must be measured for it.
    fn needs(&self) -> Needs;

    /// The constant of each sample, `[B]`, from what was measured.
    ///
    /// # Errors
    /// If something that it needs was not measured, or a device fails.
    fn constants(&self, seen: &Seen<'_>) -> Result<Tensor>;
}

/// `c_i = ℓ_i(θ)`: eq. 9, which takes `ℓ_i(θ̂)` to be nothing. The one rule of the released code.
struct Loss;

impl Rule for Loss {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn constants(&self, seen: &Seen<'_>) -> Result<Tensor> {
        Ok(seen.loss.clone())
    }
}

/// `c_i = ℓ_i(θ) − ℓ_i(θ̂)`: eq. 6, with the reference proxy θ̂ trained on the weighted training loss alone.
struct Excess;

impl Rule for Excess {
    fn needs(&self) -> Needs {
        Needs { reference: true, ..Needs::default() }
    }

    fn constants(&self, seen: &Seen<'_>) -> Result<Tensor> {
        linear_combination(&[(1.0, seen.loss), (-1.0, measured(seen.reference_loss, "reference loss")?)])
    }
}

/// `c_i = −⟨∇ℓ_i(θ), ∇L_val(θ)⟩`: what the validation loss changes by, at first order, when `W_i` grows and the proxy takes
/// one step.
struct Alignment;

impl Rule for Alignment {
    fn needs(&self) -> Needs {
        Needs { products: true, ..Needs::default() }
    }

    fn constants(&self, seen: &Seen<'_>) -> Result<Tensor> {
        linear_combination(&[(-1.0, measured(seen.product, "inner product")?)])
    }
}

fn measured<'a>(numbers: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    numbers.ok_or_else(|| Error::invalid(format!("the {what} that the rule needs was not measured")))
}

/// The rule of a name.
pub fn rule(name: RuleName) -> &'static dyn Rule {
    match name {
        RuleName::Loss => &Loss,
        RuleName::Excess => &Excess,
        RuleName::Alignment => &Alignment,
    }
}
