//! `alchemist-engine` decides which text-image pairs are worth training on.
//!
//! A small *rater* is trained beside a small text-to-image *proxy* by meta-gradients; the rater then scores every
//! pair of a corpus, and Shift-Gsample keeps the informative part (Alchemist, arXiv 2512.16905).
//!
//! Follow one image through the program by walking the modules in order:
//!
//! ```text
//! image, caption ─ data ─▶ tokens ─▶ rater (bilevel step on models) ─▶ ratings ─ select ─▶ subset ─ generator ─▶ compare, report
//!                           encode       └── engine (tensor, autograd, ops, cuda) ──┘
//! ```
//!
//! Nothing imports upward: `engine` knows nothing of models, `models` nothing of data, `cli` only parses and calls.
//!
//! Letters used for dimensions everywhere: `B` batch, `L` tokens of the pyramid, `T` text tokens, `C` width,
//! `H` heads, `D` head dimension, `V` codes in the vocabulary, `R` rows (`B·L`).

#![warn(clippy::too_many_lines)]

pub mod compare;
pub mod config;
pub mod data;
pub mod demo;
pub mod encode;
pub mod engine;
pub mod error;
pub mod files;
pub mod generator;
pub mod interrupt;
pub mod jobs;
pub mod measure;
pub mod models;
pub mod rater;
pub mod report;
pub mod select;
pub mod tokens;
pub mod training;
pub mod weights;

pub mod cli;

pub use error::{Error, Result};
