//! Adds contributions of parameters to their gradients: the building blocks of gradient visitors.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::sync::OnceLock;

use crate::{
    engine::{
        Tensor,
        cuda::{Buffer, Device, DeviceFloat},
        dispatch::{dispatch, with_float, with_number},
    },
    error::{Error, Result},
};
use cuda::{Columns, GatherIndex, residual_forward};

/// Which row of a table was added to each row of a sample.
#[derive(Debug)]
pub struct TableRows {
    index: Vec<u32>,
    table: usize,
    on_device: OnceLock<(Device, GatherIndex)>,
}

impl TableRows {
    /// Row `index[t]` of a table with `table` rows was added to row `t` of each sample; `u32::MAX` means none.
    pub(crate) fn new(index: Vec<u32>, table: usize) -> Self {
        Self { index, table, on_device: OnceLock::new() }
    }

    /// The table row for each row of a sample.
    pub(crate) fn index(&self) -> &[u32] {
        &self.index
    }

    pub(crate) fn on(&self, device: &Device) -> Result<&GatherIndex> {
        let (held, index) = match self.on_device.get() {
            Some(held) => held,
            None => {
                let made = GatherIndex::new(device, &self.index, self.table)?;
                self.on_device.get_or_init(|| (device.clone(), made))
            }
        };
        if held.is(device) {
            return Ok(index);
        }
        Err(Error::invalid("a network cannot be used on several devices; build one for each"))
    }
}

/// A parameter's gradient in factored form, before any sum over rows. `R` is the number of rows of the op's output.
#[derive(Clone, Debug)]
pub enum Contribution<'a> {
    /// For a matrix `[O, I]`: `Σ_r d_output[r] ⊗ input[r]`.
    Product {
        /// `[R, I]`.
        input: &'a Tensor,
        /// `[R, O]`.
        d_output: &'a Tensor,
    },
    /// For a vector `[N]` that was added to columns `column..column + N` of each row: `Σ_r d_output[r, column..]`.
    Sum {
        /// `[R, O]`.
        d_output: &'a Tensor,
        /// The first column that the parameter was added to.
        column: usize,
    },
    /// For a table `[K, N]`, one row of which was added to each row.
    Gather {
        /// `[R, N]`.
        d_output: &'a Tensor,
        /// Which table row was added to which row.
        rows: &'a TableRows,
    },
    /// Already summed over a sample's rows: `[S, N]` for `S` samples.
    PerSample {
        /// `[S, N]`, where the parameter has `N` elements.
        d_value: &'a Tensor,
    },
}

impl Contribution<'_> {
    /// The rows of the gradient.
    pub fn rows(&self) -> &Tensor {
        match *self {
            Self::Product { d_output, .. } | Self::Sum { d_output, .. } | Self::Gather { d_output, .. } => {
                d_output
            }
            Self::PerSample { d_value } => d_value,
        }
    }
}

/// Adds `more` to `sum`, of the same shape, dtype and device.
///
/// # Errors
/// If they differ in one of these, or the device fails.
pub(crate) fn add(sum: &mut Tensor, more: &Tensor) -> Result<()> {
    if sum.shape() != more.shape() {
        return Err(Error::shape(
            "add",
            format!("cannot add gradients of shapes {:?} and {:?}", sum.shape(), more.shape()),
        ));
    }
    dispatch!("add", sum,
        cpu T => cpu::add::<T>(sum, more),
        cuda T => residual_forward(sum.buffer_mut::<T>()?, None, more.buffer::<T>()?, None),
    )
}

/// Adds a contribution to a gradient, which starts as `None` and is stored like the parameter's `value`: in its dtype
/// on the host, in f32 on a device.
///
/// # Errors
/// If the sizes do not match, or the tensors are on different devices.
pub(crate) fn accumulate(
    sum: &mut Option<Tensor>,
    value: &Tensor,
    contribution: &Contribution<'_>,
) -> Result<()> {
    let Some(device) = value.device() else {
        let sum = sum.get_or_insert_with(|| Tensor::zeros(value.shape(), value.dtype()));
        return with_float!(value.dtype(), "accumulate", T => cpu::accumulate::<T>(sum, contribution));
    };
    // The first write overwrites, so the memory need not be cleared.
    let fresh = sum.is_none();
    let sum = match sum {
        Some(sum) => sum,
        None => sum.insert(Tensor::from_buffer(value.shape(), device.uninitialized::<f32>(value.len())?)?),
    };
    with_number!(contribution.rows().dtype(), "accumulate", T => {
        on_device::<T>(sum.buffer_mut::<f32>()?, fresh, contribution)
    })
}

fn on_device<T: DeviceFloat>(
    sum: &mut Buffer<f32>,
    fresh: bool,
    contribution: &Contribution<'_>,
) -> Result<()> {
    match *contribution {
        Contribution::Product { input, d_output } => {
            let (input, d) = (input.buffer::<T>()?, d_output.buffer::<T>()?);
            let outputs = d_output.shape().last().copied().unwrap_or(1).max(1);
            let sizes = [outputs, sum.len() / outputs, d.len() / outputs];
            let beta = if fresh { 0.0 } else { 1.0 };
            d.device().product(sum, sizes, (d, true), (input, false), None, 1.0, beta)
        }
        Contribution::Sum { d_output, column } => {
            let width = d_output.shape().last().copied().unwrap_or(1);
            cuda::column_sum(sum, d_output.buffer::<T>()?, Columns { width, first: column }, !fresh)
        }
        Contribution::Gather { d_output, rows } => {
            if fresh {
                sum.clear()?;
            }
            let d = d_output.buffer::<T>()?;
            cuda::gather_sum(sum, d, rows.on(d.device())?)
        }
        Contribution::PerSample { d_value } => {
            let stride = sum.len();
            cuda::sum_samples(sum, d_value.buffer::<T>()?, None, stride, !fresh)
        }
    }
}

/// Scales the rows of sample `i` by weight `i`: `rows` `[B, ..]`, `weights` `[B]` in f64 on the host, in f32 on a
/// device.
///
/// # Errors
/// If the sizes do not match, or the tensors are on different devices.
pub(crate) fn scale_samples(rows: &Tensor, weights: &Tensor) -> Result<Tensor> {
    dispatch!("scale_samples", rows,
        cpu T => cpu::scale_samples::<T>(rows, weights.as_slice::<f64>()?),
        cuda T => {
            let x = rows.buffer::<T>()?;
            let weights = weights.buffer::<f32>()?;
            Tensor::written(x.device(), rows.shape(), |y| cuda::scale_samples(y, Some(x), weights))
        }
    )
}
