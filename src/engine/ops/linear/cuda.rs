//! The linear layer on a device: matrix products with the bias fused into the epilogue.

use super::{Bias, output_shape, sizes};
use crate::{
    engine::{
        ParameterId, Parameters, Tensor,
        cuda::{Buffer, DeviceFloat},
    },
    error::{Error, Result},
};

/// `x·Wᵀ` plus the biases, in the dtype of `x`, accumulated in f32.
///
/// # Errors
/// If the sizes do not match, the weights are on another device or not available in that dtype, or the device fails.
pub(crate) fn forward<T: DeviceFloat>(
    parameters: &Parameters,
    x: &Tensor,
    weight: ParameterId,
    biases: &[Bias],
) -> Result<Tensor> {
    let [inputs, outputs] = sizes(parameters, x, weight)?;
    let from = x.buffer::<T>()?;
    let w = parameters.value_as(weight, T::DTYPE)?.buffer::<T>()?;
    let own = |bias: &Bias| parameters.value_as(bias.parameter, T::DTYPE)?.buffer::<T>();
    let row;
    let bias = match biases {
        [] => None,
        [bias] if own(bias)?.len() == outputs => Some(own(bias)?),
        several => {
            row = joined(from, outputs, several, own)?;
            Some(&row)
        }
    };
    Tensor::written(from.device(), &output_shape(x, outputs), |y| {
        let sizes = [x.len() / inputs, outputs, inputs];
        from.device().product(y, sizes, (from, false), (w, true), bias, 1.0, 0.0)
    })
}

/// One row of all outputs, with each bias at its column.
fn joined<'a, T: DeviceFloat>(
    near: &Buffer<T>,
    outputs: usize,
    biases: &[Bias],
    own: impl Fn(&Bias) -> Result<&'a Buffer<T>>,
) -> Result<Buffer<T>> {
    let mut row = near.device().zeros::<T>(outputs)?;
    for bias in biases {
        let values = own(bias)?;
        if bias.column + values.len() > outputs {
            return Err(Error::shape("linear", format!("a bias reaches beyond {outputs} outputs")));
        }
        row.copy_range(bias.column, values, 0..values.len())?;
    }
    Ok(row)
}

/// `dx = dy·W` in the shape of the input.
///
/// # Errors
/// If a tensor is on another device or its dtype is not `T`, or the device fails.
pub(crate) fn backward_input<T: DeviceFloat>(
    d_output: &Tensor,
    weight: &Tensor,
    shape: &[usize],
) -> Result<Tensor> {
    let (outputs, inputs) = (weight.dim(0), weight.dim(1));
    let (dy, w) = (d_output.buffer::<T>()?, weight.buffer::<T>()?);
    Tensor::written::<T>(dy.device(), shape, |dx| {
        let sizes = [dy.len() / outputs, inputs, outputs];
        dy.device().product(dx, sizes, (dy, false), (w, false), None, 1.0, 0.0)
    })
}
