//! Rating: one bilevel step, the training loop and the scorer.

pub mod bilevel;
pub mod corpus;
pub mod pictures;
pub mod scorer;
pub mod trainer;
