//! Convolutions over channels-last maps, forward only, for the frozen VQ-VAE and Inception. On a device, filters are
//! 3×3 or 1×1.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;
