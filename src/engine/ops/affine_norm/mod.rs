//! Norms with a learned factor for each channel, forward only, on a device: those of text encoders. The reference is that of
//! `encode::layers`.

pub mod cuda;
