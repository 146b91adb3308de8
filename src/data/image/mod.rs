//! Turns image files into input tensors: decoding, preprocessing, and a loader that does both in advance.

pub mod decode;
pub mod loader;
pub mod preprocess;
mod reference;
pub mod resample;

pub use reference::ImageRef;
pub(crate) use reference::is_of_name;
