//! Constant values of a network: levels, positions, masks.

use std::sync::OnceLock;

use crate::{
    engine::{
        cuda::{Buffer, Device, DeviceElement},
        tensor::Tensor,
    },
    error::{Error, Result},
};

/// Values on the host, uploaded to a device on first use.
#[derive(Debug)]
pub struct Constant<T: DeviceElement> {
    host: Vec<T>,
    device: OnceLock<Tensor>,
}

impl<T: DeviceElement> Constant<T> {
    /// Keeps `values`.
    pub(crate) fn new(values: Vec<T>) -> Self {
        Self { host: values, device: OnceLock::new() }
    }

    /// The values on a device.
    ///
    /// # Errors
    /// If they are already on another device, there is not enough memory, or the device fails.
    pub(crate) fn on(&self, device: &Device) -> Result<&Buffer<T>> {
        let held = match self.device.get() {
            Some(held) => held,
            None => {
                let made = Tensor::new(&[self.host.len()], self.host.clone())?.to_device(device)?;
                self.device.get_or_init(|| made)
            }
        };
        if !held.device().is_some_and(|held| held.is(device)) {
            return Err(Error::invalid("a network cannot be used on several devices; build one for each"));
        }
        held.buffer::<T>()
    }
}

impl<T: DeviceElement> From<Vec<T>> for Constant<T> {
    fn from(values: Vec<T>) -> Self {
        Self::new(values)
    }
}
