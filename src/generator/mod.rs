//! Text-to-image models: [`fit`](mod@fit) trains one on a data set or a part of it, [`sample`](mod@sample) draws images from it.

pub mod fit;
pub mod sample;
