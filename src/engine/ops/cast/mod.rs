//! Conversions between the types that a device stores numbers in.

pub mod cuda;
