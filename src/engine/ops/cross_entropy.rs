//! Token cross-entropy: `−log softmax(logits)[target]`, with label smoothing, averaged over each sample's tokens.

use rayon::prelude::*;

use crate::{
    engine::{
        Float, Tape, Tensor, Var,
        float::vectorised,
        ops::{attention::cpu::largest, expect_shape, layer_norm::sum, three_dims},
        tape::{Operation, Sink, Slot},
    },
    error::{Error, Result},
    with_float,
};

/// Rows handled by one task.
const ROWS: usize = 64;

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
    let (losses, log_sum, correct) = with_float!(logits.value().dtype(), "cross_entropy", T => forward::<T>(logits.value(), targets, smoothing))?;
    let sample_loss = with_float!(losses.dtype(), "cross_entropy", T => sample_means::<T>(&losses))?;
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

fn sample_means<T: Float>(losses: &Tensor) -> Result<Tensor> {
    let (batch, tokens) = (losses.dim(0), losses.dim(1));
    let share = T::of(1.0 / tokens as f64);
    let rows = losses.as_slice::<T>()?.chunks(tokens);
    Tensor::new(&[batch], rows.map(|row| sum(row, |value| value) * share).collect())
}

fn forward<T: Float>(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
) -> Result<(Tensor, Tensor, Vec<u32>)> {
    let codes = logits.dim(2);
    let rows = targets.len();
    let targets_of = targets.as_slice::<u32>()?;
    let (mut losses, mut sums, mut correct) = (vec![T::ZERO; rows], vec![T::ZERO; rows], vec![0; rows]);
    logits
        .as_slice::<T>()?
        .par_chunks(ROWS * codes)
        .zip(targets_of.par_chunks(ROWS))
        .zip(losses.par_chunks_mut(ROWS).zip(sums.par_chunks_mut(ROWS)).zip(correct.par_chunks_mut(ROWS)))
        .for_each(|((logits, targets), ((losses, sums), correct))| {
            vectorised(
                #[inline(always)]
                || {
                    for (at, row) in logits.chunks(codes).enumerate() {
                        let target = targets[at] as usize;
                        let largest = largest(row);
                        let total = sum(row, |value| (value - largest).exp());
                        let log_sum = largest + T::of(total.to_f64().ln());
                        sums[at] = log_sum;
                        losses[at] = log_sum - row[target];
                        if smoothing > 0.0 {
                            let mean = sum(row, |value| value) * T::of(1.0 / codes as f64);
                            let spread = log_sum - mean;
                            losses[at] = losses[at] * T::of(1.0 - smoothing) + spread * T::of(smoothing);
                        }
                        let best = row.iter().position(|value| *value == largest);
                        correct[at] = u32::from(best == Some(target));
                    }
                },
            );
        });
    Ok((Tensor::new(targets.shape(), losses)?, Tensor::new(&[rows], sums)?, correct))
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(op: Operator, d_output: &Tensor) -> Result<Tensor> {
            let [_, tokens, codes] = three_dims("cross_entropy", "logits", &op.logits)?;
            let share = 1.0 / tokens as f64;
            let d_output = d_output.as_slice::<T>()?;
            let (targets, log_sum) = (op.targets.as_slice::<u32>()?, op.log_sum.as_slice::<T>()?);
            let (sharp, even) = (T::of(1.0 - op.smoothing), T::of(op.smoothing / codes as f64));
            let mut d_logits = op.logits;
            d_logits.as_mut_slice::<T>()?.par_chunks_mut(ROWS * codes).enumerate().for_each(
                |(task, rows)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for (at, row) in rows.chunks_mut(codes).enumerate() {
                                let token = task * ROWS + at;
                                let d = d_output[token / tokens] * T::of(share);
                                let log_sum = log_sum[token];
                                for value in row.iter_mut() {
                                    *value = ((*value - log_sum).exp() - even) * d;
                                }
                                row[targets[token] as usize] -= sharp * d;
                            }
                        },
                    );
                },
            );
            Ok(d_logits)
        }
        let slot = self.slot;
        let d_logits = with_float!(d_output.dtype(), "cross_entropy", T => run::<T>(*self, &d_output))?;
        sink.input(slot, d_logits)
    }
}
