//! Every kernel against plain loops or the crate's CPU reference in f64, on the emulator and, where there is one, on a GPU: one module per
//! operation, named as its folder in `src/engine/ops` and its files in `kernels`.
//!
//! Inputs are rounded to the kernel's type before the reference sees them. Bounds are relative to the root mean square of the
//! reference: f32 1e-5, bf16 2e-2, f16 3e-3. `ALCHEMIST_REQUIRE_GPU=1` makes a machine without a GPU an error.
#![cfg(feature = "emulator")]

#[macro_use]
#[path = "../device/mod.rs"]
mod device;

mod activation;
mod adamw;
mod add_to_all;
mod affine_norm;
mod attention;
mod attention_cases;
mod batch_softmax;
mod batch_statistics;
mod cast;
mod contributions;
mod convolution;
mod cross_entropy;
mod first_sample;
mod group_norm;
mod layer_norm;
#[path = "../pyramid/left_over.rs"]
mod left_over;
mod mean_tokens;
mod meta_gradient;
mod modulation;
mod multiply;
mod patch_embed;
mod products;
mod pyramid;
mod rater_loss;
mod reference;
mod residual;
mod scale_all;
mod softmax;
