//! Means over tokens, statistics over the batch, and the softmax over the batch that turns logits into weights.

pub mod cpu;

use crate::{
    engine::{
        RowOwner, Tape, Tensor, Var,
        ops::{expect_shape, three_dims},
        tape::{Operation, Sink, Slot},
    },
    error::{Error, Result},
    with_float,
};

struct MeanTokens {
    tokens: usize,
    slot: Slot,
}

/// The mean over tokens: `[B, L, C]` to `[B, C]`.
///
/// # Errors
/// If `x` has not three dimensions.
pub fn mean_tokens(tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
    let [_, tokens, _] = three_dims("mean_tokens", "x", x.value())?;
    let value = with_float!(x.value().dtype(), "mean_tokens", T => cpu::mean_tokens::<T>(x.value()))?;
    let owner = match x.owner() {
        RowOwner::Samples { .. } => RowOwner::Samples { rows_per_sample: 1 },
        RowOwner::Batch => RowOwner::Batch,
    };
    let slot = tape.slot(x);
    Ok(tape.push(value, owner, &[slot], false, || MeanTokens { tokens, slot }))
}

impl Operation for MeanTokens {
    fn name(&self) -> &'static str {
        "mean_tokens"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = with_float!(d_output.dtype(), "mean_tokens", T => cpu::mean_tokens_backward::<T>(&d_output, self.tokens))?;
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
    let &[batch, channels] = x.value().shape() else {
        return Err(Error::shape("batch_statistics", format!("{:?} is not [B, C]", x.value().shape())));
    };
    let value = with_float!(x.value().dtype(), "batch_statistics", T => cpu::batch_statistics::<T>(x.value(), batch, channels))?;
    let (slot, input) = (tape.slot(x), x.value().clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchStatistics { input, slot }))
}

impl Operation for BatchStatistics {
    fn name(&self) -> &'static str {
        "batch_statistics"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = with_float!(d_output.dtype(), "batch_statistics", T => cpu::batch_statistics_backward::<T>(&self.input, &d_output))?;
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
pub fn batch_softmax(tape: &mut Tape<'_>, x: &Var, temperature: f64) -> Result<Var> {
    let output = with_float!(x.value().dtype(), "batch_softmax", T => cpu::batch_softmax::<T>(x.value(), temperature))?;
    let (slot, value) = (tape.slot(x), output.clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchSoftmax { output, temperature, slot }))
}

impl Operation for BatchSoftmax {
    fn name(&self) -> &'static str {
        "batch_softmax"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = with_float!(d_output.dtype(), "batch_softmax", T => cpu::batch_softmax_backward::<T>(&self.output, self.temperature, &d_output))?;
        sink.input(self.slot, dx)
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
    let value =
        with_float!(x.value().dtype(), "scale_all", T => cpu::scale_all::<T>(x.value(), scale.value()))?;
    let slots = [tape.slot(x), tape.slot(scale)];
    let inputs = [x.value().clone(), scale.value().clone()];
    Ok(tape.push(value, RowOwner::Batch, &slots, false, || ScaleAll { inputs, slots }))
}

impl Operation for ScaleAll {
    fn name(&self) -> &'static str {
        "scale_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let [dx, d_scale] = with_float!(d_output.dtype(), "scale_all", T => cpu::scale_all_backward::<T>(&self.inputs[0], &self.inputs[1], &d_output))?;
        sink.input(self.slots[0], dx)?;
        sink.input(self.slots[1], d_scale)
    }
}
