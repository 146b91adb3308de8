//! What the CPU reference of the pyramid is made of.

pub(crate) mod nearest;
pub(crate) mod phi;
pub mod resample;
mod step;
