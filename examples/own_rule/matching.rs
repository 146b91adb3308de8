//! The example of docs/rules.md, copied unchanged.

use alchemist_engine::{
    Result,
    engine::{Tensor, ops::rater_loss::linear_combination},
    rater::rules::{Geometry, Measurements, Needs, RaterObjective, Rule, RuleEntry, Variant},
};

/// `c_i = ½‖∇ℓ_i(θ)‖² − ⟨∇ℓ_i(θ), V⟩`: half the squared distance of a sample's gradient to the validation gradient.
struct Matching;

impl Rule for Matching {
    fn needs(&self) -> Needs {
        Needs { products: true, norms: true, ..Needs::default() }
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        linear_combination(&[(0.5, measured.squared_norm()?), (-1.0, measured.product()?)])
    }
}

/// The distance to the validation gradient.
pub(crate) static MATCHING: RuleEntry = RuleEntry {
    name: "matching",
    meaning: "the distance of a sample's gradient to the validation gradient",
    formula: &Matching,
    geometry: Geometry::Sgd,
    objective: RaterObjective::Regression,
    variants: &[
        Variant { name: "matching", geometry: Geometry::Sgd, objective: RaterObjective::Regression },
        Variant { name: "matching-adamw", geometry: Geometry::AdamW, objective: RaterObjective::Regression },
    ],
    by_rater: None,
};
