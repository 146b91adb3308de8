//! What is compared: ratings, samplers, and by what a comparison is fair, with the names that the command line and the tables
//! use.

use std::{fmt, str::FromStr};

use crate::{
    config::{Config, Teaching},
    error::{Error, Result},
    select::{Parameter, Strategy},
};

/// By what records are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rating {
    /// A rater taught by a rule.
    Rater(RaterRule),
    /// What was measured in a training run, without a rater.
    Measured(Measured),
    /// A number that needs no network.
    Heuristic(Heuristic),
}

/// How a rater is taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RaterRule {
    /// As released: eq. 9, by weights.
    Loss,
    /// Eq. 6, by weights.
    ExcessWeights,
    /// Eq. 6, by regression on the running average.
    Excess,
    /// The one-step meta-gradient in plain geometry, by weights.
    AlignmentWeights,
    /// The one-step meta-gradient in AdamW's geometry, by regression on the running average.
    Alignment,
    /// The same in plain geometry: from the inner product with the validation gradient itself.
    AlignmentSgd,
}

impl RaterRule {
    /// All of them.
    #[cfg(test)]
    const ALL: [Self; 6] = [
        Self::Loss,
        Self::ExcessWeights,
        Self::Excess,
        Self::AlignmentWeights,
        Self::Alignment,
        Self::AlignmentSgd,
    ];

    /// Every key of a configuration that belongs to a rule, so that it is this one whatever rule the configuration is of. How a
    /// batch's constants are scaled is left as it is.
    pub fn keys(self, base: &Config) -> Vec<String> {
        let [rule, geometry, teaching] = match self {
            Self::Loss => ["rule=loss", "rule_geometry=sgd", "rater_teaching=weights"],
            Self::ExcessWeights => ["rule=excess", "rule_geometry=sgd", "rater_teaching=weights"],
            Self::Excess => ["rule=excess", "rule_geometry=sgd", "rater_teaching=regression"],
            Self::AlignmentWeights => ["rule=alignment", "rule_geometry=sgd", "rater_teaching=weights"],
            Self::Alignment => ["rule=alignment", "rule_geometry=adamw", "rater_teaching=regression"],
            Self::AlignmentSgd => ["rule=alignment", "rule_geometry=sgd", "rater_teaching=regression"],
        };
        // What a rule has a default of its own for.
        let [warmup, from] = ["proxy_warmup_epochs=null", "average_from_epoch=null"];
        // Ratings by the gradient's norm are measured in the run of `alignment`.
        let norms = if self == Self::Alignment { "record_norms=true" } else { "record_norms=false" };
        let mut keys = [rule, geometry, teaching, warmup, from, norms].map(str::to_owned).to_vec();
        // What was set for one rater that learns averages holds for another.
        let (learns, training) = (teaching.ends_with("regression"), &base.training);
        keys.push(match learns && training.rule.teaching == Teaching::Regression {
            true => format!("rater_only_epochs={}", training.rater_only_epochs),
            false => "rater_only_epochs=null".to_owned(),
        });
        keys
    }
}

/// What is averaged over the epochs of a run, for each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measured {
    /// The proxy's loss; a low one is the best rated, as under the released rule.
    PlainLoss,
    /// The norm of the gradient; a low one is the best rated.
    GradientNorm,
    /// The inner product with AdamW's step along the validation gradient; a high one is the best rated.
    InnerProduct,
    /// The inner product with the validation gradient itself; a high one is the best rated.
    InnerProductSgd,
    /// The reference's loss less the proxy's, which learns from the validation set, too; a high one is the best rated.
    ExcessLoss,
}

impl Measured {
    /// The rater's run that it is measured in. But for the excess loss it is that in which the proxy is trained with equal
    /// weights.
    pub fn run(self) -> RaterRule {
        match self {
            Self::ExcessLoss => RaterRule::Excess,
            Self::InnerProductSgd => RaterRule::AlignmentSgd,
            _ => RaterRule::Alignment,
        }
    }

    /// The column of the run's recordings, and whether a high number is a good one.
    pub(super) fn column(self) -> (&'static str, bool) {
        match self {
            Self::PlainLoss => ("loss", false),
            Self::GradientNorm => ("gradient_norm", false),
            Self::InnerProduct | Self::InnerProductSgd | Self::ExcessLoss => ("average", true),
        }
    }
}

/// A number of a picture or caption; a high one is the best rated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heuristic {
    /// Variance of the Laplacian of the brightness.
    Clarity,
    /// Energy in the finest level of the Haar wavelet.
    Frequency,
    /// Share of pixels with a steep gradient (Sobel).
    EdgeDensity,
    /// Pixels of the picture as it is stored.
    Resolution,
    /// Letters of the caption.
    CaptionLength,
}

impl Rating {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 16] = [
        Self::Rater(RaterRule::Loss),
        Self::Rater(RaterRule::ExcessWeights),
        Self::Rater(RaterRule::Excess),
        Self::Rater(RaterRule::AlignmentWeights),
        Self::Rater(RaterRule::Alignment),
        Self::Rater(RaterRule::AlignmentSgd),
        Self::Measured(Measured::PlainLoss),
        Self::Measured(Measured::GradientNorm),
        Self::Measured(Measured::InnerProduct),
        Self::Measured(Measured::InnerProductSgd),
        Self::Measured(Measured::ExcessLoss),
        Self::Heuristic(Heuristic::Clarity),
        Self::Heuristic(Heuristic::Frequency),
        Self::Heuristic(Heuristic::EdgeDensity),
        Self::Heuristic(Heuristic::Resolution),
        Self::Heuristic(Heuristic::CaptionLength),
    ];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rater(RaterRule::Loss) => "loss",
            Self::Rater(RaterRule::ExcessWeights) => "excess-weights",
            Self::Rater(RaterRule::Excess) => "excess",
            Self::Rater(RaterRule::AlignmentWeights) => "alignment-weights",
            Self::Rater(RaterRule::Alignment) => "alignment",
            Self::Rater(RaterRule::AlignmentSgd) => "alignment-sgd",
            Self::Measured(Measured::PlainLoss) => "plain-loss",
            Self::Measured(Measured::GradientNorm) => "gradient-norm",
            Self::Measured(Measured::InnerProduct) => "inner-product",
            Self::Measured(Measured::InnerProductSgd) => "inner-product-sgd",
            Self::Measured(Measured::ExcessLoss) => "excess-loss",
            Self::Heuristic(Heuristic::Clarity) => "clarity",
            Self::Heuristic(Heuristic::Frequency) => "frequency",
            Self::Heuristic(Heuristic::EdgeDensity) => "edge-density",
            Self::Heuristic(Heuristic::Resolution) => "resolution",
            Self::Heuristic(Heuristic::CaptionLength) => "caption-length",
        }
    }

    /// The run that has to be made for it.
    pub fn run(self) -> Option<RaterRule> {
        match self {
            Self::Rater(rule) => Some(rule),
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
        Self::ALL.into_iter().find(|rating| rating.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|rating| rating.name()).collect();
            Error::invalid(format!("`{name}` is not a rating; they are {}", names.join(", ")))
        })
    }
}

/// A way to choose from a ranking, written `top-k`, `block:0.4` (offset), `gsample:0.5/0.2` (mean, sigma) or
/// `shift-gsample:0.05/0.3/0.25` (share dropped from the top, mean, sigma). Without numbers, these are meant; a block needs one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler(pub Strategy);

impl fmt::Display for Sampler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Strategy::Random => formatter.write_str("random"),
            Strategy::TopK => formatter.write_str("top-k"),
            Strategy::Block { offset } => write!(formatter, "block:{offset}"),
            Strategy::Gsample { mean, sigma } => write!(formatter, "gsample:{mean}/{sigma}"),
            Strategy::ShiftGsample { drop_top, mean, sigma } => {
                write!(formatter, "shift-gsample:{drop_top}/{mean}/{sigma}")
            }
        }
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::invalid(format!("the sampler `{text}` {why}")));
        let (name, numbers) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let parameters = match name {
            "block" => &[Parameter::Offset][..],
            "gsample" => &[Parameter::Mean, Parameter::Sigma],
            "shift-gsample" => &[Parameter::DropTop, Parameter::Mean, Parameter::Sigma],
            _ => &[],
        };
        let mut given = Vec::new();
        for (at, number) in numbers.into_iter().flat_map(|numbers| numbers.split('/')).enumerate() {
            match parameters.get(at).map(|parameter| parameter.parse(number)) {
                Some(Ok(number)) => given.push(number),
                Some(Err(error)) => return refuse(&format!("cannot be used: {error}")),
                // That there are too many is said below.
                None => given.push(f64::NAN),
            }
        }
        let strategy = match (name, &given[..]) {
            ("top-k", []) => Strategy::TopK,
            ("block", &[offset]) => Strategy::Block { offset },
            ("block", []) => return refuse("needs the percentile where the block begins, such as block:0.4"),
            ("gsample", []) => Strategy::GSAMPLE,
            ("gsample", &[mean, sigma]) => Strategy::Gsample { mean, sigma },
            ("shift-gsample", []) => Strategy::SHIFT_GSAMPLE,
            ("shift-gsample", &[drop_top, mean, sigma]) => Strategy::ShiftGsample { drop_top, mean, sigma },
            ("top-k" | "gsample" | "shift-gsample", _) => {
                return refuse("has another number of parameters than its kind; see --help");
            }
            _ => {
                return refuse("is none of top-k, block, gsample and shift-gsample (random is always there)");
            }
        };
        strategy.validate()?;
        Ok(Self(strategy))
    }
}

/// By what a subset and the whole are trained alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Convention {
    /// The same number of epochs, as in the paper: a subset takes fewer steps.
    Epochs,
    /// About the same number of steps: a subset is seen more often.
    Steps,
}

impl Convention {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Steps => "steps",
        }
    }

    /// The epochs over a subset that is `share` of the whole, where the whole is trained on for `epochs`.
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
        [Self::Epochs, Self::Steps]
            .into_iter()
            .find(|convention| convention.name() == name)
            .ok_or_else(|| Error::invalid(format!("`{name}` is neither epochs nor steps")))
    }
}

/// One line of the comparison: what a model is trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arm {
    /// All records.
    Everything,
    /// A random part.
    Random,
    /// A random part of the unspoiled records: the ceiling.
    Oracle,
    /// A part chosen by a rating.
    Chosen(Rating, Sampler),
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
        for rating in Rating::ALL {
            assert_eq!(rating.name().parse::<Rating>().unwrap(), rating);
        }
        for text in ["top-k", "block:0.4", "gsample:0.5/0.2", "shift-gsample:0.1/0.45/0.2"] {
            assert_eq!(text.parse::<Sampler>().unwrap().to_string(), text);
        }
        assert_eq!("shift-gsample".parse::<Sampler>().unwrap().to_string(), "shift-gsample:0.05/0.3/0.25");
        for (text, word) in [
            ("block", "begins"),
            ("random", "always there"),
            ("gsample:1", "another number"),
            ("block:x", "`x`"),
            ("block:1.5", "offset is 1.5"),
        ] {
            let message = text.parse::<Sampler>().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!("lost".parse::<Rating>().unwrap_err().to_string().contains("alignment"));
    }

    #[test]
    fn every_rule_can_be_made_of_a_configuration_of_every_other() {
        for before in RaterRule::ALL {
            for after in RaterRule::ALL {
                let plain = Config::parse("plain", "{}", &[]).unwrap();
                let config = Config::parse("before", "{}", &before.keys(&plain)).unwrap();
                let text = config.to_json().to_string();
                let found = Config::parse("after", &text, &after.keys(&config)).unwrap();
                let expected = Config::parse("after", "{}", &after.keys(&plain)).unwrap();
                assert_eq!(found.fingerprint(), expected.fingerprint(), "{after:?} after {before:?}");
            }
        }
    }

    #[test]
    fn a_subset_is_seen_more_often_for_equal_steps() {
        assert_eq!(Convention::Steps.epochs(3, 0.5), 6);
        assert_eq!(Convention::Steps.epochs(3, 0.2), 15);
        assert_eq!(Convention::Epochs.epochs(3, 0.2), 3);
    }
}
