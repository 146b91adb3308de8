//! Broadcast addition of one sample to a batch.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::dispatch,
        ops::expect_shape,
    },
    error::Result,
};

struct AddToAll {
    slots: [Slot; 2],
}

/// Adds `y` `[1, ..]` to every sample of `x` `[B, ..]`.
///
/// # Errors
/// If the shapes do not match.
pub fn add_to_all(tape: &mut Tape<'_>, x: &Var, y: &Var) -> Result<Var> {
    let (input, addend) = (x.value(), y.value());
    let mut shape = input.shape().to_vec();
    if let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    expect_shape("add_to_all", "the addend", addend, &shape)?;
    let value = dispatch!("add_to_all", input,
        cpu T => cpu::add_to_all::<T>(input, addend),
        cuda T => {
            let (from, addend) = (input.buffer::<T>()?, addend.buffer::<T>()?);
            Tensor::written(from.device(), input.shape(), |sum| cuda::add_to_all(sum, Some(from), addend))
        },
    )?;
    let slots = [tape.slot(x), tape.slot(y)];
    Ok(tape.push(value, x.owner(), &slots, false, || AddToAll { slots }))
}

impl Operation for AddToAll {
    fn name(&self) -> &'static str {
        "add_to_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut shape = d_output.shape().to_vec();
        shape[0] = 1;
        let d_y = dispatch!("add_to_all", d_output,
            cpu T => cpu::sum_samples::<T>(&d_output),
            cuda T => {
                let d = d_output.buffer::<T>()?;
                Tensor::written(d.device(), &shape, |d_y| cuda::add_to_all_backward(d_y, d))
            },
        )?;
        sink.input(self.slots[0], d_output)?;
        sink.input(self.slots[1], d_y)
    }
}
