//! A contiguous, typed, row-major array with a shape. No strides, no broadcasting: an op takes what it is given.

use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// The kinds of numbers a tensor can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float: weights, activations and optimiser state on the CPU.
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

/// The numbers of a tensor, one variant per [`DType`].
#[derive(Clone, Debug, PartialEq)]
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

/// A Rust type that a tensor can hold.
pub trait Element: Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The matching [`DType`].
    const DTYPE: DType;
    /// Wraps a vector.
    fn wrap(values: Vec<Self>) -> Storage;
    /// The numbers, if the storage holds this type.
    fn slice(storage: &Storage) -> Option<&[Self]>;
    /// The numbers, mutably, if the storage holds this type.
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

/// A contiguous row-major array. Cloning is cheap: the numbers are shared until one owner writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Arc<Storage>,
}

impl Tensor {
    /// A tensor of `shape` over `values`.
    ///
    /// # Errors
    /// If the number of values is not the product of the shape.
    pub fn new<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        let expected: usize = shape.iter().product();
        if values.len() != expected {
            return Err(Error::shape(
                "tensor",
                format!("{} values do not fill the shape {shape:?}", values.len()),
            ));
        }
        Ok(Self { shape: shape.to_vec(), storage: Arc::new(T::wrap(values)) })
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize], dtype: DType) -> Self {
        let length = shape.iter().product();
        let storage = match dtype {
            DType::F32 => Storage::F32(vec![0.0; length]),
            DType::F64 => Storage::F64(vec![0.0; length]),
            DType::Bf16 => Storage::Bf16(vec![bf16::ZERO; length]),
            DType::F16 => Storage::F16(vec![f16::ZERO; length]),
            DType::U32 => Storage::U32(vec![0; length]),
        };
        Self { shape: shape.to_vec(), storage: Arc::new(storage) }
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of dimension `index`; 1 past the end would be a mistake and panics like indexing does.
    pub fn dim(&self, index: usize) -> usize {
        self.shape[index]
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kind of numbers held.
    pub fn dtype(&self) -> DType {
        match *self.storage {
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
            Storage::Bf16(_) => DType::Bf16,
            Storage::F16(_) => DType::F16,
            Storage::U32(_) => DType::U32,
        }
    }

    /// The storage itself.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The numbers as a slice of `T`.
    ///
    /// # Errors
    /// If the tensor holds another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        T::slice(&self.storage).ok_or_else(|| {
            Error::shape(
                "tensor",
                format!("asked for {:?}, but the tensor holds {:?}", T::DTYPE, self.dtype()),
            )
        })
    }

    /// The numbers as a mutable slice of `T`; copies first if they are shared.
    ///
    /// # Errors
    /// If the tensor holds another type.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let held = self.dtype();
        T::slice_mut(Arc::make_mut(&mut self.storage)).ok_or_else(|| {
            Error::shape("tensor", format!("asked for {:?}, but the tensor holds {held:?}", T::DTYPE))
        })
    }

    /// The same numbers under another shape.
    ///
    /// # Errors
    /// If the shapes hold different numbers of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("{:?} does not fit into {shape:?}", self.shape)));
        }
        Ok(Self { shape: shape.to_vec(), storage: Arc::clone(&self.storage) })
    }

    /// The numbers as `f64`, whatever the type.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        match &*self.storage {
            Storage::F32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Storage::F64(values) => values.clone(),
            Storage::Bf16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Storage::F16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Storage::U32(values) => values.iter().map(|&value| f64::from(value)).collect(),
        }
    }

    /// The same numbers in another type, rounded to nearest even where it is narrower.
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.dtype() {
            return self.clone();
        }
        let wide = self.to_f64_vec();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast is what was asked for"
        )]
        let storage = match dtype {
            DType::F32 => Storage::F32(wide.into_iter().map(|value| value as f32).collect()),
            DType::F64 => Storage::F64(wide),
            DType::Bf16 => Storage::Bf16(wide.into_iter().map(bf16::from_f64).collect()),
            DType::F16 => Storage::F16(wide.into_iter().map(f16::from_f64).collect()),
            DType::U32 => Storage::U32(wide.into_iter().map(|value| value as u32).collect()),
        };
        Self { shape: self.shape.clone(), storage: Arc::new(storage) }
    }
}
