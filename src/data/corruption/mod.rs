//! Planted flaws: which records of a data set are corrupted, and how.
//!
//! Ratings can only be evaluated against ground truth. This module corrupts a known share of a data set, to measure
//! which flaws a rating detects. Only [`plant`] depends on the source of the images; flaws that need the scene of an
//! image are made by [`synthetic`](super::synthetic).

mod captions;
mod corrupt;
mod flaw;
pub mod plant;
mod shares;
mod sources;

pub use captions::corrupt_caption;
pub use corrupt::corrupt;
pub use flaw::Flaw;
pub use shares::{FlawShares, Mixture, plan, relocate};
pub use sources::{Neighbors, sources};
