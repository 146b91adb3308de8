//! Shared parts of training: optimizer, schedule, loss scale, sample order, checkpoints and run directories.

pub mod checkpoint;
pub(crate) mod inputs;
pub mod loss_scale;
pub mod optimizer;
pub(crate) mod order;
pub mod parameter_groups;
pub(crate) mod prepared;
pub mod released;
pub mod run_directory;
pub mod sampler;
pub mod schedule;
pub(crate) mod trained;
