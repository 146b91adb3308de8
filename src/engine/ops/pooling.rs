//! Means over tokens, statistics over the batch, and the softmax over the batch that turns logits into weights.

pub mod cuda;

use crate::{
    engine::{
        Float, RowOwner, Tape, Tensor, Var,
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
    fn run<T: Float>(x: &Tensor) -> Result<Tensor> {
        let [batch, tokens, channels] = three_dims("mean_tokens", "x", x)?;
        let share = T::of(1.0 / tokens as f64);
        let mut y = vec![T::ZERO; batch * channels];
        for (y, x) in y.chunks_mut(channels).zip(x.as_slice::<T>()?.chunks(tokens * channels)) {
            for row in x.chunks(channels) {
                for (y, x) in y.iter_mut().zip(row) {
                    *y += *x;
                }
            }
            for y in y {
                *y *= share;
            }
        }
        Tensor::new(&[batch, channels], y)
    }
    let [_, tokens, _] = three_dims("mean_tokens", "x", x.value())?;
    let value = with_float!(x.value().dtype(), "mean_tokens", T => run::<T>(x.value()))?;
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
        fn run<T: Float>(d_output: &Tensor, tokens: usize) -> Result<Tensor> {
            let (batch, channels) = (d_output.dim(0), d_output.dim(1));
            let share = T::of(1.0 / tokens as f64);
            let mut dx = Vec::with_capacity(batch * tokens * channels);
            for row in d_output.as_slice::<T>()?.chunks(channels) {
                let scaled: Vec<T> = row.iter().map(|value| *value * share).collect();
                for _ in 0..tokens {
                    dx.extend_from_slice(&scaled);
                }
            }
            Tensor::new(&[batch, tokens, channels], dx)
        }
        let dx = with_float!(d_output.dtype(), "mean_tokens", T => run::<T>(&d_output, self.tokens))?;
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
    fn run<T: Float>(x: &Tensor, batch: usize, channels: usize) -> Result<Tensor> {
        let share = T::of(1.0 / batch as f64);
        let (mean, x) = (means::<T>(x, channels, share)?, x.as_slice::<T>()?);
        let mut variance = vec![T::ZERO; channels];
        for row in x.chunks(channels) {
            for ((variance, mean), x) in variance.iter_mut().zip(&mean).zip(row) {
                *variance += (*x - *mean) * (*x - *mean) * share;
            }
        }
        Tensor::new(&[1, 2 * channels], [mean, variance].concat())
    }
    let &[batch, channels] = x.value().shape() else {
        return Err(Error::shape("batch_statistics", format!("{:?} is not [B, C]", x.value().shape())));
    };
    let value =
        with_float!(x.value().dtype(), "batch_statistics", T => run::<T>(x.value(), batch, channels))?;
    let (slot, input) = (tape.slot(x), x.value().clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchStatistics { input, slot }))
}

fn means<T: Float>(x: &Tensor, channels: usize, share: T) -> Result<Vec<T>> {
    let mut mean = vec![T::ZERO; channels];
    for row in x.as_slice::<T>()?.chunks(channels) {
        for (mean, x) in mean.iter_mut().zip(row) {
            *mean += *x * share;
        }
    }
    Ok(mean)
}

impl Operation for BatchStatistics {
    fn name(&self) -> &'static str {
        "batch_statistics"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(x: &Tensor, d_output: &Tensor) -> Result<Tensor> {
            let (batch, channels) = (x.dim(0), x.dim(1));
            let share = T::of(1.0 / batch as f64);
            let mean = means::<T>(x, channels, share)?;
            let (d_mean, d_variance) = d_output.as_slice::<T>()?.split_at(channels);
            let mut dx = Vec::with_capacity(x.len());
            for row in x.as_slice::<T>()?.chunks(channels) {
                for (at, x) in row.iter().enumerate() {
                    dx.push(share * (d_mean[at] + T::of(2.0) * (*x - mean[at]) * d_variance[at]));
                }
            }
            Tensor::new(&[batch, channels], dx)
        }
        let dx = with_float!(d_output.dtype(), "batch_statistics", T => run::<T>(&self.input, &d_output))?;
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
    fn run<T: Float>(x: &Tensor, temperature: f64) -> Result<Tensor> {
        // In f64 whatever the type: weights hardly differ, so their gradients are small differences of large terms.
        let mut y: Vec<f64> = x.as_slice::<T>()?.iter().map(|value| value.to_f64() / temperature).collect();
        let largest = y.iter().fold(f64::NEG_INFINITY, |most, value| most.max(*value));
        for value in &mut y {
            *value = (*value - largest).exp();
        }
        let total: f64 = y.iter().sum();
        Tensor::new(x.shape(), y.iter().map(|value| T::of(value / total)).collect())
    }
    let output = with_float!(x.value().dtype(), "batch_softmax", T => run::<T>(x.value(), temperature))?;
    let (slot, value) = (tape.slot(x), output.clone());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || BatchSoftmax { output, temperature, slot }))
}

impl Operation for BatchSoftmax {
    fn name(&self) -> &'static str {
        "batch_softmax"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(op: &BatchSoftmax, d_output: &Tensor) -> Result<Tensor> {
            let (y, d) = (op.output.as_slice::<T>()?, d_output.as_slice::<T>()?);
            let total: f64 = y.iter().map(|y| y.to_f64()).sum();
            let mean = y.iter().zip(d).map(|(y, d)| y.to_f64() * d.to_f64()).sum::<f64>() / total;
            let one = |(y, d): (&T, &T)| T::of(y.to_f64() * (d.to_f64() - mean) / op.temperature);
            Tensor::new(op.output.shape(), y.iter().zip(d).map(one).collect())
        }
        let dx = with_float!(d_output.dtype(), "batch_softmax", T => run::<T>(&self, &d_output))?;
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
    fn run<T: Float>(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let scale = scale.as_slice::<T>()?[0];
        Tensor::new(x.shape(), x.as_slice::<T>()?.iter().map(|x| *x * scale).collect())
    }
    expect_shape("scale_all", "the scale", scale.value(), &[1, 1])?;
    let value = with_float!(x.value().dtype(), "scale_all", T => run::<T>(x.value(), scale.value()))?;
    let slots = [tape.slot(x), tape.slot(scale)];
    let inputs = [x.value().clone(), scale.value().clone()];
    Ok(tape.push(value, RowOwner::Batch, &slots, false, || ScaleAll { inputs, slots }))
}

impl Operation for ScaleAll {
    fn name(&self) -> &'static str {
        "scale_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(op: &ScaleAll, d_output: &Tensor) -> Result<[Tensor; 2]> {
            let (x, d) = (op.inputs[0].as_slice::<T>()?, d_output.as_slice::<T>()?);
            let scale = op.inputs[1].as_slice::<T>()?[0];
            let d_scale: T = x.iter().zip(d).map(|(x, d)| *x * *d).sum();
            let dx = d.iter().map(|d| *d * scale).collect();
            Ok([Tensor::new(d_output.shape(), dx)?, Tensor::new(&[1, 1], vec![d_scale])?])
        }
        let [dx, d_scale] = with_float!(d_output.dtype(), "scale_all", T => run::<T>(&self, &d_output))?;
        sink.input(self.slots[0], dx)?;
        sink.input(self.slots[1], d_scale)
    }
}
