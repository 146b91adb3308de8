//! Typed storage of a tensor on a device.

use half::{bf16, f16};

use super::{Buffer, Device, DeviceNumber, device::Factor};
use crate::engine::storage::Element;

/// The elements of a tensor on a device, one variant per dtype. Devices have no 64-bit floats.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeviceStorage {
    /// See [`DType::F32`](crate::engine::DType::F32).
    F32(Buffer<f32>),
    /// See [`DType::Bf16`](crate::engine::DType::Bf16).
    Bf16(Buffer<bf16>),
    /// See [`DType::F16`](crate::engine::DType::F16).
    F16(Buffer<f16>),
    /// See [`DType::U32`](crate::engine::DType::U32).
    U32(Buffer<u32>),
}

impl DeviceStorage {
    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        match self {
            Self::F32(buffer) => buffer.device(),
            Self::Bf16(buffer) => buffer.device(),
            Self::F16(buffer) => buffer.device(),
            Self::U32(buffer) => buffer.device(),
        }
    }
}

/// A Rust type that a tensor on a device can hold.
pub trait DeviceElement: Element + DeviceNumber {
    /// Wraps a buffer.
    fn wrap_buffer(buffer: Buffer<Self>) -> DeviceStorage;
    /// The buffer, if the storage has this dtype.
    fn buffer(storage: &DeviceStorage) -> Option<&Buffer<Self>>;
    /// The mutable buffer, if the storage has this dtype.
    fn buffer_mut(storage: &mut DeviceStorage) -> Option<&mut Buffer<Self>>;
}

/// A float type that kernels store: f32, bf16 or f16.
pub trait DeviceFloat: DeviceElement + Factor {}

impl<T: DeviceElement + Factor> DeviceFloat for T {}

macro_rules! device_element {
    ($type:ty, $variant:ident) => {
        impl DeviceElement for $type {
            fn wrap_buffer(buffer: Buffer<Self>) -> DeviceStorage {
                DeviceStorage::$variant(buffer)
            }
            fn buffer(storage: &DeviceStorage) -> Option<&Buffer<Self>> {
                if let DeviceStorage::$variant(buffer) = storage { Some(buffer) } else { None }
            }
            fn buffer_mut(storage: &mut DeviceStorage) -> Option<&mut Buffer<Self>> {
                if let DeviceStorage::$variant(buffer) = storage { Some(buffer) } else { None }
            }
        }
    };
}
device_element!(f32, F32);
device_element!(bf16, Bf16);
device_element!(f16, F16);
device_element!(u32, U32);
