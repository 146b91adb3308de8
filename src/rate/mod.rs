//! Rating: one bilevel step, the rules that say what a sample's weight is worth, the training loop and the scorer.

pub mod bilevel;
