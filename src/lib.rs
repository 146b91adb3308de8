//! `alchemist-engine` decides which text-image pairs are worth training on.
//!
//! A small *rater* is trained jointly with a small text-to-image *proxy* by meta-gradients; the rater then scores every
//! pair of a corpus, and Shift-Gsample keeps the informative part (Alchemist, arXiv 2512.16905).
//!
//! # Per-sample gradients without keeping them
//!
//! What a training sample does to the validation loss is the inner product of its gradient `g_i` with the validation
//! gradient `V`. A [`Tape`](engine::Tape) hands every parameter's contribution to a
//! [`GradientVisitor`](engine::GradientVisitor) of the caller's choice: [`Accumulate`](engine::Accumulate) sums them,
//! [`Ghost`](engine::Ghost) finds `⟨g_i, V⟩` and `‖g_i‖²` of all samples in one backward pass, without forming a `g_i`.
//! Here the third sample of three has a wrong label:
//!
//! ```
//! use alchemist_engine::{
//!     Result,
//!     engine::{
//!         Accumulate, Direction, Ghost, GradientVisitor, Parameters, Tape, Tensor,
//!         ops::{cross_entropy::cross_entropy, linear::linear},
//!     },
//!     select::{Keep, Strategy, select},
//! };
//!
//! # fn main() -> Result<()> {
//! // A linear classifier of two features, before its first step.
//! let mut parameters = Parameters::default();
//! let weight = parameters.push("weight", Tensor::new(&[2, 2], vec![0.0; 4])?)?;
//!
//! // A forward pass, and a backward pass from each sample's loss.
//! let backward = |features: &[f64], labels: &[u32], visitor: &mut dyn GradientVisitor| -> Result<()> {
//!     let samples = labels.len();
//!     let mut tape = Tape::new(&parameters);
//!     let features = tape.constant(Tensor::new(&[samples, 1, 2], features.to_vec())?);
//!     let logits = linear(&mut tape, &features, weight, &[])?;
//!     let labels = Tensor::new(&[samples, 1], labels.to_vec())?;
//!     let loss = cross_entropy(&mut tape, &logits, &labels, 0.0, None)?.sample_loss;
//!     let seeds = Tensor::new(&[samples], vec![1.0; samples])?;
//!     tape.backward(vec![(&loss, seeds)], &[], visitor)?;
//!     Ok(())
//! };
//!
//! let mut validation = Accumulate::default();
//! backward(&[1.0, 0.0, 0.0, 1.0], &[0, 1], &mut validation)?;
//!
//! let direction = Direction { gradients: &validation.gradients, preconditioner: None };
//! let mut ghost = Ghost::new(3).with_dot(direction);
//! backward(&[2.0, 0.0, 0.0, 2.0, 2.0, 0.0], &[0, 1, 1], &mut ghost)?;
//! let products = ghost.finish(&parameters)?.product()?.expect("with_dot asks for it").to_f64_vec()?;
//! for (product, expected) in products.iter().zip([1.0, 1.0, -1.0]) {
//!     assert!((product - expected).abs() < 1e-12);
//! }
//!
//! let selection = select(&products, &Strategy::TopK, Keep::Count(2), 0)?;
//! assert_eq!(selection.kept, [0, 1]);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to start
//!
//! | for | see |
//! | --- | --- |
//! | training a rater on a corpus, rating and attributing with it | [`rater::trainer`], [`rater::scorer`], [`rater::attribute`] |
//! | single bilevel steps, and rules of your own | [`rater::bilevel`], [`rater::rules`] |
//! | choosing a subset of rated records | [`select`] |
//! | training and sampling a text-to-image model | [`generator`] |
//! | Fréchet distances and CLIP-Score | [`measure`] |
//! | comparing what models learn from the subsets of several ratings | [`compare`] |
//! | tensors, the tape, operations, devices | [`engine`] |
//! | the configuration and its keys | [`config`] |
//!
//! Long jobs take an [`Interrupt`](interrupt::Interrupt), write their files atomically and resume where they stopped.
//! Functions fail with an [`Error`], whose variants say what the caller can change.
//!
//! # Structure
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
pub(crate) mod demo;
pub mod encode;
pub mod engine;
pub mod error;
#[doc(hidden)]
pub mod files;
pub mod generator;
pub mod interrupt;
pub mod jobs;
pub mod measure;
pub mod models;
pub mod rater;
#[doc(hidden)]
pub mod report;
pub mod select;
pub mod tokens;
pub mod training;
pub mod weights;

#[doc(hidden)]
pub mod cli;

pub use error::{Error, Result};
