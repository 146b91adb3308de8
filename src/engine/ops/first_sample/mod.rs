//! Selects the first sample of a batch: with [`add_to_all`](super::add_to_all), the broadcast of the first sample in
//! the upstream cross-attention (upstream.md, A1).

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

struct FirstSample {
    shape: Vec<usize>,
    slot: Slot,
}

/// The first sample of `x` `[B, ..]` as a batch of one, the input of the upstream cross-attention (upstream.md, A1).
///
/// # Errors
/// If the batch is empty.
pub fn first_sample(tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
    let input = x.value();
    let mut shape = input.shape().to_vec();
    match shape.first_mut() {
        Some(batch) if *batch > 0 => *batch = 1,
        _ => return Err(Error::shape("first_sample", "the batch is empty")),
    }
    let value = dispatch!("first_sample", input,
        cpu T => cpu::first_sample::<T>(input, &shape),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written(from.device(), &shape, |first| cuda::first_sample_forward(first, from))
        },
    )?;
    let (slot, shape) = (tape.slot(x), input.shape().to_vec());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || FirstSample { shape, slot }))
}

impl Operation for FirstSample {
    fn name(&self) -> &'static str {
        "first_sample"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = dispatch!("first_sample", d_output,
            cpu T => cpu::first_sample_backward::<T>(&d_output, &self.shape),
            cuda T => {
                let d_first = d_output.buffer::<T>()?;
                Tensor::written(d_first.device(), &self.shape, |dx| cuda::first_sample_backward(dx, d_first))
            },
        )?;
        sink.input(self.slot, dx)
    }
}
