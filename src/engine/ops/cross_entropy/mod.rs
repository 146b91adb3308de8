//! Token cross-entropy: `−log softmax(logits)[target]`, with label smoothing, averaged over each sample's tokens,
//! optionally weighted.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        autograd::{
            contributions::cuda::{scale, scale_samples},
            tape::{Operation, Sink, Slot},
        },
        cuda::{Buffer, Device, DeviceFloat},
        dispatch::{dispatch, with_float, with_number},
        ops::{expect_shape, mean_tokens::cuda::mean_tokens_forward, three_dims},
    },
    error::{Error, Result},
};
use cuda::CrossEntropyOutput;

/// The loss and other statistics of the predictions.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// Mean over a sample's tokens, `[B]`; gradients flow from here.
    pub sample_loss: Var,
    /// Per-token loss, `[B, L]`.
    pub token_loss: Tensor,
    /// Whether the largest logit is the target's, `[B, L]` u32, 1 or 0.
    pub correct: Tensor,
}

/// Results of the forward pass.
struct Forward {
    sample_loss: Tensor,
    token_loss: Tensor,
    /// The log-sum-exp of each token, on the host: a device recomputes it.
    log_sum: Option<Tensor>,
    correct: Tensor,
}

struct Operator {
    logits: Tensor,
    log_sum: Option<Tensor>,
    targets: Tensor,
    smoothing: f64,
    weights: Option<Vec<f64>>,
    slot: Slot,
}

/// Loss of `logits` `[B, L, V]` against `targets` `[B, L]` u32. With smoothing `s` a target is `1 − s` plus `s/V` on
/// every code, as in PyTorch (upstream: `ls`). With `weights` `[L]` a sample's loss is `Σ_t weights_t loss_t / L`.
///
/// # Errors
/// If the sizes do not match or a target is not below `V`.
pub fn cross_entropy(
    tape: &mut Tape<'_>,
    logits: &Var,
    targets: &Tensor,
    smoothing: f64,
    weights: Option<&[f64]>,
) -> Result<CrossEntropy> {
    let [batch, tokens, codes] = three_dims("cross_entropy", "logits", logits.value())?;
    expect_shape("cross_entropy", "targets", targets, &[batch, tokens])?;
    if let Some(weights) = weights
        && weights.len() != tokens
    {
        return Err(Error::shape("cross_entropy", format!("{} weights for {tokens} tokens", weights.len())));
    }
    let input = logits.value();
    let forward = dispatch!("cross_entropy", input,
        cpu T => {
            if let Some(bad) = targets.as_slice::<u32>()?.iter().find(|&&target| target as usize >= codes) {
                return Err(Error::shape(
                    "cross_entropy",
                    format!("the target {bad} is out of range: there are {codes} codes"),
                ));
            }
            cpu::forward::<T>(input, targets, smoothing, weights)
        },
        cuda T => forward_on_device::<T>(input, targets, smoothing, weights),
    )?;
    let Forward { sample_loss, token_loss, log_sum, correct } = forward;
    let slot = tape.slot(logits);
    let (kept, targets, weights) = (input.clone(), targets.clone(), weights.map(<[f64]>::to_vec));
    let sample_loss = tape.push(sample_loss, logits.owner(), &[slot], false, || Operator {
        logits: kept,
        log_sum,
        targets,
        smoothing,
        weights,
        slot,
    });
    Ok(CrossEntropy { sample_loss, token_loss, correct })
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { logits, log_sum, targets, smoothing, weights, slot } = *self;
        let weights = weights.as_deref();
        let d_logits = match log_sum {
            Some(log_sum) => with_float!(d_output.dtype(), "cross_entropy", T => {
                cpu::backward::<T>(logits, &log_sum, &targets, smoothing, weights, &d_output)
            })?,
            None => with_number!(logits.dtype(), "cross_entropy", T => {
                backward_on_device::<T>(&logits, &targets, smoothing, weights, &d_output)
            })?,
        };
        sink.input(slot, d_logits)
    }
}

/// On a device losses are f32 for any dtype of the logits.
#[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
fn forward_on_device<T: DeviceFloat>(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    weights: Option<&[f64]>,
) -> Result<Forward> {
    let sizes = three_dims("cross_entropy", "logits", logits)?;
    let [batch, tokens, _] = sizes;
    let (from, targets) = (logits.buffer::<T>()?, targets.buffer::<u32>()?);
    let device = from.device();
    let (mut losses, mut correct) =
        (device.uninitialized(targets.len())?, device.uninitialized(targets.len())?);
    let output = CrossEntropyOutput { losses: &mut losses, correct: &mut correct, d_logits: None };
    cuda::cross_entropy(output, from, targets, sizes, smoothing as f32)?;
    let weighted = match weights {
        Some(weights) => {
            let mut weighted = device.uninitialized(losses.len())?;
            scale_samples(&mut weighted, Some(&losses), &of_tokens(device, weights, batch)?)?;
            Some(weighted)
        }
        None => None,
    };
    let sample_loss = Tensor::written::<f32>(device, &[batch], |mean| {
        mean_tokens_forward(mean, weighted.as_ref().unwrap_or(&losses), [batch, tokens, 1])
    })?;
    let shape = [batch, tokens];
    Ok(Forward {
        sample_loss,
        token_loss: Tensor::from_buffer(&shape, losses)?,
        log_sum: None,
        correct: Tensor::from_buffer(&shape, correct)?,
    })
}

/// The token weights repeated for each sample, `[B, L]`.
#[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
fn of_tokens(device: &Device, weights: &[f64], batch: usize) -> Result<Buffer<f32>> {
    let row: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
    device.upload(&row.repeat(batch))
}

#[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
fn backward_on_device<T: DeviceFloat>(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
    weights: Option<&[f64]>,
    d_output: &Tensor,
) -> Result<Tensor> {
    let sizes = three_dims("cross_entropy", "logits", logits)?;
    let (from, targets) = (logits.buffer::<T>()?, targets.buffer::<u32>()?);
    let device = from.device();
    let mut seeds = device.uninitialized(d_output.len())?;
    scale(&mut seeds, Some(d_output.buffer::<f32>()?), 1.0 / sizes[1] as f32)?;
    if let Some(weights) = weights {
        let even = of_tokens(device, weights, sizes[0])?;
        let mut of_tokens = device.uninitialized(even.len())?;
        scale_samples(&mut of_tokens, Some(&even), &seeds)?;
        seeds = of_tokens;
    }
    let (mut losses, mut correct) =
        (device.uninitialized(targets.len())?, device.uninitialized(targets.len())?);
    Tensor::written(device, logits.shape(), |d_logits| {
        let output = CrossEntropyOutput {
            losses: &mut losses,
            correct: &mut correct,
            d_logits: Some((d_logits, &seeds)),
        };
        cuda::cross_entropy(output, from, targets, sizes, smoothing as f32)
    })
}
