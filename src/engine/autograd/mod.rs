//! Automatic differentiation: the tape, parameters, their contributions to a gradient, and gradient visitors.

pub mod contributions;
pub mod parameters;
pub mod tape;
pub mod visitor;
