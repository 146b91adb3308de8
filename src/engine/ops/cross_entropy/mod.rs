//! Token cross-entropy: `−log softmax(logits)[target]`, with label smoothing, averaged over each sample's tokens.

pub mod cpu;
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        ops::{expect_shape, three_dims},
        tape::{Operation, Sink, Slot},
    },
    error::{Error, Result},
    with_float,
};

/// The loss and what else a forward pass shows of the predictions.
pub struct CrossEntropy {
    /// Mean over a sample's tokens, `[B]`; gradients flow from here.
    pub sample_loss: Var,
    /// Each token's loss, `[B, L]`.
    pub token_loss: Tensor,
    /// Whether the largest logit is the target's, `[B, L]`, 1 or 0.
    pub correct: Vec<u32>,
}

struct Operator {
    logits: Tensor,
    log_sum: Tensor,
    targets: Tensor,
    smoothing: f64,
    slot: Slot,
}

/// Loss of `logits` `[B, L, V]` against `targets` `[B, L]` u32. With smoothing `s` a target is `1 − s` plus `s/V` on
/// every code, as PyTorch's (released: `ls`).
///
/// # Errors
/// If the sizes do not fit or a target is not below `V`.
pub fn cross_entropy(
    tape: &mut Tape<'_>,
    logits: &Var,
    targets: &Tensor,
    smoothing: f64,
) -> Result<CrossEntropy> {
    let [batch, tokens, codes] = three_dims("cross_entropy", "logits", logits.value())?;
    expect_shape("cross_entropy", "targets", targets, &[batch, tokens])?;
    if let Some(bad) = targets.as_slice::<u32>()?.iter().find(|&&target| target as usize >= codes) {
        return Err(Error::shape("cross_entropy", format!("the target {bad} is not one of {codes} codes")));
    }
    let (losses, log_sum, correct) = with_float!(logits.value().dtype(), "cross_entropy", T => cpu::forward::<T>(logits.value(), targets, smoothing))?;
    let sample_loss = with_float!(losses.dtype(), "cross_entropy", T => cpu::sample_means::<T>(&losses))?;
    let slot = tape.slot(logits);
    let (kept, targets) = (logits.value().clone(), targets.clone());
    let sample_loss = tape.push(sample_loss, logits.owner(), &[slot], false, || Operator {
        logits: kept,
        log_sum,
        targets,
        smoothing,
        slot,
    });
    Ok(CrossEntropy { sample_loss, token_loss: losses, correct })
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { logits, log_sum, targets, smoothing, slot } = *self;
        let d_logits = with_float!(d_output.dtype(), "cross_entropy", T => {
            cpu::backward::<T>(logits, &log_sum, &targets, smoothing, &d_output)
        })?;
        sink.input(slot, d_logits)
    }
}
