//! Tensors, automatic differentiation, random numbers and operations: all numerics, independent of any model.

pub mod autograd;
pub(crate) mod constant;
pub mod cuda;
pub(crate) mod dispatch;
pub(crate) mod float;
#[doc(hidden)]
pub mod matmul;
pub mod ops;
pub mod random;
mod recycled;
pub(crate) mod storage;
pub(crate) mod tensor;
pub(crate) mod visitors;

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
pub use visitors::{Accumulate, Direction, Ghost, GhostNumbers, Ignore, Preconditioner, Repeated};
