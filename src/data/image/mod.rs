//! From an image's file to what the networks see: decoding, preprocessing, and both ahead of their use.

pub mod decode;
pub mod loader;
pub mod preprocess;
mod reference;
pub mod resample;

pub use reference::ImageRef;
