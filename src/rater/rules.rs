//! The rules that train the rater: how each computes the signal of a training sample (method.md, the table of rules).
//!
//! A rule gives one constant per sample, `c_i`. The rater descends `Σ_i c_i W_i(μ)` with the constants held fixed, so
//! a small constant makes a sample's weight grow. Everything else (backward passes, weights, scaling, objective) is
//! common to all rules. The rules and their table are defined in [`config::rules`](crate::config::rules). How to add
//! one:
#![doc = include_str!("../../docs/rules.md")]

pub use crate::config::rules::{
    ALIGNMENT, EXCESS, Geometry, LOSS, Measurements, Needs, RULES, RaterObjective, Rule, RuleEntry,
    RuleSettings, Scaling, Variant,
};
