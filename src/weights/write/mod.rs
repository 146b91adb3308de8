//! Writing weights: safetensors, whole or in shards, and checkpoints that PyTorch opens. Tensors are read while they are
//! written, some hundred kilobytes at a time, and every file appears whole or not at all.

mod archive;
mod safetensors_file;
mod torch;

pub use safetensors_file::{write_safetensors, write_shards};
pub use torch::write_torch;
