//! Devices that run CUDA kernels: a GPU, or the emulator that runs the same sources on the processor.
//!
//! [`driver`] is the seam between the two: everything above it (launches, sizes, the order of arguments) is the same
//! code for both, and is tested on the emulator where there is no GPU. [`kernels`] holds one safe launcher for each
//! kernel.
#![expect(
    unsafe_code,
    reason = "devices are driven through foreign interfaces and raw addresses, here and nowhere else"
)]

mod ahead;
mod arena;
mod buffer;
mod choice;
pub mod device;
pub mod driver;
#[cfg(emulator)]
mod emulator;
mod gpu;
mod gpu_product;
mod graph;
pub mod kernels;

pub use ahead::Ahead;
pub use arena::MemoryUse;
pub use buffer::Buffer;
pub use choice::DeviceChoice;
pub use device::{Availability, Device, devices};
pub use driver::{Argument, DeviceFacts, DeviceNumber, Event, Kernel, Launch, Product};
pub use graph::Graph;
