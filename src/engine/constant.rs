//! Numbers that never change once a network is built: levels, positions, masks.

use std::sync::OnceLock;

use crate::{
    engine::{
        cuda::{Buffer, Device, DeviceElement},
        tensor::Tensor,
    },
    error::{Error, Result},
};

/// Numbers on the host, and on a device from the first time that one asks for them.
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

    /// The numbers on a device.
    ///
    /// # Errors
    /// If another device has asked for them before, there is not enough memory, or the device fails.
    pub(crate) fn on(&self, device: &Device) -> Result<&Buffer<T>> {
        let held = match self.device.get() {
            Some(held) => held,
            None => {
                let made = Tensor::new(&[self.host.len()], self.host.clone())?.to_device(device)?;
                self.device.get_or_init(|| made)
            }
        };
        if !held.device().is_some_and(|held| held.is(device)) {
            return Err(Error::invalid(
                "a network is used on one device after another; build it once for each",
            ));
        }
        held.buffer::<T>()
    }
}

impl<T: DeviceElement> From<Vec<T>> for Constant<T> {
    fn from(values: Vec<T>) -> Self {
        Self::new(values)
    }
}
