//! Tensors, the tape, random numbers and the operations: everything numerical, and nothing that knows of models.

pub mod parameters;
pub mod random;
pub mod tensor;

pub use parameters::{ParameterId, Parameters};
pub use random::{Purpose, Random};
pub use tensor::{DType, Element, Storage, Tensor};
