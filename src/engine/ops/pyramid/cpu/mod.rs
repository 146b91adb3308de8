//! What the CPU reference of the pyramid is made of.

pub mod nearest;
pub mod phi;
pub mod resample;
mod step;
