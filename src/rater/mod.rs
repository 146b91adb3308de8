//! Rating: the rules, the bilevel step, cross-fitting, the training loop, the scorer, and attribution to individual
//! samples.

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
