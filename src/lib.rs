//! Selects the text-image pairs that are worth training a text-to-image model on.
//!
//! Small text-to-image *proxies* evaluate the pairs that they have not been trained on, or a small *rater* is trained
//! jointly with a proxy by meta-gradients ([Alchemist, arXiv 2512.16905](https://arxiv.org/abs/2512.16905)). Every pair
//! of a corpus gets a rating, and a selection strategy keeps a part of it. Training runs on the CPU, or on a GPU with
//! this crate's CUDA kernels.
//!
//! Most users want the command-line program, `alchemist-engine`. This library is for programs that rate corpora
//! themselves, and for experiments with new rules: see [Where to start](#where-to-start).
//!
//! # Example: per-sample gradients in one backward pass
//!
//! To first order, a training sample changes the validation loss by the inner product of its gradient `g_i` with the
//! validation gradient `V`. A [`Tape`](engine::Tape) passes every parameter's contribution to a
//! [`GradientVisitor`](engine::GradientVisitor) of the caller's choice: [`Accumulate`](engine::Accumulate) sums them,
//! and [`Ghost`](engine::Ghost) computes `⟨g_i, V⟩` and `‖g_i‖²` of all samples in one backward pass, without storing
//! any `g_i`. In this example, the last of three samples has a wrong label, and a negative product:
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
//! // Runs a forward pass, and a backward pass from the loss of each sample.
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
//! // The validation gradient.
//! let mut validation = Accumulate::default();
//! backward(&[1.0, 0.0, 0.0, 1.0], &[0, 1], &mut validation)?;
//!
//! // The inner products of three training samples with it.
//! let direction = Direction { gradients: &validation.gradients, preconditioner: None };
//! let mut ghost = Ghost::new(3).with_dot(direction);
//! backward(&[2.0, 0.0, 0.0, 2.0, 2.0, 0.0], &[0, 1, 1], &mut ghost)?;
//! let products = ghost.finish(&parameters)?.product()?.expect("with_dot asks for it").to_f64_vec()?;
//! for (product, expected) in products.iter().zip([1.0, 1.0, -1.0]) {
//!     assert!((product - expected).abs() < 1e-12);
//! }
//!
//! // Keep the two samples with the largest products.
//! let selection = select(&products, &Strategy::TopK, Keep::Count(2), 0)?;
//! assert_eq!(selection.kept, [0, 1]);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to start
//!
//! | to | see |
//! | --- | --- |
//! | train a rater on a corpus, rate pairs, attribute the loss to pairs | [`rater::trainer`], [`rater::scorer`], [`rater::attribute`] |
//! | run single bilevel steps, or write a rule | [`rater::bilevel`], [`rater::rules`] |
//! | select a subset of rated records | [`mod@select`] |
//! | train a text-to-image model and generate images | [`generator`] |
//! | compute Fréchet distances and CLIP-Score | [`measure`] |
//! | compare ratings by training models on the subsets that they select | [`compare`] |
//! | use tensors, the tape, operations and devices | [`engine`] |
//! | read a configuration | [`config`] |
//!
//! `examples/rate.rs` in the repository trains a rater and rates a corpus.
//!
//! Long jobs accept an [`Interrupt`](interrupt::Interrupt), write their files atomically, and resume where they
//! stopped. Functions return an [`Error`], whose variants tell the caller what to change.
//!
//! # Structure
//!
//! To follow one image through the crate, read the modules in this order:
//!
//! ```text
//! image, caption ─ data ─▶ tokens ─▶ rater (bilevel step on models) ─▶ ratings ─ select ─▶ subset ─ generator ─▶ compare, report
//!                           encode       └── engine (tensor, autograd, ops, cuda) ──┘
//! ```
//!
//! Dependencies point in one direction: `engine` does not depend on models, `models` does not depend on data, and `cli`
//! only parses arguments and calls the library.
//!
//! The documentation uses the same letters for dimensions everywhere: `B` batch, `L` tokens of the pyramid, `T` text
//! tokens, `C` width, `H` heads, `D` head dimension, `V` codes in the vocabulary, `R` rows (`B·L`).

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
