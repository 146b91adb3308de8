//! Layer norm without learned scale or shift: `y = (x − mean) / √(variance + ε)` over the channels.

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

struct LayerNorm {
    /// The output, `[.., C]`: all that the backward needs beside the scale.
    output: Tensor,
    /// `1 / √(variance + ε)`, one a row.
    inverse_deviation: Tensor,
    slot: Slot,
}

/// Normalises each row of `x` `[.., C]`; the variance is the biased one. Released ε: 1e-6.
///
/// # Errors
/// If `x` has no channels.
pub fn layer_norm(tape: &mut Tape<'_>, x: &Var, epsilon: f64) -> Result<Var> {
    let (output, inverse_deviation) =
        with_float!(x.value().dtype(), "layer_norm", T => cpu::forward::<T>(x.value(), epsilon))?;
    let (slot, value) = (tape.slot(x), output.clone());
    Ok(tape.push(value, x.owner(), &[slot], false, || LayerNorm { output, inverse_deviation, slot }))
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { output, inverse_deviation, slot } = *self;
        let dx = with_float!(d_output.dtype(), "layer_norm", T => {
            cpu::backward::<T>(&output, &inverse_deviation, d_output)
        })?;
        sink.input(slot, dx)
    }
}
