//! Tensors, the tape, random numbers and the operations: everything numerical, and nothing that knows of models.

pub mod constant;
pub mod cuda;
pub mod float;
pub mod matmul;
pub mod ops;
pub mod parameters;
pub mod random;
mod recycled;
pub mod storage;
pub mod tape;
pub mod tensor;
pub mod visitors;

pub use constant::Constant;
pub use float::Float;
pub use ops::accumulate::Contribution;
pub use parameters::{ParameterId, Parameters};
pub use random::{Purpose, Random};
pub use storage::{DType, Element, Storage};
pub use tape::{Tape, Var};
pub use tensor::Tensor;
pub use visitors::{
    Accumulate, Direction, Ghost, GhostNumbers, GradientVisitor, Gradients, Ignore, Preconditioner, RowOwner,
};
