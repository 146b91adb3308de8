//! Mean and variance over the batch.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        RowOwner, Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::dispatch,
    },
    error::{Error, Result},
};

struct BatchStatistics {
    input: Tensor,
    slot: Slot,
}

/// Mean and biased variance over the batch, concatenated: `[B, C]` to `[1, 2C]` (upstream.md, A14).
///
/// # Errors
/// If `x` is not two-dimensional.
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
