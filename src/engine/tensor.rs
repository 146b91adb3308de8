//! A contiguous, typed, row-major array with a shape, on the host or on a device. No strides and no broadcasting.

use std::sync::Arc;

use half::{bf16, f16};

use crate::{
    engine::{
        cuda::{Buffer, Device, DeviceElement, DeviceStorage},
        dispatch::with_number,
        storage::{DType, Element, Storage},
    },
    error::{Error, Result},
};

#[derive(Clone, Debug)]
enum Data {
    Host(Arc<Storage>),
    Device(Arc<DeviceStorage>),
}

/// A contiguous row-major array. Cloning is cheap: the elements are shared until one owner writes (copy-on-write).
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Equal shapes and equal elements; on a device, where elements are not compared, only a shared buffer is equal.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape
            && match (&self.data, &other.data) {
                (Data::Host(own), Data::Host(other)) => own == other,
                (Data::Device(own), Data::Device(other)) => Arc::ptr_eq(own, other),
                _ => false,
            }
    }
}

impl Tensor {
    /// A tensor of `shape` over `values`.
    ///
    /// # Errors
    /// If the number of values is not the product of `shape`.
    pub fn new<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        let expected: usize = shape.iter().product();
        if values.len() != expected {
            return Err(Error::shape(
                "tensor",
                format!("{} values do not fill the shape {shape:?}", values.len()),
            ));
        }
        Ok(Self::host(shape, T::wrap(values)))
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
        Self::host(shape, storage)
    }

    pub(in crate::engine) fn host(shape: &[usize], storage: Storage) -> Self {
        Self { shape: shape.to_vec(), data: Data::Host(Arc::new(storage)) }
    }

    /// A tensor of `shape` over a device buffer.
    ///
    /// # Errors
    /// If the length of the buffer is not the product of `shape`.
    pub fn from_buffer<T: DeviceElement>(shape: &[usize], buffer: Buffer<T>) -> Result<Self> {
        buffer.expect_len("tensor", "the buffer", shape.iter().product())?;
        Ok(Self { shape: shape.to_vec(), data: Data::Device(Arc::new(T::wrap_buffer(buffer))) })
    }

    /// A tensor on a device, initialized by `write`, which must write all elements.
    ///
    /// # Errors
    /// If there is not enough memory or `write` fails.
    pub fn written<T: DeviceElement>(
        device: &Device,
        shape: &[usize],
        write: impl FnOnce(&mut Buffer<T>) -> Result<()>,
    ) -> Result<Self> {
        let mut buffer = device.uninitialized(shape.iter().product())?;
        write(&mut buffer)?;
        Self::from_buffer(shape, buffer)
    }

    /// A tensor of zeros on a device.
    ///
    /// # Errors
    /// If there is not enough memory, or devices do not support the dtype.
    pub fn zeros_on(device: &Device, shape: &[usize], dtype: DType) -> Result<Self> {
        let length = shape.iter().product();
        match dtype {
            DType::F32 => Self::from_buffer(shape, device.zeros::<f32>(length)?),
            DType::Bf16 => Self::from_buffer(shape, device.zeros::<bf16>(length)?),
            DType::F16 => Self::from_buffer(shape, device.zeros::<f16>(length)?),
            DType::U32 => Self::from_buffer(shape, device.zeros::<u32>(length)?),
            DType::F64 => Err(no_f64(device)),
        }
    }

    /// A tensor of zeros with the dtype and device of this one.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeros_like(&self, shape: &[usize]) -> Result<Self> {
        match self.device() {
            None => Ok(Self::zeros(shape, self.dtype())),
            Some(device) => Self::zeros_on(device, shape, self.dtype()),
        }
    }

    /// The device of the tensor; `None` on the host.
    pub fn device(&self) -> Option<&Device> {
        match &self.data {
            Data::Host(_) => None,
            Data::Device(storage) => Some(storage.device()),
        }
    }

    /// Copies the tensor to a device, unless it is already there.
    ///
    /// # Errors
    /// If its dtype is f64, there is not enough memory, or the device fails.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let storage = match &self.data {
            Data::Device(storage) if storage.device().is(device) => return Ok(self.clone()),
            Data::Device(_) => return self.to_host()?.to_device(device),
            Data::Host(storage) => storage,
        };
        match &**storage {
            Storage::F32(values) => Self::from_buffer(&self.shape, device.upload(values)?),
            Storage::Bf16(values) => Self::from_buffer(&self.shape, device.upload(values)?),
            Storage::F16(values) => Self::from_buffer(&self.shape, device.upload(values)?),
            Storage::U32(values) => Self::from_buffer(&self.shape, device.upload(values)?),
            Storage::F64(_) => Err(no_f64(device)),
        }
    }

    /// Copies the tensor to a device for work queued from now on, overlapping with the work there.
    /// Copies nothing if it is already there.
    ///
    /// # Errors
    /// As for [`to_device`](Self::to_device).
    pub fn ahead_to(&self, device: &Device) -> Result<Self> {
        let storage = match &self.data {
            Data::Device(_) => return self.to_device(device),
            Data::Host(storage) => storage,
        };
        match &**storage {
            Storage::F32(values) => Self::from_buffer(&self.shape, device.upload_ahead(values)?.arrive()?),
            Storage::Bf16(values) => Self::from_buffer(&self.shape, device.upload_ahead(values)?.arrive()?),
            Storage::F16(values) => Self::from_buffer(&self.shape, device.upload_ahead(values)?.arrive()?),
            Storage::U32(values) => Self::from_buffer(&self.shape, device.upload_ahead(values)?.arrive()?),
            Storage::F64(_) => Err(no_f64(device)),
        }
    }

    /// Copies the tensor to a device, in memory that is not shared.
    ///
    /// # Errors
    /// As for [`to_device`](Self::to_device).
    pub fn copied_to(&self, device: &Device) -> Result<Self> {
        let mut copy = self.to_device(device)?;
        copy.own_address()?;
        Ok(copy)
    }

    /// The device address; the elements are copied first if they are shared, so that they can be changed there.
    ///
    /// # Errors
    /// If the tensor is on the host or the device fails.
    pub fn own_address(&mut self) -> Result<u64> {
        Ok(match self.dtype() {
            DType::U32 => self.buffer_mut::<u32>()?.address(),
            _ => with_number!(self.dtype(), "tensor", T => Ok(self.buffer_mut::<T>()?.address()))?,
        })
    }

    /// Overwrites the elements on a device in place, for work queued from now on, without waiting.
    ///
    /// # Errors
    /// If the tensor is on the host or shared, `from` has another shape or dtype, or the device fails.
    pub fn overwrite(&mut self, from: &Self) -> Result<()> {
        fn run<T: DeviceElement>(held: &mut Tensor, from: &Tensor) -> Result<()> {
            let buffer = held.buffer_mut::<T>()?;
            match &from.data {
                Data::Host(_) => buffer.device().upload_ahead(from.as_slice::<T>()?)?.copy_to(buffer),
                Data::Device(_) => buffer.copy_from(from.buffer::<T>()?),
            }
        }
        if let Data::Device(storage) = &mut self.data
            && Arc::get_mut(storage).is_none()
        {
            return Err(Error::shape("overwrite", "the tensor is shared"));
        }
        if self.shape != from.shape {
            return Err(Error::shape(
                "overwrite",
                format!("{:?} does not hold {:?}", self.shape, from.shape),
            ));
        }
        match self.dtype() {
            DType::U32 => run::<u32>(self, from),
            dtype => with_number!(dtype, "overwrite", T => run::<T>(self, from)),
        }
    }

    /// Copies the tensor to the host, after all work queued earlier, unless it is already there.
    ///
    /// # Errors
    /// If the device fails, now or in that work.
    pub fn to_host(&self) -> Result<Self> {
        let storage = match &self.data {
            Data::Host(_) => return Ok(self.clone()),
            Data::Device(storage) => storage,
        };
        Ok(Self::host(
            &self.shape,
            match &**storage {
                DeviceStorage::F32(buffer) => Storage::F32(buffer.to_host()?),
                DeviceStorage::Bf16(buffer) => Storage::Bf16(buffer.to_host()?),
                DeviceStorage::F16(buffer) => Storage::F16(buffer.to_host()?),
                DeviceStorage::U32(buffer) => Storage::U32(buffer.to_host()?),
            },
        ))
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of dimension `index`; panics if out of bounds, like indexing.
    pub fn dim(&self, index: usize) -> usize {
        self.shape[index]
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.data {
            Data::Host(storage) => match **storage {
                Storage::F32(_) => DType::F32,
                Storage::F64(_) => DType::F64,
                Storage::Bf16(_) => DType::Bf16,
                Storage::F16(_) => DType::F16,
                Storage::U32(_) => DType::U32,
            },
            Data::Device(storage) => match **storage {
                DeviceStorage::F32(_) => DType::F32,
                DeviceStorage::Bf16(_) => DType::Bf16,
                DeviceStorage::F16(_) => DType::F16,
                DeviceStorage::U32(_) => DType::U32,
            },
        }
    }

    /// The storage itself.
    ///
    /// # Errors
    /// If it is on a device.
    pub fn storage(&self) -> Result<&Storage> {
        match &self.data {
            Data::Host(storage) => Ok(storage),
            Data::Device(storage) => Err(elsewhere(storage.device())),
        }
    }

    fn other_type(&self, asked: DType) -> Error {
        Error::shape("tensor", format!("expected dtype {asked:?}, got {:?}", self.dtype()))
    }

    /// The elements as a slice of `T`.
    ///
    /// # Errors
    /// If the tensor has another dtype or is on a device.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        T::slice(self.storage()?).ok_or_else(|| self.other_type(T::DTYPE))
    }

    /// The device buffer, of type `T`.
    ///
    /// # Errors
    /// If the tensor has another dtype or is on the host.
    pub fn buffer<T: DeviceElement>(&self) -> Result<&Buffer<T>> {
        match &self.data {
            Data::Host(_) => Err(on_host()),
            Data::Device(storage) => T::buffer(storage).ok_or_else(|| self.other_type(T::DTYPE)),
        }
    }

    /// The mutable device buffer, of type `T`; copied first if it is shared.
    ///
    /// # Errors
    /// If the tensor has another dtype or is on the host, or the device fails.
    pub fn buffer_mut<T: DeviceElement>(&mut self) -> Result<&mut Buffer<T>> {
        let other = self.other_type(T::DTYPE);
        let Data::Device(storage) = &mut self.data else { return Err(on_host()) };
        if Arc::get_mut(storage).is_none() {
            let Some(shared) = T::buffer(storage) else { return Err(other) };
            *storage = Arc::new(T::wrap_buffer(shared.try_clone()?));
        }
        Arc::get_mut(storage).and_then(T::buffer_mut).ok_or(other)
    }

    /// The elements as a mutable slice of `T`; copied first if they are shared.
    ///
    /// # Errors
    /// If the tensor has another dtype or is on a device.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let other = self.other_type(T::DTYPE);
        match &mut self.data {
            Data::Host(storage) => T::slice_mut(Arc::make_mut(storage)).ok_or(other),
            Data::Device(storage) => Err(elsewhere(storage.device())),
        }
    }

    /// The same elements with another shape.
    ///
    /// # Errors
    /// If the numbers of elements differ.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("cannot reshape {:?} to {shape:?}", self.shape)));
        }
        Ok(Self { shape: shape.to_vec(), data: self.data.clone() })
    }

    /// The elements as `f64`, for any dtype and device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        Ok(match self.to_host()?.storage()? {
            Storage::F32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Storage::F64(values) => values.clone(),
            Storage::Bf16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Storage::F16(values) => values.iter().map(|value| value.to_f64()).collect(),
            Storage::U32(values) => values.iter().map(|&value| f64::from(value)).collect(),
        })
    }
}

fn elsewhere(device: &Device) -> Error {
    Error::shape("tensor", format!("the tensor is on {}, expected it on the host", device.facts().name))
}

fn on_host() -> Error {
    Error::shape("tensor", "the tensor is on the host, expected it on the device")
}

fn no_f64(device: &Device) -> Error {
    Error::shape("tensor", format!("64-bit floats stay on the host; {} has none", device.facts().name))
}
