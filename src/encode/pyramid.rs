//! (to be written)

/// (to be written)
pub struct PyramidQuantizer;
