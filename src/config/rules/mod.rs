//! The rules that train the rater: the trait, the declaration of each rule, and the table of rules.
//!
//! A rule declares once what it needs measured, the defaults of its keys, and which raters `compare` trains with it.
//! The configuration checks, the training step, `compare`, the command-line help and `docs/config.md` read this entry
//! and never match on a rule's name. The table lives in `config` because the keys are checked against it; `config`
//! depends on tensors, but on nothing that trains. [`rater::rules`](crate::rater::rules) explains how to write a
//! rule, with an example.

mod names;
mod table;

use std::{fmt, str::FromStr};

pub use names::{Geometry, RaterObjective, Scaling};
pub use table::{ALIGNMENT, EXCESS, GAIN, LOSS, NAMES, NORM_GAIN, RULES};

use crate::{
    engine::Tensor,
    error::{Error, Result},
};

/// The measurements that a rule needs for each training sample, in addition to its loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The inner product of the sample's gradient with the validation gradient.
    pub products: bool,
    /// The norm of the sample's gradient.
    pub norms: bool,
    /// The sample's loss under the reference proxy θ̂, which is then trained alongside the proxy.
    pub reference: bool,
    /// The gain of the sample's caption, under a proxy that was not trained on the sample. The proxies are
    /// cross-fitted, the loss and the norm are those of the same proxy, and the rater is trained afterwards.
    pub caption_gain: bool,
}

impl Needs {
    /// Whether the rule needs per-sample gradients.
    pub fn own_gradients(self) -> bool {
        self.products || self.norms
    }

    /// Whether gradient norms are recorded by default: where each step measures more than the loss.
    pub(in crate::config) fn norms_by_default(self) -> bool {
        self != Self::default() && !self.caption_gain
    }
}

/// Measurements of a batch of training samples, `[B]` each: in the networks' float type on the CPU, in f32 on a
/// device. Under a rule that needs the caption gain, the batch is a fold, and all measurements are in f64 on the host,
/// as mid-rank percentiles from 0 to 1, because the measurements of two proxies have different scales.
#[derive(Clone, Copy, Debug)]
pub struct Measurements<'a> {
    /// `ℓ_i(θ)`
    pub loss: &'a Tensor,
    /// `ℓ_i(θ̂)`, if the rule needs it.
    pub reference_loss: Option<&'a Tensor>,
    /// `⟨∇ℓ_i(θ), ∇L_val(θ)⟩`, in the geometry of the run, if the rule needs it.
    pub product: Option<&'a Tensor>,
    /// `‖∇ℓ_i(θ)‖²`, if the rule needs it.
    pub squared_norm: Option<&'a Tensor>,
    /// The loss with other captions and with the empty one minus the loss with the sample's own, if the rule needs it;
    /// `loss` is then that of the same cross-fitted proxy, averaged over the scales.
    pub caption_gain: Option<&'a Tensor>,
}

impl<'a> Measurements<'a> {
    /// `ℓ_i(θ̂)`.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not declare that it needs it.
    pub fn reference_loss(&self) -> Result<&'a Tensor> {
        measured(self.reference_loss, "reference loss")
    }

    /// `⟨∇ℓ_i(θ), ∇L_val(θ)⟩`, in the geometry of the run.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not declare that it needs it.
    pub fn product(&self) -> Result<&'a Tensor> {
        measured(self.product, "inner product")
    }

    /// `‖∇ℓ_i(θ)‖²`.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not declare that it needs it.
    pub fn squared_norm(&self) -> Result<&'a Tensor> {
        measured(self.squared_norm, "squared norm")
    }

    /// The gain of the sample's caption.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not declare that it needs it.
    pub fn caption_gain(&self) -> Result<&'a Tensor> {
        measured(self.caption_gain, "caption gain")
    }
}

fn measured<'a>(numbers: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    numbers.ok_or_else(|| Error::invalid(format!("the {what} that the rule needs was not measured")))
}

/// A formula for the signal `c_i` of a training sample.
pub trait Rule: Sync {
    /// The measurements that the rule needs.
    fn needs(&self) -> Needs;

    /// The constant `c_i` of each sample, `[B]`.
    ///
    /// # Errors
    /// If a measurement that it needs is missing, or a device fails.
    fn constants(&self, measurements: &Measurements<'_>) -> Result<Tensor>;
}

/// The declaration of a rule. Entries compare equal if their names are equal.
pub struct RuleEntry {
    /// The value of the key `rule`.
    pub name: &'static str,
    /// A short description for the documentation.
    pub meaning: &'static str,
    /// The formula and what it needs.
    pub formula: &'static dyn Rule,
    /// The default of `rule_geometry`.
    pub geometry: Geometry,
    /// The default of `rater_objective`.
    pub objective: RaterObjective,
    /// The raters that `compare` trains with this rule, in the order of its tables.
    pub variants: &'static [Variant],
    /// The name in `compare` of the rater's own ratings, if the rule's ratings are measured by cross-fitting.
    pub by_rater: Option<&'static str>,
}

/// A rater of `compare`: a rule with a geometry and an objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name on the command line and in the tables and files of a comparison.
    pub name: &'static str,
    /// The geometry of inner products.
    pub geometry: Geometry,
    /// The objective of the rater.
    pub objective: RaterObjective,
}

impl RuleEntry {
    /// The measurements that the rule needs.
    pub fn needs(&self) -> Needs {
        self.formula.needs()
    }
}

impl fmt::Display for RuleEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl fmt::Debug for RuleEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl PartialEq for RuleEntry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for RuleEntry {}

impl FromStr for &'static RuleEntry {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        RULES.iter().find(|rule| rule.name == name).copied().ok_or_else(|| {
            let names: Vec<String> = RULES.iter().map(|rule| format!("\"{rule}\"")).collect();
            Error::argument(format!("must be {}, but is \"{name}\"", either(names.into_iter())))
        })
    }
}

/// A rule and its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSettings {
    /// The rule.
    pub rule: &'static RuleEntry,
    /// The geometry of inner products.
    pub geometry: Geometry,
    /// The scaling of a batch's constants.
    pub scaling: Scaling,
    /// The objective of the rater.
    pub objective: RaterObjective,
}

impl RuleSettings {
    /// A rule with its default settings. It need not be in the table.
    pub fn of(rule: &'static RuleEntry) -> Self {
        Self { rule, geometry: rule.geometry, scaling: Scaling::None, objective: rule.objective }
    }

    /// Checks that the rule supports the geometry.
    ///
    /// # Errors
    /// If the geometry is not `sgd` and the rule uses no inner products.
    pub fn check_geometry(&self) -> Result<()> {
        let Self { rule, geometry, .. } = self;
        if *geometry == Geometry::Sgd || rule.needs().products {
            return Ok(());
        }
        Err(Error::argument(format!("is {geometry}, but the rule `{rule}` uses no inner products")))
    }
}

/// The `loss` rule, as in the released code.
impl Default for RuleSettings {
    fn default() -> Self {
        Self::of(&LOSS)
    }
}

/// Replaces `{rules}` in a key's description with the table of rules, and the other placeholders with the rules that
/// a default depends on.
pub(in crate::config) fn described(meaning: &str) -> String {
    type Belongs = fn(&RuleEntry) -> bool;
    let lists: [(&str, Belongs); 6] = [
        ("{rules with products}", |rule| rule.needs().products),
        ("{rules in adamw}", |rule| rule.geometry == Geometry::AdamW),
        ("{rules with a reference}", |rule| rule.needs().reference),
        ("{rules with a caption gain}", |rule| rule.needs().caption_gain),
        ("{rules by weights}", |rule| rule.objective == RaterObjective::Reweight),
        ("{rules without norms}", |rule| !rule.needs().norms_by_default()),
    ];
    let all = RULES.iter().map(|rule| format!("`{rule}` ({})", rule.meaning));
    lists.iter().fold(meaning.replace("{rules}", &either(all)), |text, (name, belongs)| {
        let those = RULES.iter().filter(|rule| belongs(rule)).map(|rule| format!("`{rule}`"));
        text.replace(name, &either(those))
    })
}

/// `a`, `a or b`, `a, b or c`.
fn either(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    match &names[..] {
        [first @ .., before, last] => {
            let first: String = first.iter().map(|name| format!("{name}, ")).collect();
            format!("{first}{before} or {last}")
        }
        names => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_valid() {
        let mut names = Vec::new();
        for rule in RULES {
            assert_eq!(rule.name.parse::<&RuleEntry>().unwrap(), *rule);
            RuleSettings::of(rule).check_geometry().unwrap();
            let default = Variant { name: rule.name, geometry: rule.geometry, objective: rule.objective };
            assert!(
                rule.variants.contains(&default),
                "compare has no rater of the name and the defaults of {rule}"
            );
            for Variant { name, geometry, objective } in rule.variants {
                let used =
                    RuleSettings { geometry: *geometry, objective: *objective, ..RuleSettings::of(rule) };
                used.check_geometry().unwrap_or_else(|error| panic!("{name} {error}"));
                assert!(!names.contains(name), "two raters are called {name}");
                names.push(name);
            }
        }
    }

    #[test]
    fn names_are_joined_with_commas_and_or() {
        let listed = |names: &[&str]| either(names.iter().map(|&name| name.to_owned()));
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b"]), "a or b");
        assert_eq!(listed(&["a", "b", "c"]), "a, b or c");
        assert!(
            !RULES.iter().fold(described("{rules}"), |text, rule| text.replace(rule.name, "")).contains('{')
        );
    }
}
