//! Optimiser, schedule, checkpoints and run directories.

pub mod checkpoint;
pub mod files;
pub mod interrupt;
pub mod loss_scale;
pub mod optimizer;
pub mod parameter_groups;
pub mod run_directory;
pub mod schedule;
