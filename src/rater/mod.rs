//! Rating: the rules, the bilevel step, the training loop, the scorer, and attribution to single samples.

pub mod attribute;
pub mod bilevel;
pub mod crossfit;
pub mod dynamics;
pub(crate) mod images;
pub(crate) mod page;
mod parts;
pub mod rules;
pub mod samples;
pub mod scorer;
pub mod trainer;
