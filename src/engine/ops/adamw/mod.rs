//! AdamW with decoupled weight decay and clipping by the global norm, equivalent to PyTorch (upstream.md, C1
//! to C3).

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

/// The factors of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// `1 / s` where the losses were multiplied by `s`.
    pub inverse_scale: f64,
    /// Maximum global norm; `None` disables clipping.
    pub most: Option<f64>,
    /// `1 − learning rate·decay`: multiplies parameters with weight decay.
    pub keep: f64,
    /// `learning rate / (1 − β₁ᵗ)`.
    pub rate: f64,
    /// `1 − β₁`.
    pub rest1: f64,
    /// `β₂`.
    pub beta2: f64,
    /// `√(1 − β₂ᵗ)`.
    pub root2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Factors {
    /// The factor for gradients whose unscaled global norm is `norm`.
    pub(crate) fn clip(&self, norm: f64) -> f64 {
        let length = norm * self.inverse_scale;
        self.most.map_or(1.0, |most| (most / (length + 1e-6)).min(1.0)) * self.inverse_scale
    }
}
