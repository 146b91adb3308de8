//! The built-in rules and their table. A new rule is a type, its entry, and a line in [`RULES`].

use super::{Geometry, Measurements, Needs, RaterObjective, Rule, RuleEntry, Variant};
use crate::{
    engine::{Tensor, ops::rater_loss::linear_combination},
    error::Result,
};

/// Every rule, in the order of the documentation and of `compare`'s tables.
pub static RULES: &[&RuleEntry] = &[&LOSS, &EXCESS, &ALIGNMENT, &GAIN];

/// Their names.
pub const NAMES: [&str; RULES.len()] = {
    let mut names = [""; RULES.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = RULES[at].name;
        at += 1;
    }
    names
};

/// `c_i = ℓ_i(θ)`: eq. 9, that is, eq. 6 with `ℓ_i(θ̂)` taken as 0. The only rule in the released code.
struct Loss;

impl Rule for Loss {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        Ok(measured.loss.clone())
    }
}

/// The released rule and objective.
pub static LOSS: RuleEntry = RuleEntry {
    name: "loss",
    meaning: "eq. 9, the released rule",
    formula: &Loss,
    geometry: Geometry::Sgd,
    objective: RaterObjective::Reweight,
    variants: &[Variant { name: "loss", geometry: Geometry::Sgd, objective: RaterObjective::Reweight }],
};

/// `c_i = ℓ_i(θ) − ℓ_i(θ̂)`: eq. 6. The reference proxy θ̂ is trained on the weighted training loss alone.
struct Excess;

impl Rule for Excess {
    fn needs(&self) -> Needs {
        Needs { reference: true, ..Needs::default() }
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        linear_combination(&[(1.0, measured.loss), (-1.0, measured.reference_loss()?)])
    }
}

/// The loss in excess of the reference proxy's: the default rule.
pub static EXCESS: RuleEntry = RuleEntry {
    name: "excess",
    meaning: "eq. 6, relative to a reference proxy",
    formula: &Excess,
    geometry: Geometry::Sgd,
    objective: RaterObjective::Regression,
    variants: &[
        Variant { name: "excess-weights", geometry: Geometry::Sgd, objective: RaterObjective::Reweight },
        Variant { name: "excess", geometry: Geometry::Sgd, objective: RaterObjective::Regression },
    ],
};

/// `c_i = −⟨∇ℓ_i(θ), ∇L_val(θ)⟩`: the first-order change of the validation loss when `W_i` grows and the proxy takes
/// one step.
struct Alignment;

impl Rule for Alignment {
    fn needs(&self) -> Needs {
        Needs { products: true, ..Needs::default() }
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        linear_combination(&[(-1.0, measured.product()?)])
    }
}

/// The inner product with the validation gradient.
pub static ALIGNMENT: RuleEntry = RuleEntry {
    name: "alignment",
    meaning: "the exact one-step meta-gradient",
    formula: &Alignment,
    geometry: Geometry::AdamW,
    objective: RaterObjective::Regression,
    variants: &[
        Variant { name: "alignment-weights", geometry: Geometry::Sgd, objective: RaterObjective::Reweight },
        Variant { name: "alignment", geometry: Geometry::AdamW, objective: RaterObjective::Regression },
        Variant { name: "alignment-sgd", geometry: Geometry::Sgd, objective: RaterObjective::Regression },
    ],
};

/// `c_i` is minus the mean caption gain: how much better a proxy that has not seen the sample predicts the image with
/// its own caption than with other ones and with none.
struct Gain;

impl Rule for Gain {
    fn needs(&self) -> Needs {
        Needs { caption_gain: true, ..Needs::default() }
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        linear_combination(&[(-1.0, measured.caption_gain()?)])
    }
}

/// The gain of the caption, which finds wrong captions.
pub static GAIN: RuleEntry = RuleEntry {
    name: "gain",
    meaning: "the cross-fitted gain of the caption",
    formula: &Gain,
    geometry: Geometry::Sgd,
    objective: RaterObjective::Regression,
    variants: &[Variant { name: "gain", geometry: Geometry::Sgd, objective: RaterObjective::Regression }],
};
