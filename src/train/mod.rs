//! Optimiser, schedule, checkpoints and run directories.

pub mod optimizer;
