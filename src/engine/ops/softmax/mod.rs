//! The softmax over keys of the encoders' attention on a device: with a scale, a bias, a mask and the order of tokens. The
//! references are those of the encoders, in `encode`.

pub mod cuda;
