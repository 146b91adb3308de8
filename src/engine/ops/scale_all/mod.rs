//! Multiplication by a scalar.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        RowOwner, Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::dispatch,
        ops::expect_shape,
    },
    error::Result,
};

struct ScaleAll {
    inputs: [Tensor; 2],
    slots: [Slot; 2],
}

/// Multiplies every element of `x` `[B, 1]` by the scalar `scale` `[1, 1]`.
///
/// # Errors
/// If `scale` is not a scalar.
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
                let mut d_scale = dy.device().uninitialized(1)?;
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
