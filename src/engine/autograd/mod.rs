//! The tape and what it is made of: parameters, their contributions to a gradient, and the visitor that takes those.

pub mod contributions;
pub mod parameters;
pub mod tape;
pub mod visitor;
