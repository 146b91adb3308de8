//! Launches of `kernels/rater_loss.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch},
        ops::{blocks, size},
    },
    error::Result,
};

const OP: &str = "rater_loss";
const THREADS: u32 = 256;
/// The seeds' factor, the losses' and that of the entropy term.
const FACTORS: usize = 3;

fn launch(samples: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks(OP, samples, THREADS as usize)?, THREADS))
}

/// `seeds = factors[0]·weights`, all `[B]`.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn rater_loss_seeds(seeds: &mut Buffer<f32>, weights: &Buffer<f32>, factors: &Buffer<f32>) -> Result<()> {
    seeds.expect_len(OP, "the seeds", weights.len())?;
    factors.expect_len(OP, "the factors", FACTORS)?;
    if weights.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", weights.len())?);
    let arguments = [seeds.write(), weights.read(), factors.read(), count];
    // SAFETY: arguments in the kernel's order; the seeds are borrowed mutably; the sizes were compared above; all buffers
    // live, and are freed in the order of the work.
    unsafe {
        weights.device().launch(&Kernel::new(OP, "rater_loss_seeds"), &launch(weights.len())?, &arguments)
    }
}

/// The gradient of the weights, `[B]` like losses and weights.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn rater_loss_backward(
    d_weights: &mut Buffer<f32>,
    losses: &Buffer<f32>,
    weights: &Buffer<f32>,
    factors: &Buffer<f32>,
) -> Result<()> {
    d_weights.expect_len(OP, "the gradient", weights.len())?;
    losses.expect_len(OP, "the losses", weights.len())?;
    factors.expect_len(OP, "the factors", FACTORS)?;
    if weights.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", weights.len())?);
    let arguments = [d_weights.write(), losses.read(), weights.read(), factors.read(), count];
    // SAFETY: arguments in the kernel's order; the gradient is borrowed mutably; the sizes were compared above; all buffers
    // live, and are freed in the order of the work.
    unsafe {
        weights.device().launch(&Kernel::new(OP, "rater_loss_backward"), &launch(weights.len())?, &arguments)
    }
}
