//! CPU reference of the linear layer.

use super::{Bias, output_shape, sizes};
use crate::{
    engine::{Float, ParameterId, Parameters, Tensor, matmul},
    error::{Error, Result},
};

/// `x·Wᵀ` plus the biases.
///
/// # Errors
/// If the sizes do not match or a tensor's dtype is not `T`.
pub(crate) fn forward<T: Float>(
    parameters: &Parameters,
    x: &Tensor,
    weight: ParameterId,
    biases: &[Bias],
) -> Result<Tensor> {
    let [inputs, outputs] = sizes(parameters, x, weight)?;
    let w = parameters.value(weight);
    let rows = x.len() / inputs;
    let mut row = vec![T::ZERO; outputs];
    for bias in biases {
        let values = parameters.value(bias.parameter).as_slice::<T>()?;
        let Some(target) = row.get_mut(bias.column..bias.column + values.len()) else {
            let name = parameters.name(bias.parameter);
            return Err(Error::shape("linear", format!("{name} reaches beyond {outputs} outputs")));
        };
        target.copy_from_slice(values);
    }
    let mut y = T::numbers(rows * outputs);
    let bias = (!biases.is_empty()).then_some(row.as_slice());
    matmul::linear_forward(&mut y, x.as_slice::<T>()?, w.as_slice::<T>()?, bias, inputs, outputs);
    Tensor::new(&output_shape(x, outputs), y)
}

/// Rows `[R, I]` to `shape`, `[R, O]`; see [`linear_rows`](super::linear_rows).
///
/// # Errors
/// If a tensor is not f32.
pub(crate) fn linear_rows(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    shape: [usize; 2],
) -> Result<Tensor> {
    let mut y = vec![0.0; shape[0] * shape[1]];
    let bias = bias.map(Tensor::as_slice::<f32>).transpose()?;
    matmul::linear_forward(&mut y, x.as_slice()?, weight.as_slice::<f32>()?, bias, weight.dim(1), shape[1]);
    Tensor::new(&shape, y)
}

/// `dx = dy·W` in the shape of the input.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn backward_input<T: Float>(
    d_output: &Tensor,
    weight: &Tensor,
    shape: &[usize],
) -> Result<Tensor> {
    let (outputs, inputs) = (weight.dim(0), weight.dim(1));
    let mut dx = T::numbers(shape.iter().product());
    let (dy, w) = (d_output.as_slice::<T>()?, weight.as_slice::<T>()?);
    matmul::linear_backward_input(&mut dx, dy, w, inputs, outputs);
    Tensor::new(shape, dx)
}
