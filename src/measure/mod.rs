//! Measures of images that a text-to-image model draws, against held-out ones and against their captions. Names say exactly
//! what was measured: a Fréchet distance is called FID only where the features are those of FID's own network.

pub mod clip_image;
pub mod clip_score;
pub mod frechet;
pub mod images;
pub mod inception;
pub mod job;
mod singular;
pub mod space;
