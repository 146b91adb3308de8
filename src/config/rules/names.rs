//! The enums of a rule's settings and their names in a configuration.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Declares an enum with the names that a configuration uses.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All values, in order.
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
                        super::either([$(concat!("\"", $text, "\"").to_owned()),*].into_iter())
                    ))),
                }
            }
        }
    };
}

named! {
    /// The geometry of the inner products, for rules that need them.
    Geometry {
        /// The validation gradient V, as a step of SGD would follow it.
        #[default]
        Sgd = "sgd",
        /// `V / (√v̂ + ε)` with AdamW's second moment: the direction in which the proxy's optimizer moves.
        AdamW = "adamw",
    }
}

named! {
    /// How the constants of a batch are scaled before the rater's update.
    Scaling {
        /// No scaling.
        #[default]
        None = "none",
        /// Subtract the mean.
        Center = "center",
        /// Subtract the mean and divide by the standard deviation.
        Standardize = "standardize",
    }
}

named! {
    /// The objective of the rater.
    RaterObjective {
        /// The rater descends `Σ_i c_i W_i`, where `W` is a softmax over the batch; the proxy is trained with these
        /// weights.
        #[default]
        Reweight = "reweight",
        /// The rater's logit is fitted by least squares to the running average of `−c_i`, standardized over the
        /// corpus; the proxy is trained with equal weights.
        Regression = "regression",
    }
}
