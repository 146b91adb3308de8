//! Convolutions over channels-last maps, forward only: those of the VQ-VAE and of Inception, which are never trained. On a device by
//! filters of 3×3 and of one pixel.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;
