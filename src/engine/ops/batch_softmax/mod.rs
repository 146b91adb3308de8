//! Softmax over the batch, which turns the rater's logits into weights.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        RowOwner, Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::dispatch,
    },
    error::Result,
};

struct BatchSoftmax {
    output: Tensor,
    temperature: f64,
    slot: Slot,
}

/// Softmax of `x / temperature` over the batch: `[B, 1]` to `[B, 1]`.
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
