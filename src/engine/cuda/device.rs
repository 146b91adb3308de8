//! Devices and their memory, safe to use.

use std::{marker::PhantomData, sync::Arc};

use half::{bf16, f16};

use super::{
    driver::{Argument, DeviceFacts, DeviceNumber, Driver, Event, Kernel, Launch, Product, ProductNumber},
    gpu::Gpu,
};
use crate::error::{Error, Result};

/// A device that runs kernels. Cloning gives another handle to the same one.
#[derive(Clone, Debug)]
pub struct Device(Arc<dyn Driver>);

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// As the user names it.
    pub name: String,
    /// What it is, or why it cannot be used.
    pub state: Result<String, String>,
}

/// Every device there could be: the processor, the emulator, each GPU, or the reason why there is none.
pub fn devices() -> Vec<Availability> {
    let available = |name: &str, state| Availability { name: name.to_owned(), state };
    let threads = rayon::current_num_threads();
    let mut found = vec![
        available("cpu", Ok(format!("the reference, on {threads} threads"))),
        available(
            "emulated",
            Device::emulated().map(|device| device.facts().model.clone()).map_err(|error| error.to_string()),
        ),
    ];
    match Gpu::count() {
        Err(error) => found.push(available("cuda", Err(error.to_string()))),
        Ok(count) => found.extend((0..count).map(|ordinal| {
            let state = Device::cuda(ordinal).map(|device| device.facts().model.clone());
            available(&format!("cuda:{ordinal}"), state.map_err(|error| error.to_string()))
        })),
    }
    found
}

impl Device {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// If there is no driver or it is too old, no such device, or this program has no kernels for it.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self(Arc::new(Gpu::open(ordinal)?)))
    }

    /// The emulator: the kernels' own sources on the processor, every access to memory checked.
    ///
    /// # Errors
    /// If the program was built without it.
    pub fn emulated() -> Result<Self> {
        #[cfg(emulator)]
        {
            Ok(Self(Arc::new(super::emulator::Emulator::open()?)))
        }
        #[cfg(not(emulator))]
        {
            Err(Error::KernelsNotBuilt {
                device: "emulated",
                reason: "there was no C++ compiler for them when it was built".to_owned(),
            })
        }
    }

    /// What the device is and what it allows.
    pub fn facts(&self) -> &DeviceFacts {
        self.0.facts()
    }

    /// Memory for `len` numbers, all zero.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeros<T: DeviceNumber>(&self, len: usize) -> Result<Buffer<T>> {
        let buffer = self.uninitialised(len)?;
        if len > 0 {
            // SAFETY: the buffer has just been allocated with this size.
            unsafe { self.0.clear(buffer.address, buffer.bytes()) }?;
        }
        Ok(buffer)
    }

    /// Memory for `len` numbers that a kernel is going to write; what it holds until then is undefined.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn uninitialised<T: DeviceNumber>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::shape("allocate", format!("{len} numbers of {} are more than memory can be", T::SUFFIX))
        })?;
        let address = if bytes == 0 { 0 } else { self.0.allocate(bytes)? };
        Ok(Buffer { device: self.clone(), address, len, number: PhantomData })
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn upload<T: DeviceNumber>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.uninitialised(values.len())?;
        buffer.write_from(values)?;
        Ok(buffer)
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// See [`Driver::launch`].
    ///
    /// # Errors
    /// If there is no such kernel, the launch is beyond the device's limits, or the device fails.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        // SAFETY: the caller's obligations are the same.
        unsafe { self.0.launch(kernel, launch, arguments) }
    }

    /// `c[m, n] = alpha · op(a)[m, k] · op(b)[k, n] + beta · c (+ bias[n])`, row-major, summed in f32. A matrix comes
    /// with whether it is stored transposed.
    ///
    /// # Errors
    /// If the sizes do not fit or the device fails.
    #[expect(clippy::too_many_arguments, reason = "a matrix product has these")]
    pub fn product<I: Factor, O: Factor>(
        &self,
        c: &mut Buffer<O>,
        [m, n, k]: [usize; 3],
        (a, a_transposed): (&Buffer<I>, bool),
        (b, b_transposed): (&Buffer<I>, bool),
        bias: Option<&Buffer<O>>,
        alpha: f32,
        beta: f32,
    ) -> Result<()> {
        if O::NUMBER != I::NUMBER && O::NUMBER != ProductNumber::F32 {
            return Err(Error::shape("product", format!("{} from {} is not made", O::SUFFIX, I::SUFFIX)));
        }
        let sizes = [(a.len, m * k), (b.len, k * n), (c.len, m * n), (bias.map_or(n, Buffer::len), n)];
        if sizes.iter().any(|(len, needed)| len != needed) {
            return Err(Error::shape(
                "product",
                format!(
                    "A, B, C and bias hold {:?} numbers for the sizes {:?}",
                    sizes.map(|size| size.0),
                    [m, n, k]
                ),
            ));
        }
        if m == 0 || n == 0 || k == 0 {
            return Err(Error::shape("product", format!("the sizes {:?} hold a zero", [m, n, k])));
        }
        let product = Product {
            inputs: I::NUMBER,
            output: O::NUMBER,
            m,
            n,
            k,
            a: a.address,
            a_transposed,
            b: b.address,
            b_transposed,
            c: c.address,
            alpha,
            beta,
            bias: bias.map(|bias| bias.address),
        };
        // SAFETY: buffers are allocated with their lengths, which fit the sizes; C is borrowed mutably, so it is none of
        // the others.
        unsafe { self.0.product(&product) }
    }

    /// Marks this point in the work.
    ///
    /// # Errors
    /// If the device fails.
    pub fn record(&self) -> Result<Event> {
        self.0.record()
    }

    /// Milliseconds between two points, waiting for the later one.
    ///
    /// # Errors
    /// If the events are another device's or the device fails.
    pub fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32> {
        self.0.elapsed_ms(start, end)
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

/// A number that a matrix product takes.
pub trait Factor: DeviceNumber {
    /// The same, as a value.
    const NUMBER: ProductNumber;
}

impl Factor for f32 {
    const NUMBER: ProductNumber = ProductNumber::F32;
}
impl Factor for bf16 {
    const NUMBER: ProductNumber = ProductNumber::Bf16;
}
impl Factor for f16 {
    const NUMBER: ProductNumber = ProductNumber::F16;
}

/// Numbers in a device's memory, given back when dropped.
#[derive(Debug)]
pub struct Buffer<T: DeviceNumber> {
    device: Device,
    address: u64,
    len: usize,
    number: PhantomData<T>,
}

impl<T: DeviceNumber> Buffer<T> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are; 0 if there is none.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device they are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// As an argument that a kernel reads.
    pub fn read(&self) -> Argument {
        Argument::Read { address: self.address, letter: T::LETTER }
    }

    /// As an argument that a kernel writes.
    pub fn write(&mut self) -> Argument {
        Argument::Write { address: self.address, letter: T::LETTER }
    }

    /// Overwrites all numbers from the host.
    ///
    /// # Errors
    /// If there are not as many values as numbers, or the device fails.
    pub fn write_from(&mut self, values: &[T]) -> Result<()> {
        self.expect_len("upload", "the buffer", values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer is allocated with just this many bytes.
        unsafe { self.device.0.upload(self.address, bytemuck::cast_slice(values)) }
    }

    /// The numbers, after all work asked for before.
    ///
    /// # Errors
    /// If the device fails, now or in that work.
    pub fn to_host(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.len];
        if self.len > 0 {
            // SAFETY: the buffer is allocated with just this many bytes.
            unsafe { self.device.0.download(self.address, bytemuck::cast_slice_mut(&mut values)) }?;
        }
        Ok(values)
    }

    /// Refuses unless there are `len` numbers.
    pub(crate) fn expect_len(&self, op: &'static str, what: &str, len: usize) -> Result<()> {
        if self.len == len {
            return Ok(());
        }
        Err(Error::shape(op, format!("{what} holds {} numbers, expected {len}", self.len)))
    }
}

impl<T: DeviceNumber> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: the address and size are those of the allocation, and the only handle to it is going away.
            unsafe { self.device.0.free(self.address, self.bytes()) };
        }
    }
}
