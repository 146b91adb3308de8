//! Group norm of channels-last maps on a device. The reference is that of the VQ-VAE, which alone has it: `encode::vqvae`.

pub mod cuda;
