//! `y = x·Wᵀ + b`, with the weight in PyTorch's layout.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::{
    engine::{
        ParameterId, Parameters, RowOwner, Tape, Tensor, Var,
        autograd::{
            contributions::Contribution,
            tape::{Operation, Sink, Slot},
        },
        dispatch::dispatch,
        ops::last_dim,
    },
    error::{Error, Result},
};

/// A bias and the first output column that it is added to. A packed query-key-value projection has two: the key's bias
/// is fixed at zero (upstream.md, B2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// The bias, `[N]`.
    pub parameter: ParameterId,
    /// Added to columns `column..column + N`.
    pub column: usize,
}

/// [`linear`] without a tape, for inference-only networks: the rows of `x` `[R, I]` times `weight` `[O, I]`, plus
/// `bias` `[O]`, in f32.
///
/// # Errors
/// If the sizes do not match, a tensor is not f32, or the device fails.
pub(crate) fn linear_rows(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let [outputs, inputs] = [weight.dim(0), weight.dim(1)];
    let shape = [x.len() / inputs.max(1), outputs];
    match x.device() {
        None => cpu::linear_rows(x, weight, bias, shape),
        Some(device) => Tensor::written(device, &shape, |y| {
            let (x, weight) = (x.buffer::<f32>()?, weight.buffer::<f32>()?);
            let bias = bias.map(Tensor::buffer::<f32>).transpose()?;
            x.device().product(y, [shape[0], outputs, inputs], (x, false), (weight, true), bias, 1.0, 0.0)
        }),
    }
}

struct Linear {
    input: Tensor,
    slot: Slot,
    owner: RowOwner,
    weight: ParameterId,
    biases: Vec<Bias>,
}

/// Multiplies the rows of `x` `[.., I]` by `weight` `[O, I]` and adds the biases: `[.., O]`. Accumulates in the input's
/// dtype.
///
/// # Errors
/// If the sizes do not match.
pub fn linear(tape: &mut Tape<'_>, x: &Var, weight: ParameterId, biases: &[Bias]) -> Result<Var> {
    let (parameters, input) = (tape.parameters(), x.value());
    let value = dispatch!("linear", input,
        cpu T => cpu::forward::<T>(parameters, input, weight, biases),
        cuda T => cuda::forward::<T>(parameters, input, weight, biases)
    )?;
    let (slot, input, owner, biases) = (tape.slot(x), x.value().clone(), x.owner(), biases.to_vec());
    Ok(tape.push(value, owner, &[slot], true, || Linear { input, slot, owner, weight, biases }))
}

/// Inputs and outputs of a weight `[O, I]`, checked against `x`.
fn sizes(parameters: &Parameters, x: &Tensor, weight: ParameterId) -> Result<[usize; 2]> {
    let inputs = last_dim("linear", x)?;
    let &[outputs, expected] = parameters.value(weight).shape() else {
        return Err(Error::shape("linear", format!("{} is not a matrix", parameters.name(weight))));
    };
    if inputs != expected {
        let name = parameters.name(weight);
        return Err(Error::shape(
            "linear",
            format!("{name} takes {expected} channels, but the input has {inputs}"),
        ));
    }
    Ok([inputs, outputs])
}

/// The shape of `x` with another last dimension.
fn output_shape(x: &Tensor, outputs: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    shape
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
            let weight = sink.parameters().value_as(self.weight, d_output.dtype())?;
            let dx = dispatch!("linear", d_output,
                cpu T => cpu::backward_input::<T>(&d_output, weight, self.input.shape()),
                cuda T => cuda::backward_input::<T>(&d_output, weight, self.input.shape())
            )?;
            sink.input(self.slot, dx)?;
        }
        Ok(())
    }
}
