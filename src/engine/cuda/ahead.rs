//! Uploads that overlap with the work of a device.

use std::{marker::PhantomData, sync::PoisonError};

use super::{buffer::Buffer, device::Device, driver::DeviceNumber, stagings::Slot};
use crate::error::Result;

/// Values being copied to a device; see [`Device::upload_ahead`].
#[derive(Debug)]
pub struct Ahead<T: DeviceNumber> {
    device: Device,
    slot: Option<Slot>,
    len: usize,
    number: PhantomData<T>,
}

impl Device {
    /// Starts copying `values` to the device, overlapping with the work queued there. [`Ahead::arrive`] and
    /// [`Ahead::copy_to`] make them available to work queued afterwards.
    ///
    /// Call it with the next step's inputs before or while the device runs this step. Its memory is taken from the
    /// arena once and reused in turn.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails; in [`capture`](Self::capture).
    pub fn upload_ahead<T: DeviceNumber>(&self, values: &[T]) -> Result<Ahead<T>> {
        self.refuse_in_capture("an upload")?;
        let mut ahead = Ahead { device: self.clone(), slot: None, len: values.len(), number: PhantomData };
        if values.is_empty() {
            return Ok(ahead);
        }
        let slot = ahead.slot.insert(self.slot(size_of_val(values))?);
        // SAFETY: the slot is at least this large and exclusively ours; the work that used its memory was queued before
        // `put_back` called `leave`.
        unsafe { self.driver().upload_ahead(&slot.staging, slot.address, bytemuck::cast_slice(values)) }?;
        Ok(ahead)
    }

    fn slot(&self, bytes: usize) -> Result<Slot> {
        let mut slots = self.inner().stagings.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = slots.0.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes);
        // Skip slots that are far too large: they serve other uploads.
        let best = fitting.min_by_key(|(_, slot)| slot.bytes).filter(|(_, slot)| slot.bytes <= 4 * bytes);
        if let Some((at, _)) = best {
            return Ok(slots.0.remove(at));
        }
        drop(slots);
        let address = self.take(bytes)?;
        let staging = self.driver().staging(bytes).inspect_err(|_| self.give_back(address))?;
        Ok(Slot { staging, address, bytes })
    }
}

impl<T: DeviceNumber> Ahead<T> {
    /// The values in a new buffer, for work queued from now on.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails; in [`Device::capture`].
    pub fn arrive(self) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(&self.device, self.len)?;
        self.copy_to(&mut buffer)?;
        Ok(buffer)
    }

    /// Overwrites a buffer with the values, for work queued from now on, such as a [`Graph`](super::Graph) that
    /// reads it.
    ///
    /// # Errors
    /// If the buffer is of another device or length, or the device fails; in [`Device::capture`].
    pub fn copy_to(mut self, buffer: &mut Buffer<T>) -> Result<()> {
        buffer.expect_len("upload", "the buffer", self.len)?;
        self.device.refuse_in_capture("an upload")?;
        if !self.device.is(buffer.device()) {
            return Err(crate::error::Error::shape("upload", "the buffer is on another device"));
        }
        let Some(slot) = self.slot.take() else { return Ok(()) };
        let driver = self.device.driver();
        let done = driver.arrive(&slot.staging).and_then(|()| {
            // SAFETY: both are allocated with at least this size, and are different blocks.
            unsafe { driver.copy(buffer.address(), slot.address, buffer.bytes()) }
        });
        self.device.put_back(slot);
        done
    }
}

impl Device {
    /// Makes a slot available again; work queued so far may still use it.
    fn put_back(&self, slot: Slot) {
        // A device that fails here fails again at its next use; the slot is then useless.
        if self.driver().leave(&slot.staging).is_ok() {
            self.inner().stagings.lock().unwrap_or_else(PoisonError::into_inner).0.push(slot);
        }
    }
}

impl<T: DeviceNumber> Drop for Ahead<T> {
    fn drop(&mut self) {
        // Never used: the stream still waits for the copy, so that the slot's next copy comes after it. (The stream
        // cannot wait during capture; then the slot is lost.)
        if let Some(slot) = self.slot.take()
            && self.device.refuse_in_capture("an upload").is_ok()
            && self.device.driver().arrive(&slot.staging).is_ok()
        {
            self.device.put_back(slot);
        }
    }
}
