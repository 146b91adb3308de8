//! Writes weights: safetensors, in one file or in shards, and checkpoints that PyTorch opens. Tensors are read during
//! the write, a few hundred kilobytes at a time, and files are written atomically.

mod archive;
mod safetensors_file;
mod torch;

pub use safetensors_file::{write_safetensors, write_shards};
pub use torch::write_torch;
