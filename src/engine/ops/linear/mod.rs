//! `y = x·Wᵀ + b`, the weight as PyTorch keeps it.

pub mod cpu;

use crate::{
    engine::{
        ParameterId, Tape, Tensor, Var,
        tape::{Operation, RowOwner, Sink, Slot},
        visitors::Contribution,
    },
    error::Result,
    with_float,
};

/// A bias vector and the first output column it is added to. A packed query-key-value product has two: the key's bias
/// is fixed at zero (upstream.md, B2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// The bias, `[N]`.
    pub parameter: ParameterId,
    /// It is added to columns `column..column + N`.
    pub column: usize,
}

struct Linear {
    input: Tensor,
    slot: Slot,
    owner: RowOwner,
    weight: ParameterId,
    biases: Vec<Bias>,
}

/// Multiplies the rows of `x` `[.., I]` by `weight` `[O, I]` and adds the biases: `[.., O]`. Sums run in the input's type.
///
/// # Errors
/// If the sizes do not fit.
pub fn linear(tape: &mut Tape<'_>, x: &Var, weight: ParameterId, biases: &[Bias]) -> Result<Var> {
    let value = with_float!(x.value().dtype(), "linear", T => cpu::forward::<T>(tape.parameters(), x.value(), weight, biases))?;
    let (slot, input, owner, biases) = (tape.slot(x), x.value().clone(), x.owner(), biases.to_vec());
    Ok(tape.push(value, owner, &[slot], true, || Linear { input, slot, owner, weight, biases }))
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let product = Contribution::Product { input: &self.input, d_output: &d_output };
        sink.parameter(self.weight, self.owner, &product)?;
        for bias in &self.biases {
            let sum = Contribution::Sum { d_output: &d_output, column: bias.column };
            sink.parameter(bias.parameter, self.owner, &sum)?;
        }
        if self.slot.wanted() {
            let weight = sink.parameters().value(self.weight);
            let dx = with_float!(d_output.dtype(), "linear", T => cpu::backward_input::<T>(&d_output, weight, self.input.shape()))?;
            sink.input(self.slot, dx)?;
        }
        Ok(())
    }
}
