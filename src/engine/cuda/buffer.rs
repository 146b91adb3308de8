//! Typed buffers in a device's memory.

use std::{marker::PhantomData, ops::Range};

use super::{
    device::{Device, Factor},
    driver::{Argument, DeviceNumber, SampleMap, SampleRows},
};
use crate::error::{Error, Result};

/// A typed buffer in a device's memory, freed when dropped.
#[derive(Debug)]
pub struct Buffer<T: DeviceNumber> {
    device: Device,
    address: u64,
    len: usize,
    number: PhantomData<T>,
}

impl Device {
    /// Allocates `len` elements, all zero.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeros<T: DeviceNumber>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.uninitialized(len)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// Allocates `len` elements that a kernel will write; the contents are undefined until then.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn uninitialized<T: DeviceNumber>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(self, len)
    }

    /// Copies `values` to the device. Blocks until the copy is done, which follows all work queued earlier;
    /// [`upload_ahead`](Self::upload_ahead) does not block.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails; in [`capture`](Self::capture).
    pub fn upload<T: DeviceNumber>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.uninitialized(values.len())?;
        buffer.write_from(values)?;
        Ok(buffer)
    }

    /// The tensor map with which a kernel copies boxes of a buffer `[S, T, C]` by TMA: `sizes` are `S`, `T` and `C`,
    /// `box_sizes` the rows and columns of a box. `None` on devices without TMA.
    ///
    /// # Errors
    /// If the sizes do not match or the device fails.
    pub(crate) fn sample_map<T: Factor>(
        &self,
        buffer: &Buffer<T>,
        sizes: [usize; 3],
        box_sizes: [u32; 2],
    ) -> Result<Option<SampleMap>> {
        buffer.expect_len("sample_map", "the buffer", sizes.iter().product())?;
        let rows = SampleRows { number: T::NUMBER, address: buffer.address(), sizes, box_sizes };
        self.driver().sample_map(&rows)
    }
}

impl<T: DeviceNumber> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::shape("allocate", format!("{len} elements of {} exceed the address space", T::SUFFIX))
        })?;
        let address = if bytes == 0 { 0 } else { device.take(bytes)? };
        Ok(Self { device: device.clone(), address, len, number: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Device address, a multiple of 256; 0 if empty.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// As a kernel argument that is read.
    pub fn read(&self) -> Argument {
        Argument::Read { address: self.address, letter: T::LETTER }
    }

    /// As a kernel argument that is written.
    pub fn write(&mut self) -> Argument {
        Argument::Write { address: self.address, letter: T::LETTER }
    }

    /// Sets all elements to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&mut self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer is allocated with exactly this many bytes.
        unsafe { self.device.driver().clear(self.address, self.bytes()) }
    }

    /// Overwrites all elements with those of another buffer of the same device and length.
    ///
    /// # Errors
    /// If it is of another device or length, or the device fails.
    pub fn copy_from(&mut self, from: &Self) -> Result<()> {
        self.expect_len("copy", "the buffer", from.len())?;
        if !self.device.is(&from.device) {
            return Err(Error::shape("copy", "the buffers are on different devices"));
        }
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: both are allocated with exactly this many bytes; this one is borrowed mutably, so it is not the
        // other.
        unsafe { self.device.driver().copy(self.address, from.address, self.bytes()) }
    }

    /// Overwrites elements from `at` on with a range of another buffer of the same device.
    ///
    /// # Errors
    /// If a range is out of bounds, or the device fails.
    pub(crate) fn copy_range(&mut self, at: usize, from: &Self, range: Range<usize>) -> Result<()> {
        let fits = range.start <= range.end && range.end <= from.len && at + range.len() <= self.len;
        if !fits || !self.device.is(&from.device) {
            return Err(Error::shape(
                "copy",
                format!(
                    "elements {range:?} of {} do not fit at {at} of {} on the same device",
                    from.len, self.len
                ),
            ));
        }
        if range.is_empty() {
            return Ok(());
        }
        let offset = |address: u64, at: usize| address + (at * size_of::<T>()) as u64;
        let (to, start) = (offset(self.address, at), offset(from.address, range.start));
        // SAFETY: both ranges are within buffers of this device; the buffers differ, since this one is borrowed
        // mutably.
        unsafe { self.device.driver().copy(to, start, range.len() * size_of::<T>()) }
    }

    /// Copies the buffer.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn try_clone(&self) -> Result<Self> {
        let mut copy = Self::new(&self.device, self.len)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Overwrites all elements from the host, after all work queued earlier.
    ///
    /// # Errors
    /// If the lengths differ, or the device fails; in [`Device::capture`].
    pub fn write_from(&mut self, values: &[T]) -> Result<()> {
        self.expect_len("upload", "the buffer", values.len())?;
        self.device.refuse_in_capture("an upload")?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer is allocated with exactly this many bytes.
        unsafe { self.device.driver().upload(self.address, bytemuck::cast_slice(values)) }
    }

    /// Copies the elements to the host, after all work queued earlier.
    ///
    /// # Errors
    /// If the device fails, now or in that work; in [`Device::capture`].
    pub fn to_host(&self) -> Result<Vec<T>> {
        self.device.refuse_in_capture("a download")?;
        let mut values = vec![T::default(); self.len];
        if self.len > 0 {
            // SAFETY: the buffer is allocated with exactly this many bytes.
            unsafe { self.device.driver().download(self.address, bytemuck::cast_slice_mut(&mut values)) }?;
        }
        Ok(values)
    }

    /// Returns an error unless the buffer has `len` elements.
    pub(crate) fn expect_len(&self, op: &'static str, what: &str, len: usize) -> Result<()> {
        if self.len == len {
            return Ok(());
        }
        Err(Error::shape(op, format!("{what} has {} elements, expected {len}", self.len)))
    }
}

impl<T: DeviceNumber> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.device.give_back(self.address);
        }
    }
}
