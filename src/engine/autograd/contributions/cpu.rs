//! CPU reference of the parameter-gradient reductions.

use rayon::prelude::*;

use crate::{
    engine::{Float, Tensor, autograd::contributions::Contribution, matmul},
    error::Result,
};

/// Columns that one task sums.
const COLUMNS: usize = 64;

/// Values that one task adds.
const CHUNK: usize = 16_384;

/// Adds `more` to `sum`.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn add<T: Float>(sum: &mut Tensor, more: &Tensor) -> Result<()> {
    let sum = sum.as_mut_slice::<T>()?.par_chunks_mut(CHUNK);
    sum.zip(more.as_slice::<T>()?.par_chunks(CHUNK)).for_each(|(sum, more)| {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += *more;
        }
    });
    Ok(())
}

/// Adds a contribution to a gradient.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn accumulate<T: Float>(sum: &mut Tensor, contribution: &Contribution<'_>) -> Result<()> {
    let sum = sum.as_mut_slice::<T>()?;
    match *contribution {
        Contribution::Product { input, d_output } => {
            let inputs = input.shape()[input.shape().len() - 1];
            let outputs = sum.len() / inputs;
            matmul::linear_backward_weight(
                sum,
                d_output.as_slice::<T>()?,
                input.as_slice::<T>()?,
                inputs,
                outputs,
            );
        }
        Contribution::Sum { d_output, column } => {
            let width = d_output.shape()[d_output.shape().len() - 1];
            let d_output = d_output.as_slice::<T>()?;
            sum.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, sum)| {
                let first = column + task * COLUMNS;
                for row in d_output.chunks(width) {
                    for (sum, value) in sum.iter_mut().zip(&row[first..]) {
                        *sum += *value;
                    }
                }
            });
        }
        Contribution::Gather { d_output, rows } => {
            let width = d_output.shape()[d_output.shape().len() - 1];
            let index = rows.index().iter().cycle();
            for (row, &at) in d_output.as_slice::<T>()?.chunks(width).zip(index) {
                if at != u32::MAX {
                    for (sum, value) in sum[at as usize * width..][..width].iter_mut().zip(row) {
                        *sum += *value;
                    }
                }
            }
        }
        Contribution::PerSample { d_value } => {
            let count = sum.len();
            for row in d_value.as_slice::<T>()?.chunks(count) {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += *value;
                }
            }
        }
    }
    Ok(())
}

/// Scales each sample's rows by its weight.
///
/// # Errors
/// If the dtype of `rows` is not `T`.
pub(crate) fn scale_samples<T: Float>(rows: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let share = (rows.len() / weights.len().max(1)).max(1);
    let mut scaled = rows.clone();
    scaled.as_mut_slice::<T>()?.par_chunks_mut(share).zip(weights).for_each(|(rows, &weight)| {
        let weight = T::of(weight);
        for value in rows {
            *value *= weight;
        }
    });
    Ok(scaled)
}
