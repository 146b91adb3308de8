//! The pyramid of codes: codes to the proxy's input rows, and features to codes. The reference on the processor is
//! [`PyramidQuantizer`](crate::encode::pyramid::PyramidQuantizer); none of this is on the tape, because codes have no
//! gradient.

pub mod cuda;
