//! Launchers for `kernels/rater_loss.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch},
        ops::{blocks, size},
    },
    error::Result,
};

const OP: &str = "rater_loss";
const THREADS: u32 = 256;
/// Number of factors: of the seeds, the constants and the entropy term.
const FACTORS: usize = 3;

fn launch(samples: usize) -> Result<Launch> {
    Ok(Launch::linear(blocks(OP, samples, THREADS as usize)?, THREADS))
}

/// `seeds = factors[0]·weights`, all `[B]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn rater_loss_seeds(seeds: &mut Buffer<f32>, weights: &Buffer<f32>, factors: &Buffer<f32>) -> Result<()> {
    seeds.expect_len(OP, "the seeds", weights.len())?;
    factors.expect_len(OP, "the factors", FACTORS)?;
    if weights.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", weights.len())?);
    let arguments = [seeds.write(), weights.read(), factors.read(), count];
    // SAFETY: arguments in the kernel's order; the seeds are borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe {
        weights.device().launch(&Kernel::new(OP, "rater_loss_seeds"), &launch(weights.len())?, &arguments)
    }
}

/// The gradient of the weights, `[B]` like constants and weights.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn rater_loss_backward(
    d_weights: &mut Buffer<f32>,
    constants: &Buffer<f32>,
    weights: &Buffer<f32>,
    factors: &Buffer<f32>,
) -> Result<()> {
    d_weights.expect_len(OP, "the gradient", weights.len())?;
    constants.expect_len(OP, "the constants", weights.len())?;
    factors.expect_len(OP, "the factors", FACTORS)?;
    if weights.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", weights.len())?);
    let arguments = [d_weights.write(), constants.read(), weights.read(), factors.read(), count];
    // SAFETY: arguments in the kernel's order; the gradient is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe {
        let kernel = Kernel::new(OP, "rater_loss_backward");
        weights.device().launch(&kernel, &Launch::linear(1, THREADS), &arguments)
    }
}

/// Subtracts the mean of the constants and, with `deviation`, divides by their standard deviation; `[B]`. Values that
/// are not finite are unchanged and do not count.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn rater_loss_standardize(to: &mut Buffer<f32>, constants: &Buffer<f32>, deviation: bool) -> Result<()> {
    to.expect_len(OP, "the result", constants.len())?;
    if constants.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", constants.len())?);
    let arguments = [to.write(), constants.read(), count, Argument::U32(u32::from(deviation))];
    // SAFETY: arguments in the kernel's order; the result is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe {
        let kernel = Kernel::new(OP, "rater_loss_standardize");
        constants.device().launch(&kernel, &Launch::linear(1, THREADS), &arguments)
    }
}

/// The gradient of the logits and the targets, `[B]` each, from the logits, the constants, the running averages
/// `[B, 2]` and the statistics of the corpus `[3]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn rater_loss_regression(
    [d_logits, targets]: [&mut Buffer<f32>; 2],
    logits: &Buffer<f32>,
    constants: &Buffer<f32>,
    averages: &Buffer<f32>,
    corpus: &Buffer<f32>,
) -> Result<()> {
    d_logits.expect_len(OP, "the gradient", logits.len())?;
    targets.expect_len(OP, "the targets", logits.len())?;
    constants.expect_len(OP, "the constants", logits.len())?;
    averages.expect_len(OP, "the averages", 2 * logits.len())?;
    corpus.expect_len(OP, "the corpus statistics", FACTORS)?;
    if logits.is_empty() {
        return Ok(());
    }
    let count = Argument::U32(size(OP, "samples", logits.len())?);
    let arguments = [
        d_logits.write(),
        targets.write(),
        logits.read(),
        constants.read(),
        averages.read(),
        corpus.read(),
        count,
    ];
    // SAFETY: arguments in the kernel's order; gradient and targets are borrowed mutably; the sizes were compared
    // above; all buffers live, and are freed in stream order.
    unsafe {
        let kernel = Kernel::new(OP, "rater_loss_regression");
        logits.device().launch(&kernel, &launch(logits.len())?, &arguments)
    }
}
