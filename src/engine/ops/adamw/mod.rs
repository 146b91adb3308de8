//! One update of AdamW with decoupled weight decay, as PyTorch computes it (upstream.md, C1 to C3).

pub mod cpu;
pub mod cuda;

/// The numbers of one tensor's update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Multiplies the gradient, so that its global norm is within bounds.
    pub clip: f64,
    /// `1 − learning rate·decay`: multiplies the value.
    pub keep: f64,
    /// `1 − β₁`.
    pub rest1: f64,
    /// `β₂`.
    pub beta2: f64,
    /// `√(1 − β₂ᵗ)`.
    pub root2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// `learning rate / (1 − β₁ᵗ)`.
    pub rate: f64,
}
