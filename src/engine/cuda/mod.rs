//! Devices that run CUDA kernels: a GPU, or the emulator that runs the same sources on the CPU.
//!
//! `driver` is the interface between the two: everything above it (launches, sizes, the order of arguments) is
//! shared, and is tested on the emulator where there is no GPU. Each op's `cuda.rs` has one safe launcher per kernel,
//! which checks sizes, chooses grid and block, and passes the arguments in order. Buffers are dense and row-major.
//! Values are stored as `T` (f32, bf16 or f16) and computed in f32; every reduction has a fixed order, so results are
//! bit-identical on every run.
#![expect(unsafe_code, reason = "foreign interfaces and raw addresses of devices")]

mod ahead;
mod arena;
mod buffer;
mod choice;
pub mod device;
pub(crate) mod driver;
#[cfg(emulator)]
mod emulator;
mod gpu;
mod gpu_product;
mod graph;
pub(crate) mod launches;
mod product;
mod stagings;
mod storage;

pub use ahead::Ahead;
pub use arena::MemoryUse;
pub use buffer::Buffer;
pub use choice::DeviceChoice;
pub use device::{Availability, Device, devices};
pub use driver::{Argument, DeviceFacts, DeviceNumber, Event, Kernel, Launch, Product};
pub use graph::Graph;
pub use product::{Operand, Products, Target};
pub use storage::{DeviceElement, DeviceFloat, DeviceStorage};
