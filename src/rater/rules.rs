//! The rules by which the rater learns: what each takes a training sample to be worth to the proxy (method.md, the table of
//! rules).
//!
//! A rule gives one constant a sample, `c_i`: the rater descends `Σ_i c_i W_i(μ)` with the constants held fixed, so a small
//! constant makes a sample's weight grow. Everything else (backward passes, weights, scaling, objective) is common to all. Rules and
//! their table are those of [`config::rules`](crate::config::rules). How to add one:
#![doc = include_str!("../../docs/rules.md")]

pub use crate::config::rules::{
    ALIGNMENT, EXCESS, Geometry, LOSS, Measurements, Needs, RULES, RaterObjective, Rule, RuleEntry,
    RuleSettings, Scaling, Variant,
};
