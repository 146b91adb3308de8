//! Building blocks of the pyramid's CPU reference.

pub(crate) mod nearest;
pub(crate) mod phi;
pub mod resample;
mod step;
