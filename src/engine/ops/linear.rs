//! `y = x·Wᵀ + b`, the weight as PyTorch keeps it.

use crate::{
    engine::{
        Float, ParameterId, Tape, Tensor, Var,
        ops::{last_dim, matmul},
        tape::{Operation, RowOwner, Sink, Slot},
        visitors::Contribution,
    },
    error::{Error, Result},
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
    let value = with_float!(x.value().dtype(), "linear", T => forward::<T>(tape, x.value(), weight, biases))?;
    let (slot, input, owner, biases) = (tape.slot(x), x.value().clone(), x.owner(), biases.to_vec());
    Ok(tape.push(value, owner, &[slot], true, || Linear { input, slot, owner, weight, biases }))
}

fn forward<T: Float>(tape: &Tape<'_>, x: &Tensor, weight: ParameterId, biases: &[Bias]) -> Result<Tensor> {
    let parameters = tape.parameters();
    let w = parameters.value(weight);
    let inputs = last_dim("linear", x)?;
    let &[outputs, expected] = w.shape() else {
        return Err(Error::shape("linear", format!("{} is not a matrix", parameters.name(weight))));
    };
    if inputs != expected {
        let name = parameters.name(weight);
        return Err(Error::shape(
            "linear",
            format!("{name} takes {expected} channels, but the input has {inputs}"),
        ));
    }
    let rows = x.len() / inputs;
    let mut row = vec![T::ZERO; outputs];
    for bias in biases {
        let values = parameters.value(bias.parameter).as_slice::<T>()?;
        let Some(place) = row.get_mut(bias.column..bias.column + values.len()) else {
            let name = parameters.name(bias.parameter);
            return Err(Error::shape("linear", format!("{name} reaches beyond {outputs} outputs")));
        };
        place.copy_from_slice(values);
    }
    // The bias is laid down first and the product added to it, which saves a pass over the output.
    let mut y = if biases.is_empty() { vec![T::ZERO; rows * outputs] } else { row.repeat(rows) };
    matmul::linear_forward(
        &mut y,
        x.as_slice::<T>()?,
        w.as_slice::<T>()?,
        inputs,
        outputs,
        !biases.is_empty(),
    );
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    Tensor::new(&shape, y)
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn d_input<T: Float>(d_output: &Tensor, weight: &Tensor, shape: &[usize]) -> Result<Tensor> {
            let (outputs, inputs) = (weight.dim(0), weight.dim(1));
            let mut dx = vec![T::ZERO; shape.iter().product()];
            let (dy, w) = (d_output.as_slice::<T>()?, weight.as_slice::<T>()?);
            matmul::linear_backward_input(&mut dx, dy, w, inputs, outputs);
            Tensor::new(shape, dx)
        }
        let product = Contribution::Product { input: &self.input, d_output: &d_output };
        sink.parameter(self.weight, self.owner, &product)?;
        for bias in &self.biases {
            let sum = Contribution::Sum { d_output: &d_output, column: bias.column };
            sink.parameter(bias.parameter, self.owner, &sum)?;
        }
        if self.slot.wanted() {
            let weight = sink.parameters().value(self.weight);
            let dx = with_float!(d_output.dtype(), "linear", T => d_input::<T>(&d_output, weight, self.input.shape()))?;
            sink.input(self.slot, dx)?;
        }
        Ok(())
    }
}
