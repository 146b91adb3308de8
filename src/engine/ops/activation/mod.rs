//! Activation functions: the two GELUs of the upstream code, SiLU and sigmoid, and those of text encoders.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        dispatch::dispatch,
    },
    error::Result,
};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`: the blocks' MLP and the instance head.
    GeluTanh,
    /// `x·Φ(x)` with the exact error function: the batch head (upstream.md, A14).
    GeluErf,
    /// `x·sigmoid(1.702·x)`: CLIP.
    QuickGelu,
    /// `max(x, 0)`: T5 v1.0.
    Relu,
    /// `x·sigmoid(x)`: the shared modulation.
    Silu,
    /// `1/(1 + e⁻ˣ)`.
    Sigmoid,
}

/// [`activate`] without a tape, for inference-only networks, in f32.
///
/// # Errors
/// If `x` is not f32 or the device fails.
pub(crate) fn activated(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match x.device() {
        None => cpu::forward::<f32>(x, kind),
        Some(device) => {
            let from = x.buffer::<f32>()?;
            Tensor::written(device, x.shape(), |y| cuda::activation_forward(kind, y, from, None, from.len()))
        }
    }
}

struct Activate {
    input: Tensor,
    kind: Activation,
    slot: Slot,
}

/// Applies `kind` to every element of `x`.
///
/// # Errors
/// If `x` is not a float.
pub fn activate(tape: &mut Tape<'_>, x: &Var, kind: Activation) -> Result<Var> {
    let input = x.value();
    let value = dispatch!("activation", input,
        cpu T => cpu::forward::<T>(input, kind),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written(from.device(), input.shape(), |y| {
                cuda::activation_forward(kind, y, from, None, input.len())
            })
        },
    )?;
    let (slot, input) = (tape.slot(x), input.clone());
    Ok(tape.push(value, x.owner(), &[slot], false, || Activate { input, kind, slot }))
}

impl Operation for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { input, kind, slot } = *self;
        let dx = dispatch!("activation", d_output,
            cpu T => cpu::backward::<T>(&input, kind, d_output),
            cuda T => {
                let (dy, from) = (d_output.buffer::<T>()?, input.buffer::<T>()?);
                Tensor::written(dy.device(), input.shape(), |dx| {
                    cuda::activation_backward(kind, dx, dy, from, None, input.len())
                })
            },
        )?;
        sink.input(slot, dx)
    }
}
