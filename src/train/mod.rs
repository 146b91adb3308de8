//! Training as such: the data as batches, optimiser, schedule, checkpoints and run directories; and training a text-to-image
//! model on a data set or a part of it.

pub mod batch;
pub mod cache;
pub mod checkpoint;
pub mod corpus;
pub mod fit;
pub(crate) mod identity;
pub(crate) mod inputs;
pub mod loss_scale;
pub mod optimizer;
pub(crate) mod order;
pub mod parameter_groups;
pub mod prepared;
pub mod released;
pub mod run_directory;
pub mod sample;
pub mod schedule;
pub mod tokenise;
pub(crate) mod trained;
