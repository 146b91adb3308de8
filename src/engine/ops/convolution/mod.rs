//! Convolutions by filters of 3×3 over channels-last maps on a device. The reference is that of the VQ-VAE, which alone has
//! them: `encode::vqvae`.

pub mod cuda;
