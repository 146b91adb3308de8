//! How a rule is used: the names that a configuration gives.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Names with their meanings, as a configuration writes it.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Their names, in the same order.
            pub const NAMES: &[&'static str] = &[$($text),*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(match self { $(Self::$variant => $text),* })
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(Error::argument(format!(
                        "must be {}, but is \"{text}\"",
                        [$(concat!("\"", $text, "\"")),*].join(" or ")
                    ))),
                }
            }
        }
    };
}

named! {
    /// What the samples' gradients are multiplied with, where a rule needs products.
    Geometry {
        /// The validation gradient V: what a step of SGD would change.
        #[default]
        Sgd = "sgd",
        /// `V / (√v̂ + ε)` with AdamW's second moment: the geometry in which the proxy moves.
        AdamW = "adamw",
    }
}

named! {
    /// What is done to the constants of a batch before the rater sees them.
    Scaling {
        /// Nothing.
        #[default]
        None = "none",
        /// Their mean is taken off.
        Center = "center",
        /// Their mean is taken off, and they are divided by their standard deviation.
        Standardize = "standardize",
    }
}

named! {
    /// What the rater minimizes.
    RaterObjective {
        /// The rater descends `Σ_i c_i W_i`, `W` being a softmax over the batch; the proxy is trained with these weights.
        #[default]
        Reweight = "reweight",
        /// The rater's logit of a sample descends its squared distance to the sample's running average of `−c_i`, standardized
        /// over the corpus; the proxy is trained with equal weights.
        Regression = "regression",
    }
}
