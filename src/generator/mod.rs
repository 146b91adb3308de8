//! Text-to-image models: [`fit`](mod@fit) trains one on a data set or a part of it, [`sample`](mod@sample) generates
//! images with it.

pub mod fit;
pub mod sample;
