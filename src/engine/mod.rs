//! Tensors, the tape, random numbers and the operations: everything numerical, and nothing that knows of models.

pub mod constant;
pub mod cuda;
pub mod float;
pub mod ops;
pub mod parameters;
pub mod random;
mod recycled;
pub mod tape;
pub mod tensor;
pub mod visitors;

pub use constant::Constant;
pub use float::Float;
pub use parameters::{ParameterId, Parameters};
pub use random::{Purpose, Random};
pub use tape::{RowOwner, Tape, Var};
pub use tensor::{DType, Element, Storage, Tensor};
pub use visitors::{Accumulate, Contribution, GradientVisitor, Gradients, Ignore, Weighted};
