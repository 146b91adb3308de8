//! Launchers for `kernels/cross_entropy.cu`.
#![expect(unsafe_code, reason = "kernels are launched here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::size,
    },
    error::{Error, Result},
};

const THREADS: u32 = 256;

/// Outputs of the cross-entropy, per token.
#[derive(Debug)]
pub struct CrossEntropyOutput<'a, T: Factor> {
    /// `[B, L]`
    pub losses: &'a mut Buffer<f32>,
    /// 1 where the first of the largest logits is the target's, else 0; `[B, L]`.
    pub correct: &'a mut Buffer<u32>,
    /// The gradient of the logits, `[B, L, V]`, and the factor of the tokens' gradients, per sample, `[B]` (for the
    /// mean over a sample's tokens, that mean's gradient divided by `L`), or per token, `[B, L]`.
    pub d_logits: Option<(&'a mut Buffer<T>, &'a Buffer<f32>)>,
}

/// Loss of `logits` `[B, L, V]` against `targets` `[B, L]`, with label smoothing, and its gradient in the same pass. A
/// target not below `V` stops the kernel with an error.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn cross_entropy<T: Factor>(
    output: CrossEntropyOutput<'_, T>,
    logits: &Buffer<T>,
    targets: &Buffer<u32>,
    [batch, tokens, codes]: [usize; 3],
    smoothing: f32,
) -> Result<()> {
    let op = "cross_entropy";
    let rows = batch * tokens;
    if codes == 0 || !(0.0..1.0).contains(&smoothing) {
        return Err(Error::shape(op, format!("{codes} codes with a smoothing of {smoothing}")));
    }
    logits.expect_len(op, "logits", rows * codes)?;
    targets.expect_len(op, "targets", rows)?;
    output.losses.expect_len(op, "losses", rows)?;
    output.correct.expect_len(op, "correct", rows)?;
    let mut shared_by = tokens;
    let (gradient, seeds) = match output.d_logits {
        None => (Argument::null::<T>(), Argument::null::<f32>()),
        Some((gradient, seeds)) => {
            gradient.expect_len(op, "the gradient of the logits", rows * codes)?;
            // As many factors as tokens: one per row.
            let each = seeds.len() == rows && tokens > 1;
            seeds.expect_len(op, "the samples' factors", if each { rows } else { batch })?;
            shared_by = if each { 1 } else { tokens };
            (gradient.write(), seeds.read())
        }
    };
    if rows == 0 {
        return Ok(());
    }
    let arguments = [
        output.losses.write(),
        output.correct.write(),
        gradient,
        logits.read(),
        targets.read(),
        seeds,
        Argument::U32(size(op, "codes", codes)?),
        Argument::U32(size(op, "tokens", shared_by)?),
        Argument::F32(smoothing),
    ];
    let launch = Launch::linear(size(op, "rows", rows)?, THREADS);
    // SAFETY: arguments in the kernel's order; what it writes is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { logits.device().launch(&Kernel::of::<T>(op, op), &launch, &arguments) }
}
