//! Means over tokens, statistics over the batch, and the softmax over the batch that turns logits into weights.
//!
//! On a device the mean is in f32 whatever the activations are, and so is all that follows it: these are few numbers, whose
//! small differences make the ratings.

pub mod cpu;
pub mod cuda;

use crate::{
    dispatch,
    engine::{
        DType, RowOwner, Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        ops::{expect_shape, three_dims},
    },
    error::{Error, Result},
    with_float, with_number,
};

struct MeanTokens {
    tokens: usize,
    dtype: DType,
    slot: Slot,
}

/// The mean over tokens: `[B, L, C]` to `[B, C]`.
///
/// # Errors
/// If `x` has not three dimensions.
pub fn mean_tokens(tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
    let input = x.value();
    let [batch, tokens, channels] = three_dims("mean_tokens", "x", input)?;
    let value = dispatch!("mean_tokens", input,
        cpu T => cpu::mean_tokens::<T>(input),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written::<f32>(from.device(), &[batch, channels], |y| {
                cuda::mean_tokens_forward(y, from, [batch, tokens, channels])
            })
        },
    )?;
    let owner = match x.owner() {
        RowOwner::Samples { .. } => RowOwner::Samples { rows_per_sample: 1 },
        RowOwner::Batch => RowOwner::Batch,
    };
    let (slot, dtype) = (tape.slot(x), input.dtype());
    Ok(tape.push(value, owner, &[slot], false, || MeanTokens { tokens, dtype, slot }))
}

impl Operation for MeanTokens {
    fn name(&self) -> &'static str {
        "mean_tokens"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = if d_output.device().is_none() {
            with_float!(self.dtype, "mean_tokens", T => cpu::mean_tokens_backward::<T>(&d_output, self.tokens))?
        } else {
            with_number!(self.dtype, "mean_tokens", T => {
                let dy = d_output.buffer::<f32>()?;
                let sizes = [d_output.dim(0), self.tokens, d_output.dim(1)];
                Tensor::written::<T>(dy.device(), &sizes, |dx| cuda::mean_tokens_backward(dx, dy, sizes))
            })?
        };
        sink.input(self.slot, dx)
    }
}

struct BatchStatistics {
    input: Tensor,
    slot: Slot,
}

/// Mean and biased variance over the batch, side by side: `[B, C]` to `[1, 2C]` (upstream.md, A14).
///
/// # Errors
/// If `x` has not two dimensions.
pub fn batch_statistics(tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
    let input = x.value();
    let &[batch, channels] = input.shape() else {
        return Err(Error::shape("batch_statistics", format!("{:?} is not [B, C]", input.shape())));
    };
    let value = dispatch!("batch_statistics", input,
        cpu T => cpu::batch_statistics::<T>(input, batch, channels),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written(from.device(), &[1, 2 * channels], |y| {
                cuda::batch_statistics_forward(y, from, [batch, channels])
            })
        },
    )?;
    let (slot, input) = (tape.slot(x), input.clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchStatistics { input, slot }))
}

impl Operation for BatchStatistics {
    fn name(&self) -> &'static str {
        "batch_statistics"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let input = &self.input;
        let dx = dispatch!("batch_statistics", d_output,
            cpu T => cpu::batch_statistics_backward::<T>(input, &d_output),
            cuda T => {
                let (dy, x) = (d_output.buffer::<T>()?, input.buffer::<T>()?);
                Tensor::written(x.device(), input.shape(), |dx| {
                    cuda::batch_statistics_backward(dx, dy, x, [input.dim(0), input.dim(1)])
                })
            },
        )?;
        sink.input(self.slot, dx)
    }
}

struct BatchSoftmax {
    output: Tensor,
    temperature: f64,
    slot: Slot,
}

/// Softmax of `x / temperature` over all elements, the batch: `[B, 1]` to `[B, 1]`.
///
/// # Errors
/// If `x` is not a float.
#[expect(clippy::cast_possible_truncation, reason = "the device computes with an f32 temperature")]
pub fn batch_softmax(tape: &mut Tape<'_>, x: &Var, temperature: f64) -> Result<Var> {
    let input = x.value();
    let output = dispatch!("batch_softmax", input,
        cpu T => cpu::batch_softmax::<T>(input, temperature),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written(from.device(), input.shape(), |y| {
                cuda::batch_softmax_forward(y, from, temperature as f32)
            })
        },
    )?;
    let (slot, value) = (tape.slot(x), output.clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchSoftmax { output, temperature, slot }))
}

impl Operation for BatchSoftmax {
    fn name(&self) -> &'static str {
        "batch_softmax"
    }

    #[expect(clippy::cast_possible_truncation, reason = "the device computes with an f32 temperature")]
    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { output, temperature, slot } = *self;
        let dx = dispatch!("batch_softmax", d_output,
            cpu T => cpu::batch_softmax_backward::<T>(&output, temperature, &d_output),
            cuda T => {
                let (dy, y) = (d_output.buffer::<T>()?, output.buffer::<T>()?);
                Tensor::written(y.device(), output.shape(), |dx| {
                    cuda::batch_softmax_backward(dx, dy, y, temperature as f32)
                })
            },
        )?;
        sink.input(slot, dx)
    }
}

struct ScaleAll {
    inputs: [Tensor; 2],
    slots: [Slot; 2],
}

/// Multiplies every element of `x` `[B, 1]` by the single number `scale` `[1, 1]`.
///
/// # Errors
/// If `scale` is not a single number.
pub fn scale_all(tape: &mut Tape<'_>, x: &Var, scale: &Var) -> Result<Var> {
    expect_shape("scale_all", "the scale", scale.value(), &[1, 1])?;
    let (input, factor) = (x.value(), scale.value());
    let value = dispatch!("scale_all", input,
        cpu T => cpu::scale_all::<T>(input, factor),
        cuda T => {
            let (from, factor) = (input.buffer::<T>()?, factor.buffer::<T>()?);
            Tensor::written(from.device(), input.shape(), |y| cuda::scale_all_forward(y, from, factor))
        },
    )?;
    let slots = [tape.slot(x), tape.slot(scale)];
    let inputs = [input.clone(), factor.clone()];
    Ok(tape.push(value, RowOwner::Batch, &slots, false, || ScaleAll { inputs, slots }))
}

impl Operation for ScaleAll {
    fn name(&self) -> &'static str {
        "scale_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let [x, scale] = &self.inputs;
        let [dx, d_scale] = dispatch!("scale_all", d_output,
            cpu T => cpu::scale_all_backward::<T>(x, scale, &d_output),
            cuda T => {
                let (dy, from) = (d_output.buffer::<T>()?, x.buffer::<T>()?);
                let mut d_scale = dy.device().uninitialised(1)?;
                let dx = Tensor::written(dy.device(), x.shape(), |dx| {
                    cuda::scale_all_backward(dx, &mut d_scale, dy, from, scale.buffer::<T>()?)
                })?;
                Ok([dx, Tensor::from_buffer(&[1, 1], d_scale)?])
            },
        )?;
        sink.input(self.slots[0], dx)?;
        sink.input(self.slots[1], d_scale)
    }
}
