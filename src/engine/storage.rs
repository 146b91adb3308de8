//! Typed storage of a tensor on the host.

use half::{bf16, f16};

use crate::engine::recycled;

/// Element types of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float: weights, activations and optimizer state on the CPU.
    F32,
    /// 64-bit float: the reference that finite differences and parity tests compute in.
    F64,
    /// bfloat16, as storage.
    Bf16,
    /// IEEE half, as storage.
    F16,
    /// Unsigned 32-bit: token codes and indices.
    U32,
}

/// The elements of a tensor on the host, one variant per [`DType`].
#[derive(Debug, PartialEq)]
#[non_exhaustive]
pub enum Storage {
    /// See [`DType::F32`].
    F32(Vec<f32>),
    /// See [`DType::F64`].
    F64(Vec<f64>),
    /// See [`DType::Bf16`].
    Bf16(Vec<bf16>),
    /// See [`DType::F16`].
    F16(Vec<f16>),
    /// See [`DType::U32`].
    U32(Vec<u32>),
}

impl Clone for Storage {
    fn clone(&self) -> Self {
        match self {
            Self::F32(values) => {
                let mut copy = recycled::take(values.len());
                copy.copy_from_slice(values);
                Self::F32(copy)
            }
            Self::F64(values) => Self::F64(values.clone()),
            Self::Bf16(values) => Self::Bf16(values.clone()),
            Self::F16(values) => Self::F16(values.clone()),
            Self::U32(values) => Self::U32(values.clone()),
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Self::F32(values) = self {
            recycled::give_back(std::mem::take(values));
        }
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The matching [`DType`].
    const DTYPE: DType;
    /// Wraps a vector.
    fn wrap(values: Vec<Self>) -> Storage;
    /// The elements, if the storage has this dtype.
    fn slice(storage: &Storage) -> Option<&[Self]>;
    /// The mutable elements, if the storage has this dtype.
    fn slice_mut(storage: &mut Storage) -> Option<&mut [Self]>;
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn wrap(values: Vec<Self>) -> Storage {
                Storage::$variant(values)
            }
            fn slice(storage: &Storage) -> Option<&[Self]> {
                if let Storage::$variant(values) = storage { Some(values) } else { None }
            }
            fn slice_mut(storage: &mut Storage) -> Option<&mut [Self]> {
                if let Storage::$variant(values) = storage { Some(values) } else { None }
            }
        }
    };
}
element!(f32, F32);
element!(f64, F64);
element!(bf16, Bf16);
element!(f16, F16);
element!(u32, U32);
