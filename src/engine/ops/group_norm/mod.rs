//! Group norm of channels-last maps, with SiLU after it where asked for, forward only: that of the VQ-VAE, which is never trained.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;
