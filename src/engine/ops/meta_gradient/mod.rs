//! What a rating wants of the gradient of each sample: its inner product with a direction, its squared norm, and the
//! weighted sum of all; without ever storing it.

pub mod cuda;
