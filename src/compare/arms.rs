//! The arms of a comparison (ratings, samplers) and its conventions, under the names that the command line and the
//! tables use.

use std::{fmt, str::FromStr};

use crate::{
    config::{
        Config, RaterObjective, RuleEntry,
        rules::{RULES, Variant},
    },
    error::{Error, Result},
    select::{Parameter, Strategy},
};

/// What records are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rating {
    /// The ratings of a run under a rule: its rater's, or the ones that it measured by cross-fitting.
    Rater(RaterRule),
    /// The rater's ratings, even of records that the run measured by cross-fitting.
    RaterAlone(RaterRule),
    /// A quantity recorded during a training run; no rater needed.
    Measured(Measured),
    /// A heuristic that needs no network.
    Heuristic(Heuristic),
}

/// A variant of a rater rule, by its indices in the [table of rules](RULES).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaterRule {
    rule: usize,
    variant: usize,
}

impl RaterRule {
    /// All rules, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let variants = |(rule, entry): (usize, &&RuleEntry)| {
            (0..entry.variants.len()).map(move |variant| Self { rule, variant })
        };
        RULES.iter().enumerate().flat_map(variants)
    }

    /// The rule named `name`. For constants: an unknown name is then a compile-time error. Case is ignored, because
    /// `==` is not `const`.
    const fn named(name: &str) -> Self {
        let mut rule = 0;
        while rule < RULES.len() {
            let mut variant = 0;
            while variant < RULES[rule].variants.len() {
                if RULES[rule].variants[variant].name.eq_ignore_ascii_case(name) {
                    return Self { rule, variant };
                }
                variant += 1;
            }
            rule += 1;
        }
        panic!("the table of rules has no rater of this name")
    }

    /// Whether the run is cross-fitted, so that it has no validation set.
    pub(crate) fn is_cross_fitted(self) -> bool {
        RULES[self.rule].needs().caption_gain
    }

    /// The name of the rater's own ratings, if the run also measures ratings by cross-fitting.
    fn by_rater(self) -> Option<&'static str> {
        RULES[self.rule].by_rater
    }

    fn variant(self) -> &'static Variant {
        &RULES[self.rule].variants[self.variant]
    }

    /// The rule's name.
    pub(crate) fn name(self) -> &'static str {
        self.variant().name
    }

    /// Every configuration key that a rule sets, so that the result does not depend on the rule of `base`. The
    /// normalization of a batch's signals is left as configured.
    pub(crate) fn keys(self, base: &Config) -> Vec<String> {
        let (rule, Variant { geometry, objective, .. }) = (RULES[self.rule], self.variant());
        let mut keys = vec![
            format!("rule={rule}"),
            format!("rule_geometry={geometry}"),
            format!("rater_objective={objective}"),
            // Keys whose default depends on the rule.
            "proxy_warmup_epochs=null".to_owned(),
            "average_from_epoch=null".to_owned(),
            // Norms are recorded only in the run that the rating `gradient-norm` is read from.
            format!("record_norms={}", Measured::GradientNorm.run() == self),
        ];
        // The configured length applies only to raters with the objective `regression`.
        let learns = |objective: RaterObjective| objective == RaterObjective::Regression;
        let training = &base.training;
        let needs_epochs = rule.needs().caption_gain && training.rater_only_epochs == 0;
        if rule.needs().caption_gain {
            // Such a rule has no batch of constants to scale.
            keys.push("rule_scaling=none".to_owned());
        }
        keys.push(match learns(*objective) && learns(training.rule.objective) && !needs_epochs {
            true => format!("rater_only_epochs={}", training.rater_only_epochs),
            false => "rater_only_epochs=null".to_owned(),
        });
        keys
    }
}

/// A quantity averaged over the epochs of a run, per record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measured {
    /// The proxy's loss; low is good, as under the paper's rule.
    PlainLoss,
    /// The norm of the gradient; low is good.
    GradientNorm,
    /// The inner product with AdamW's step along the validation gradient; high is good.
    InnerProduct,
    /// The inner product with the validation gradient; high is good.
    InnerProductSgd,
    /// The reference's loss minus the proxy's, where the reference also learns from the validation set; high is good.
    ExcessLoss,
}

impl Measured {
    /// All quantities.
    const ALL: [Self; 5] =
        [Self::PlainLoss, Self::GradientNorm, Self::InnerProduct, Self::InnerProductSgd, Self::ExcessLoss];

    fn name(self) -> &'static str {
        match self {
            Self::PlainLoss => "plain-loss",
            Self::GradientNorm => "gradient-norm",
            Self::InnerProduct => "inner-product",
            Self::InnerProductSgd => "inner-product-sgd",
            Self::ExcessLoss => "excess-loss",
        }
    }

    /// The rater run that records it: the one that trains the proxy with equal weights, except for the excess loss.
    pub(crate) fn run(self) -> RaterRule {
        const EXCESS: RaterRule = RaterRule::named("excess");
        const ALIGNMENT: RaterRule = RaterRule::named("alignment");
        const ALIGNMENT_SGD: RaterRule = RaterRule::named("alignment-sgd");
        match self {
            Self::ExcessLoss => EXCESS,
            Self::InnerProductSgd => ALIGNMENT_SGD,
            Self::PlainLoss | Self::GradientNorm | Self::InnerProduct => ALIGNMENT,
        }
    }

    /// The column of the run's recordings, and whether high values are good.
    pub(super) fn column(self) -> (&'static str, bool) {
        match self {
            Self::PlainLoss => ("loss", false),
            Self::GradientNorm => ("gradient_norm", false),
            Self::InnerProduct | Self::InnerProductSgd | Self::ExcessLoss => ("average", true),
        }
    }
}

/// A heuristic value of an image or caption; high is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heuristic {
    /// Variance of the Laplacian of the brightness.
    Clarity,
    /// Energy in the finest level of the Haar wavelet.
    Frequency,
    /// Fraction of pixels with a steep gradient (Sobel).
    EdgeDensity,
    /// Pixels of the stored image.
    Resolution,
    /// Characters of the caption.
    CaptionLength,
}

impl Heuristic {
    /// All heuristics.
    const ALL: [Self; 5] =
        [Self::Clarity, Self::Frequency, Self::EdgeDensity, Self::Resolution, Self::CaptionLength];

    fn name(self) -> &'static str {
        match self {
            Self::Clarity => "clarity",
            Self::Frequency => "frequency",
            Self::EdgeDensity => "edge-density",
            Self::Resolution => "resolution",
            Self::CaptionLength => "caption-length",
        }
    }
}

impl Rating {
    /// All ratings, in the order of the tables.
    pub(crate) fn all() -> Vec<Self> {
        let raters = RaterRule::all().flat_map(|rule| {
            [Self::Rater(rule)].into_iter().chain(rule.by_rater().map(|_| Self::RaterAlone(rule)))
        });
        let measured = Measured::ALL.map(Self::Measured);
        raters.chain(measured).chain(Heuristic::ALL.map(Self::Heuristic)).collect()
    }

    /// The names by kind, for the help text.
    pub(crate) fn listed() -> String {
        let all = Self::all();
        let raters: Vec<&str> =
            all.iter().filter(|rating| rating.is_of_rule()).map(|rating| rating.name()).collect();
        format!(
            "of runs by rule ({}), recorded in their runs ({}), without a network ({})",
            raters.join(", "),
            Measured::ALL.map(Measured::name).join(", "),
            Heuristic::ALL.map(Heuristic::name).join(", ")
        )
    }

    /// The name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rater(rule) => rule.name(),
            Self::RaterAlone(rule) => rule.by_rater().unwrap_or_else(|| rule.name()),
            Self::Measured(measured) => measured.name(),
            Self::Heuristic(heuristic) => heuristic.name(),
        }
    }

    fn is_of_rule(self) -> bool {
        matches!(self, Self::Rater(_) | Self::RaterAlone(_))
    }

    /// The training run it requires.
    pub(crate) fn run(self) -> Option<RaterRule> {
        match self {
            Self::Rater(rule) | Self::RaterAlone(rule) => Some(rule),
            Self::Measured(measured) => Some(measured.run()),
            Self::Heuristic(_) => None,
        }
    }
}

impl fmt::Display for Rating {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Rating {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = Self::all();
        all.iter().find(|rating| rating.name() == name).copied().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|rating| rating.name()).collect();
            Error::argument(format!("unknown rating `{name}`; expected one of {}", names.join(", ")))
        })
    }
}

/// A selection strategy, written `top-k`, `block:0.4` (offset), `filter:0.6` (share sampled from), `gsample:0.5/0.2`
/// (mean, sigma) or `shift-gsample:0.05/0.3/0.25` (fraction dropped from the top, mean, sigma). Without parameters: these
/// defaults; `block` requires one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingArm(pub Strategy);

impl fmt::Display for SamplingArm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Strategy::Random => formatter.write_str("random"),
            Strategy::TopK => formatter.write_str("top-k"),
            Strategy::Block { offset } => write!(formatter, "block:{offset}"),
            Strategy::Filter { within } => write!(formatter, "filter:{within}"),
            Strategy::Gsample { mean, sigma } => write!(formatter, "gsample:{mean}/{sigma}"),
            Strategy::ShiftGsample { drop_top, mean, sigma } => {
                write!(formatter, "shift-gsample:{drop_top}/{mean}/{sigma}")
            }
        }
    }
}

impl FromStr for SamplingArm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::argument(format!("the sampler `{text}` {why}")));
        let (name, numbers) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let parameters = match name {
            "block" => &[Parameter::Offset][..],
            "filter" => &[Parameter::Within],
            "gsample" => &[Parameter::Mean, Parameter::Sigma],
            "shift-gsample" => &[Parameter::DropTop, Parameter::Mean, Parameter::Sigma],
            _ => &[],
        };
        let mut given = Vec::new();
        for (at, number) in numbers.into_iter().flat_map(|numbers| numbers.split('/')).enumerate() {
            match parameters.get(at).map(|parameter| parameter.parse(number)) {
                Some(Ok(number)) => given.push(number),
                Some(Err(error)) => return refuse(&format!("cannot be used: {error}")),
                // A wrong number of parameters is reported below.
                None => given.push(f64::NAN),
            }
        }
        let strategy = match (name, &given[..]) {
            ("top-k", []) => Strategy::TopK,
            ("block", &[offset]) => Strategy::Block { offset },
            ("block", []) => {
                return refuse("needs the percentile at which the block starts, such as block:0.4");
            }
            ("filter", []) => Strategy::FILTER,
            ("filter", &[within]) => Strategy::Filter { within },
            ("gsample", []) => Strategy::GSAMPLE,
            ("gsample", &[mean, sigma]) => Strategy::Gsample { mean, sigma },
            ("shift-gsample", []) => Strategy::SHIFT_GSAMPLE,
            ("shift-gsample", &[drop_top, mean, sigma]) => Strategy::ShiftGsample { drop_top, mean, sigma },
            ("top-k" | "block" | "filter" | "gsample" | "shift-gsample", _) => {
                return refuse("has the wrong number of parameters; see --help");
            }
            _ => {
                return Err(Error::argument(format!(
                    "unknown sampler `{name}`; expected one of top-k, block, filter, gsample, shift-gsample (random is always \
                     included)"
                )));
            }
        };
        strategy.validate()?;
        Ok(Self(strategy))
    }
}

/// The training budget that is equal for subset and full-data models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Convention {
    /// The same number of epochs, as in the paper: a subset takes fewer steps.
    Epochs,
    /// About the same number of steps: a subset is repeated more often.
    Steps,
}

impl Convention {
    /// The name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Steps => "steps",
        }
    }

    /// Epochs over a subset of `share` of the full set, which is trained on for `epochs`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "epochs are few"
    )]
    pub(super) fn epochs(self, epochs: u64, share: f64) -> u64 {
        match self {
            Self::Epochs => epochs,
            Self::Steps => (epochs as f64 / share).round().max(1.0) as u64,
        }
    }
}

impl FromStr for Convention {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Epochs, Self::Steps].into_iter().find(|convention| convention.name() == name).ok_or_else(
            || Error::argument(format!("unknown training budget `{name}`; expected one of epochs, steps")),
        )
    }
}

/// The training set of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arm {
    /// All records.
    Everything,
    /// A random subset.
    Random,
    /// A random subset of the clean records: the ceiling.
    Oracle,
    /// A subset chosen by a rating.
    Chosen(Rating, SamplingArm),
}

impl Arm {
    /// Names of the rating and of the sampler.
    pub fn names(&self) -> (String, String) {
        match self {
            Self::Everything => ("everything".to_owned(), String::new()),
            Self::Random => ("random".to_owned(), String::new()),
            Self::Oracle => ("oracle".to_owned(), "random".to_owned()),
            Self::Chosen(rating, sampler) => (rating.to_string(), sampler.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for rating in Rating::all() {
            assert_eq!(rating.name().parse::<Rating>().unwrap(), rating);
        }
        for text in ["top-k", "block:0.4", "filter:0.7", "gsample:0.5/0.2", "shift-gsample:0.1/0.45/0.2"] {
            assert_eq!(text.parse::<SamplingArm>().unwrap().to_string(), text);
        }
        assert_eq!(
            "shift-gsample".parse::<SamplingArm>().unwrap().to_string(),
            "shift-gsample:0.05/0.3/0.25"
        );
        for (text, word) in [
            ("block", "starts"),
            ("random", "always included"),
            ("gsample:1", "wrong number"),
            ("block:x", "`x`"),
            ("block:1.5", "offset is 1.5"),
        ] {
            let message = text.parse::<SamplingArm>().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!("lost".parse::<Rating>().unwrap_err().to_string().contains("alignment"));
    }

    /// Names appear in the files of comparisons; the order is that of the tables.
    #[test]
    fn the_raters_of_the_table_are_these() {
        let keys = |rater: RaterRule| rater.keys(&Config::parse("plain", "{}", &[]).unwrap()).join(" ");
        for (name, rule, geometry, objective, norms) in [
            ("loss", "loss", "sgd", "reweight", false),
            ("excess-weights", "excess", "sgd", "reweight", false),
            ("excess", "excess", "sgd", "regression", false),
            ("alignment-weights", "alignment", "sgd", "reweight", false),
            ("alignment", "alignment", "adamw", "regression", true),
            ("alignment-sgd", "alignment", "sgd", "regression", false),
            ("gain", "gain", "sgd", "regression", false),
            ("norm-gain", "norm-gain", "sgd", "regression", false),
        ] {
            let expected = format!("rule={rule} rule_geometry={geometry} rater_objective={objective} ");
            let found = keys(RaterRule::named(name));
            assert!(found.starts_with(&expected), "{name}: {found}");
            assert!(found.contains(&format!(" record_norms={norms} ")), "{name}: {found}");
        }
        let names: Vec<&str> = Rating::all().iter().map(|rating| rating.name()).collect();
        assert!(
            names
                .join(" ")
                .starts_with("loss excess-weights excess alignment-weights alignment alignment-sgd gain gain-rater norm-gain norm-gain-rater")
        );
        assert!(names.join(" ").ends_with(
            "plain-loss gradient-norm inner-product inner-product-sgd excess-loss clarity frequency \
             edge-density resolution caption-length"
        ));
    }

    #[test]
    fn every_rule_can_be_made_of_a_configuration_of_every_other() {
        let unlike = r#"{"rule": "excess", "rule_scaling": "center", "rater_only_epochs": 0}"#;
        for rater in RaterRule::all() {
            let base = Config::parse("unlike", unlike, &[]).unwrap();
            let text = base.to_json().to_string();
            Config::parse("rater", &text, &rater.keys(&base)).unwrap_or_else(|error| panic!("{error}"));
        }
        for before in RaterRule::all() {
            for after in RaterRule::all() {
                let plain = Config::parse("plain", "{}", &[]).unwrap();
                let config = Config::parse("before", "{}", &before.keys(&plain)).unwrap();
                let text = config.to_json().to_string();
                let found = Config::parse("after", &text, &after.keys(&config)).unwrap();
                let expected = Config::parse("after", "{}", &after.keys(&plain)).unwrap();
                assert_eq!(
                    found.fingerprint(),
                    expected.fingerprint(),
                    "{} after {}",
                    after.name(),
                    before.name()
                );
            }
        }
    }

    #[test]
    fn a_subset_is_repeated_more_often_for_equal_steps() {
        assert_eq!(Convention::Steps.epochs(3, 0.5), 6);
        assert_eq!(Convention::Steps.epochs(3, 0.2), 15);
        assert_eq!(Convention::Epochs.epochs(3, 0.2), 3);
    }
}
