//! The built-in rules and their table. A new rule is a type, its entry, and a line in [`RULES`].

use super::{Geometry, Measurements, Needs, RaterObjective, Rule, RuleEntry, Variant};
use crate::{
    engine::{Tensor, ops::rater_loss::linear_combination},
    error::Result,
};

/// Every rule, in the order of the documentation and of `compare`'s tables.
pub static RULES: &[&RuleEntry] = &[&LOSS, &EXCESS, &ALIGNMENT, &GAIN, &NORM_GAIN];

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
    by_rater: None,
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

/// The loss in excess of the reference proxy's.
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
    by_rater: None,
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
    by_rater: None,
};

/// `c_i` is minus the mean caption gain: how much better a proxy that was not trained on the sample predicts the image
/// with its own caption than with other captions and with none.
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
    by_rater: Some("gain-rater"),
};

/// `c_i` is minus the lower of two percentiles: that of a low gradient norm and that of a high caption gain. Flaws of
/// the image show in the norm, flaws of the caption in the gain.
struct NormGain;

impl Rule for NormGain {
    fn needs(&self) -> Needs {
        Needs { caption_gain: true, norms: true, ..Needs::default() }
    }

    fn constants(&self, measured: &Measurements<'_>) -> Result<Tensor> {
        let (norms, gains) = (measured.squared_norm()?.to_f64_vec()?, measured.caption_gain()?.to_f64_vec()?);
        let constants: Vec<f64> = norms.iter().zip(&gains).map(|(norm, gain)| norm.max(1.0 - gain)).collect();
        Tensor::new(&[constants.len()], constants)
    }
}

/// The gradient norm and the gain of the caption, under a proxy that was not trained on the sample: the default rule.
pub static NORM_GAIN: RuleEntry = RuleEntry {
    name: "norm-gain",
    meaning: "the cross-fitted gradient norm, and the cross-fitted gain of the caption",
    formula: &NormGain,
    geometry: Geometry::Sgd,
    objective: RaterObjective::Regression,
    variants: &[Variant {
        name: "norm-gain",
        geometry: Geometry::Sgd,
        objective: RaterObjective::Regression,
    }],
    by_rater: Some("norm-gain-rater"),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_percentile_decides() {
        let of = |values: Vec<f64>| Tensor::new(&[3], values).unwrap();
        let measured = Measurements {
            loss: &of(vec![0.5; 3]),
            reference_loss: None,
            product: None,
            squared_norm: Some(&of(vec![0.1, 0.1, 0.9])),
            caption_gain: Some(&of(vec![0.8, 0.2, 0.8])),
        };
        // Minus the percentiles 0.8 (of the gain), 0.2 (of the gain) and 0.1 (of a low norm), plus one.
        let found = NormGain.constants(&measured).unwrap().to_f64_vec().unwrap();
        for (found, expected) in found.into_iter().zip([0.2, 0.8, 0.9]) {
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
    }
}
