//! The mean over tokens.
//!
//! On a device the mean is f32 for any dtype of the activations, and so is everything after it: these are few values,
//! and ratings depend on small differences between them.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        DType, RowOwner, Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::{dispatch, with_float, with_number},
        ops::three_dims,
    },
    error::Result,
};

struct MeanTokens {
    tokens: usize,
    dtype: DType,
    slot: Slot,
}

/// The mean over tokens: `[B, L, C]` to `[B, C]`.
///
/// # Errors
/// If `x` is not three-dimensional.
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
