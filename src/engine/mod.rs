//! Tensors, the tape, random numbers and the operations: everything numerical, and nothing that knows of models.

pub mod autograd;
pub mod constant;
pub mod cuda;
pub mod float;
pub mod matmul;
pub mod ops;
pub mod random;
mod recycled;
pub mod storage;
pub mod tensor;
pub mod visitors;

pub use autograd::{
    contributions::Contribution,
    parameters::{ParameterId, Parameters},
    tape::{Tape, Var},
    visitor::{GradientVisitor, Gradients, RowOwner},
};
pub use constant::Constant;
pub use float::Float;
pub use random::{Purpose, Random};
pub use storage::{DType, Element, Storage};
pub use tensor::Tensor;
pub use visitors::{Accumulate, Direction, Ghost, GhostNumbers, Ignore, Preconditioner};
