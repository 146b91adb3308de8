//! Optimiser, schedule, checkpoints and run directories.

pub mod optimizer;
pub mod parameter_groups;
