//! Metrics of generated images, compared with held-out images and with captions. Names are exact: a Fréchet distance is
//! called FID only with the features of FID's network.

pub mod clip_image;
pub mod clip_score;
pub mod frechet;
pub mod images;
pub mod inception;
pub mod job;
mod singular;
pub mod space;
