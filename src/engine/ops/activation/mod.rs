//! Elementwise non-linearities: the two GELUs of the released code, SiLU and the sigmoid.

pub mod cpu;
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        tape::{Operation, Sink, Slot},
    },
    error::Result,
    with_float,
};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`: the blocks' MLP and the instance head.
    GeluTanh,
    /// `x·Φ(x)` with the exact error function: the batch head (upstream.md, A14).
    GeluErf,
    /// `x·sigmoid(x)`: the shared modulation.
    Silu,
    /// `1/(1 + e⁻ˣ)`.
    Sigmoid,
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
    let value = with_float!(x.value().dtype(), "activation", T => cpu::forward::<T>(x.value(), kind))?;
    let (slot, input) = (tape.slot(x), x.value().clone());
    Ok(tape.push(value, x.owner(), &[slot], false, || Activate { input, kind, slot }))
}

impl Operation for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { input, kind, slot } = *self;
        let dx =
            with_float!(d_output.dtype(), "activation", T => cpu::backward::<T>(&input, kind, d_output))?;
        sink.input(slot, dx)
    }
}
