//! Quantities of per-sample gradients of a parameter, without storing the gradients: the inner product with a given
//! gradient, the squared norm, and the weighted sum over the samples, all from the rows that the backward pass provides
//! (method.md, "The fused meta-gradient").
//!
//! A sample's values depend only on its own rows: they are bit-identical in any batch and in any order.

#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        Float, Tensor,
        autograd::contributions::{
            Contribution,
            cuda::{Columns, add_scaled},
        },
        cuda::{Buffer, DeviceFloat},
        dispatch::{with_float, with_number},
        ops::expect_shape,
    },
    error::{Error, Result},
};

/// How the quantities of a linear layer are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In tiles of the weight gradient, formed per sample.
    InTile,
    /// The inner product by one more product, the norm from the two Gram matrices, the weighted sum as in plain
    /// training.
    Projected,
}

impl Form {
    /// Cost of the sums over a tile, in multiplications per element of the weight: `cargo bench --bench meta_gradient`
    /// shows where the two forms break even.
    const TILE_SUMS: usize = 32;

    /// The cheaper form on the CPU for `rows` rows per sample: the tile has a fixed cost per element of the
    /// weight, the projection and the Gram matrices one that grows with the rows.
    pub(crate) fn cheaper(rows: usize, inputs: usize, outputs: usize) -> Self {
        let weight = inputs * outputs;
        if rows * weight + rows * rows * (inputs + outputs) < Self::TILE_SUMS * weight {
            Self::Projected
        } else {
            Self::InTile
        }
    }
}

/// The quantities requested of each per-sample gradient of one parameter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradientRequest<'a> {
    /// V, of the parameter's shape.
    pub(crate) direction: Option<&'a Tensor>,
    /// Compute the squared norm.
    pub(crate) norms: bool,
    /// `[S]`: the weights of the sum over samples, in f64 on the host, in f32 on a device.
    pub(crate) weights: Option<&'a Tensor>,
}

/// The results, `[S]`: in f64 on the host, in f32 on a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct SampleProducts {
    /// `⟨g_i, V⟩`
    pub(crate) products: Option<Tensor>,
    /// `‖g_i‖²`
    pub(crate) squared_norms: Option<Tensor>,
}

/// Computes everything requested from one parameter's contribution of `samples` samples; the weighted sum is added to
/// `sum`, which starts as `None`.
///
/// # Errors
/// If the sizes do not match or the tensors are on different devices.
pub(crate) fn meta_gradient(
    asked: GradientRequest<'_>,
    sum: &mut Option<Tensor>,
    value: &Tensor,
    contribution: &Contribution<'_>,
    samples: usize,
) -> Result<SampleProducts> {
    if let Some(direction) = asked.direction {
        expect_shape("meta_gradient", "the direction", direction, value.shape())?;
    }
    if let Some(weights) = asked.weights {
        expect_shape("meta_gradient", "the weights", weights, &[samples])?;
    }
    match value.device() {
        None => with_float!(value.dtype(), "meta_gradient", T => {
            on_host::<T>(asked, sum, value, contribution, samples)
        }),
        Some(_) => with_number!(contribution.rows().dtype(), "meta_gradient", T => {
            on_device::<T>(asked, sum, value, contribution, samples)
        }),
    }
}

fn on_host<T: Float>(
    asked: GradientRequest<'_>,
    sum: &mut Option<Tensor>,
    value: &Tensor,
    contribution: &Contribution<'_>,
    samples: usize,
) -> Result<SampleProducts> {
    let weighted = match asked.weights {
        Some(weights) => {
            let sum = sum.get_or_insert_with(|| Tensor::zeros(value.shape(), value.dtype()));
            Some((sum.as_mut_slice::<T>()?, weights.as_slice::<f64>()?))
        }
        None => None,
    };
    let direction = asked.direction.map(Tensor::as_slice::<T>).transpose()?;
    let wanted = cpu::CpuRequest { direction, norms: asked.norms, sum: weighted };
    let found = match *contribution {
        Contribution::Product { input, d_output } => {
            let inputs = input.shape().last().copied().unwrap_or(1).max(1);
            let rows = cpu::LinearRows {
                input: input.as_slice()?,
                d_output: d_output.as_slice()?,
                samples,
                inputs,
                outputs: value.len() / inputs,
            };
            cpu::linear(wanted, rows, None)
        }
        Contribution::PerSample { d_value } => cpu::per_sample(wanted, d_value.as_slice()?, samples),
        Contribution::Sum { .. } | Contribution::Gather { .. } => {
            let gradients = cpu::gradients::<T>(contribution, samples, value.len())?;
            cpu::per_sample(wanted, &gradients, samples)
        }
    };
    let tensor = |values: Vec<f64>| Tensor::new(&[samples], values);
    Ok(SampleProducts {
        products: asked.direction.map(|_| tensor(found.products)).transpose()?,
        squared_norms: asked.norms.then(|| tensor(found.squared_norms)).transpose()?,
    })
}

fn on_device<T: DeviceFloat>(
    asked: GradientRequest<'_>,
    sum: &mut Option<Tensor>,
    value: &Tensor,
    contribution: &Contribution<'_>,
    samples: usize,
) -> Result<SampleProducts> {
    let rows = contribution.rows().buffer::<T>()?;
    let device = rows.device();
    let fresh = sum.is_none();
    let weighted = match asked.weights {
        Some(weights) => {
            let sum = match sum {
                Some(sum) => sum,
                None => {
                    sum.insert(Tensor::from_buffer(value.shape(), device.uninitialized::<f32>(value.len())?)?)
                }
            };
            Some(cuda::WeightedSum {
                sum: sum.buffer_mut::<f32>()?,
                weights: weights.buffer::<f32>()?,
                accumulate: !fresh,
            })
        }
        None => None,
    };
    let numbers = |wanted: bool| wanted.then(|| device.uninitialized::<f32>(samples)).transpose();
    let mut products = numbers(asked.direction.is_some())?;
    let mut squared_norms = numbers(asked.norms)?;
    let wanted = cuda::DeviceRequest {
        direction: asked.direction.map(Tensor::buffer::<f32>).transpose()?,
        products: products.as_mut(),
        squared_norms: squared_norms.as_mut(),
        sum: weighted,
    };
    match *contribution {
        Contribution::Product { input, d_output } => {
            let inputs = input.shape().last().copied().unwrap_or(1).max(1);
            let outputs = value.len() / inputs;
            let sizes = cuda::ProductSizes {
                samples,
                rows: d_output.len() / (outputs * samples).max(1),
                outputs,
                inputs,
            };
            cuda::meta_gradient(wanted, input.buffer::<T>()?, rows, sizes)?;
        }
        Contribution::PerSample { .. } => cuda::per_sample(wanted, rows)?,
        Contribution::Sum { .. } | Contribution::Gather { .. } => {
            cuda::per_sample(wanted, &gradients_on_device::<T>(contribution, samples, value.len())?)?;
        }
    }
    let tensor = |numbers: Option<Buffer<f32>>| {
        numbers.map(|numbers| Tensor::from_buffer(&[samples], numbers)).transpose()
    };
    Ok(SampleProducts { products: tensor(products)?, squared_norms: tensor(squared_norms)? })
}

/// Per-sample gradients of a vector or a table of `count` elements, `[S, N]`: in the rows' dtype on the host, in f32 on
/// a device.
///
/// # Errors
/// If the sizes do not match, the tensors are on different devices, or the parameter is a linear layer's weight.
pub(crate) fn gradients(contribution: &Contribution<'_>, samples: usize, count: usize) -> Result<Tensor> {
    let rows = contribution.rows();
    if matches!(contribution, Contribution::Product { .. }) {
        return Err(Error::invalid("the gradients of a linear layer's weight are not kept for each sample"));
    }
    let shape = [samples, count];
    if rows.device().is_none() {
        return with_float!(rows.dtype(), "meta_gradient", T => {
            Tensor::new(&shape, cpu::gradients::<T>(contribution, samples, count)?)
        });
    }
    with_number!(rows.dtype(), "meta_gradient", T => {
        Tensor::from_buffer(&shape, gradients_on_device::<T>(contribution, samples, count)?)
    })
}

fn gradients_on_device<T: DeviceFloat>(
    contribution: &Contribution<'_>,
    samples: usize,
    count: usize,
) -> Result<Buffer<f32>> {
    let rows = contribution.rows();
    let d = rows.buffer::<T>()?;
    let device = d.device();
    let mut gradients = device.uninitialized::<f32>(samples * count)?;
    match *contribution {
        Contribution::Sum { column, .. } => {
            let width = rows.shape().last().copied().unwrap_or(1);
            let columns = Columns { width, first: column };
            cuda::sample_column_sums(&mut gradients, d, columns, samples)?;
        }
        Contribution::Gather { rows, .. } => {
            cuda::sample_gather_sums(&mut gradients, d, rows.on(device)?, samples)?;
        }
        Contribution::PerSample { .. } | Contribution::Product { .. } => {
            gradients.clear()?;
            add_scaled(&mut gradients, d, 1.0)?;
        }
    }
    Ok(gradients)
}

/// `V / (√(v·factors[0]) + factors[1])` with the optimizer's second moment `v`: the direction in which AdamW moves
/// along V. `factors` `[2]` are in f64 on the host, in f32 on a device; the result is all zeros where the first is 0.
///
/// # Errors
/// If the sizes do not match or the tensors are on different devices.
pub(crate) fn precondition(v: &Tensor, second: &Tensor, factors: &Tensor) -> Result<Tensor> {
    expect_shape("precondition", "the second moment", second, v.shape())?;
    expect_shape("precondition", "the factors", factors, &[2])?;
    if v.device().is_some() {
        let (from, second, factors) = (v.buffer::<f32>()?, second.buffer::<f32>()?, factors.buffer::<f32>()?);
        return Tensor::written(from.device(), v.shape(), |to| cuda::precondition(to, from, second, factors));
    }
    let factors = factors.as_slice::<f64>()?;
    with_float!(v.dtype(), "precondition", T => cpu::precondition::<T>(v, second, [factors[0], factors[1]]))
}

/// Column sums of `[P, S]`, `[S]`: one sample's values over all parameters, in their order.
///
/// # Errors
/// If the device fails.
pub(crate) fn totals(numbers: &Tensor) -> Result<Tensor> {
    let samples = numbers.dim(1);
    if numbers.device().is_some() {
        let matrix = numbers.buffer::<f32>()?;
        return Tensor::written(matrix.device(), &[samples], |to| cuda::totals(to, matrix));
    }
    let mut sums = vec![0.0; samples];
    for row in numbers.as_slice::<f64>()?.chunks(samples.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, number)| *sum += number);
    }
    Tensor::new(&[samples], sums)
}

/// Stacks `P` rows `[S]` to `[P, S]`.
///
/// # Errors
/// If they are on different devices.
pub(crate) fn stacked(rows: &[Tensor]) -> Result<Tensor> {
    let samples = rows.first().map_or(0, Tensor::len);
    let shape = [rows.len(), samples];
    let Some(device) = rows.first().and_then(Tensor::device) else {
        let numbers = rows.iter().map(Tensor::as_slice::<f64>).collect::<Result<Vec<_>>>()?;
        return Tensor::new(&shape, numbers.concat());
    };
    Tensor::written::<f32>(device, &shape, |to| {
        rows.iter()
            .enumerate()
            .try_for_each(|(at, row)| to.copy_range(at * samples, row.buffer()?, 0..samples))
    })
}
