//! CPU reference of the cross-entropy.

use rayon::prelude::*;

use super::Forward;
use crate::{
    engine::{
        Float, Tensor,
        float::vectorized,
        ops::{attention::cpu::largest, layer_norm::cpu::sum, three_dims},
    },
    error::Result,
};

/// Rows per task.
const ROWS: usize = 64;

fn sample_means<T: Float>(losses: &Tensor, weights: Option<&[f64]>) -> Result<Tensor> {
    let (batch, tokens) = (losses.dim(0), losses.dim(1));
    let share = T::of(1.0 / tokens as f64);
    let rows = losses.as_slice::<T>()?.chunks(tokens);
    let mean = |row: &[T]| match weights {
        None => sum(row, |value| value) * share,
        Some(weights) => {
            let weighted: Vec<T> =
                row.iter().zip(weights).map(|(loss, &weight)| *loss * T::of(weight)).collect();
            sum(&weighted, |value| value) * share
        }
    };
    Tensor::new(&[batch], rows.map(mean).collect())
}

/// Each token's loss, its log-sum-exp, and whether the largest logit is the target's.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(super) fn forward<T: Float>(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    weights: Option<&[f64]>,
) -> Result<Forward> {
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
            vectorized(
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
    let token_loss = Tensor::new(targets.shape(), losses)?;
    Ok(Forward {
        sample_loss: sample_means::<T>(&token_loss, weights)?,
        token_loss,
        log_sum: Some(Tensor::new(&[rows], sums)?),
        correct: Tensor::new(targets.shape(), correct)?,
    })
}

/// The gradient of the logits from that of the per-sample losses; overwrites the logits.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn backward<T: Float>(
    logits: Tensor,
    log_sum: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    weights: Option<&[f64]>,
    d_output: &Tensor,
) -> Result<Tensor> {
    let [_, tokens, codes] = three_dims("cross_entropy", "logits", &logits)?;
    let share = 1.0 / tokens as f64;
    let d_output = d_output.as_slice::<T>()?;
    let (targets, log_sum) = (targets.as_slice::<u32>()?, log_sum.as_slice::<T>()?);
    let (sharp, even) = (T::of(1.0 - smoothing), T::of(smoothing / codes as f64));
    let mut d_logits = logits;
    d_logits.as_mut_slice::<T>()?.par_chunks_mut(ROWS * codes).enumerate().for_each(|(task, rows)| {
        vectorized(
            #[inline(always)]
            || {
                for (at, row) in rows.chunks_mut(codes).enumerate() {
                    let token = task * ROWS + at;
                    let weight = weights.map_or(1.0, |weights| weights[token % tokens]);
                    let d = d_output[token / tokens] * T::of(share * weight);
                    let log_sum = log_sum[token];
                    for value in row.iter_mut() {
                        *value = ((*value - log_sum).exp() - even) * d;
                    }
                    row[targets[token] as usize] -= sharp * d;
                }
            },
        );
    });
    Ok(d_logits)
}
