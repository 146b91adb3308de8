//! Group norm of channels-last maps with optional SiLU, forward only, for the frozen VQ-VAE.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;
