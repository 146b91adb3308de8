//! The rules by which the rater learns: what one is, what each declares, and their table.
//!
//! A rule says here, once, what must be measured for it, what its keys default to, and which raters `compare` makes by it. The
//! checks of a configuration, a training step, `compare`, the help of the command line and `docs/config.md` ask its entry, and
//! none of them asks for its name. The table is part of the configuration because the keys of a rule are checked by it, and
//! `config` imports nothing that trains; of the rest of the engine a rule needs tensors alone. Who writes a rule finds all of this
//! in [`rater::rules`](crate::rater::rules), with a walk through an example.

mod names;
mod table;

use std::{fmt, str::FromStr};

pub use names::{Geometry, RaterObjective, Scaling};
pub use table::{ALIGNMENT, EXCESS, LOSS, NAMES, RULES};

use crate::{
    engine::Tensor,
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

impl Needs {
    /// Whether each sample's own gradient is looked at.
    pub fn own_gradients(self) -> bool {
        self.products || self.norms
    }
}

/// What has been measured of a batch of training samples, `[B]` each: in the float type of the host's networks, in f32 on a
/// device.
#[derive(Clone, Copy, Debug)]
pub struct Measurements<'a> {
    /// `ℓ_i(θ)`
    pub loss: &'a Tensor,
    /// `ℓ_i(θ̂)`, if the rule needs it.
    pub reference_loss: Option<&'a Tensor>,
    /// `⟨∇ℓ_i(θ), ∇L_val(θ)⟩`, or with AdamW's step in place of the validation gradient, if the rule needs it.
    pub product: Option<&'a Tensor>,
    /// `‖∇ℓ_i(θ)‖²`, if the rule needs it.
    pub squared_norm: Option<&'a Tensor>,
}

impl<'a> Measurements<'a> {
    /// `ℓ_i(θ̂)`.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not say that it needs it.
    pub fn reference_loss(&self) -> Result<&'a Tensor> {
        measured(self.reference_loss, "reference loss")
    }

    /// `⟨∇ℓ_i(θ), ∇L_val(θ)⟩`, in the geometry of the run.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not say that it needs it.
    pub fn product(&self) -> Result<&'a Tensor> {
        measured(self.product, "inner product")
    }

    /// `‖∇ℓ_i(θ)‖²`.
    ///
    /// # Errors
    /// If it was not measured, because the rule does not say that it needs it.
    pub fn squared_norm(&self) -> Result<&'a Tensor> {
        measured(self.squared_norm, "squared norm")
    }
}

fn measured<'a>(numbers: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    numbers.ok_or_else(|| Error::invalid(format!("the {what} that the rule needs was not measured")))
}

/// A way to say what a training sample is worth.
pub trait Rule: Sync {
    /// What must be measured for it.
    fn needs(&self) -> Needs;

    /// The constant of each sample, `[B]`, from what was measured.
    ///
    /// # Errors
    /// If something that it needs was not measured, or a device fails.
    fn constants(&self, seen: &Measurements<'_>) -> Result<Tensor>;
}

/// All that a rule declares. Two are the same if their names are.
pub struct RuleEntry {
    /// What the key `rule` calls it.
    pub name: &'static str,
    /// What it is, in a few words, for the documentation.
    pub meaning: &'static str,
    /// What it measures, and the constants that it makes of that.
    pub formula: &'static dyn Rule,
    /// What `rule_geometry` is where the key is not given.
    pub geometry: Geometry,
    /// What `rater_objective` is where the key is not given.
    pub objective: RaterObjective,
    /// The raters that `compare` makes by it, in the order of its tables.
    pub variants: &'static [Variant],
}

/// A rater of `compare`: a rule, used in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What the command line, the tables and the files of a comparison call it.
    pub name: &'static str,
    /// What gradients are multiplied with.
    pub geometry: Geometry,
    /// How the rater learns.
    pub objective: RaterObjective,
}

impl RuleEntry {
    /// What must be measured for it.
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
            Error::argument(format!("must be {}, but is \"{name}\"", names.join(" or ")))
        })
    }
}

/// A rule and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSettings {
    /// Which.
    pub rule: &'static RuleEntry,
    /// What gradients are multiplied with.
    pub geometry: Geometry,
    /// What is done to a batch's constants.
    pub scaling: Scaling,
    /// How the rater learns from them.
    pub objective: RaterObjective,
}

impl RuleSettings {
    /// A rule as it is used where no other key is given. It need not be in the table.
    pub fn of(rule: &'static RuleEntry) -> Self {
        Self { rule, geometry: rule.geometry, scaling: Scaling::None, objective: rule.objective }
    }

    /// Whether the rule has the geometry.
    ///
    /// # Errors
    /// If the geometry is not that of plain SGD and the rule forms no inner products.
    pub fn check_geometry(&self) -> Result<()> {
        let Self { rule, geometry, .. } = self;
        if *geometry == Geometry::Sgd || rule.needs().products {
            return Ok(());
        }
        Err(Error::argument(format!("is {geometry}, but the rule `{rule}` forms no inner products")))
    }
}

/// The rule of the loss, as released.
impl Default for RuleSettings {
    fn default() -> Self {
        Self::of(&LOSS)
    }
}

/// A key's meaning with the rules of the table in place of `{rules}`, and of those that a key's default depends on.
pub(in crate::config) fn described(meaning: &str) -> String {
    type Belongs = fn(&RuleEntry) -> bool;
    let lists: [(&str, Belongs); 5] = [
        ("{rules with products}", |rule| rule.needs().products),
        ("{rules in adamw}", |rule| rule.geometry == Geometry::AdamW),
        ("{rules with a reference}", |rule| rule.needs().reference),
        ("{rules by weights}", |rule| rule.objective == RaterObjective::Reweight),
        ("{rules of the loss alone}", |rule| rule.needs() == Needs::default()),
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
    fn every_entry_is_sound() {
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
    fn names_are_listed_as_in_a_sentence() {
        let listed = |names: &[&str]| either(names.iter().map(|&name| name.to_owned()));
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b"]), "a or b");
        assert_eq!(listed(&["a", "b", "c"]), "a, b or c");
        assert!(
            !RULES.iter().fold(described("{rules}"), |text, rule| text.replace(rule.name, "")).contains('{')
        );
    }
}
