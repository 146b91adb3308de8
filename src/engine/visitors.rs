//! What a parameter's gradient is used for: chosen at backward time, not built into the ops.
//!
//! An op hands every parameter's contribution over as (input rows, output-gradient rows, the sample each row belongs
//! to). [`Accumulate`] sums them, as plain training does; [`Weighted`] scales each sample's rows by its weight first.
//! Inner products and norms of per-sample gradients need no more than another visitor.

use crate::{
    engine::{
        float::Float,
        ops::matmul,
        parameters::{ParameterId, Parameters},
        tape::RowOwner,
        tensor::Tensor,
    },
    error::{Error, Result},
    with_float,
};

/// One parameter's part of a gradient, before any sum over rows. `R` rows are those of the output.
#[derive(Clone, Debug)]
pub enum Contribution<'a> {
    /// Of a matrix `[O, I]`: `Σ_r d_output[r] ⊗ input[r]`.
    Product {
        /// `[R, I]`.
        input: &'a Tensor,
        /// `[R, O]`.
        d_output: &'a Tensor,
    },
    /// Of a vector `[N]` that was added to columns `column..column + N` of each row: `Σ_r d_output[r, column..]`.
    Sum {
        /// `[R, O]`.
        d_output: &'a Tensor,
        /// The first column that the parameter was added to.
        column: usize,
    },
    /// Of a table `[K, N]` whose row `index[r]` was added to row `r`; `u32::MAX` where none was.
    Gather {
        /// `[R, N]`.
        d_output: &'a Tensor,
        /// `R` row numbers of the table.
        index: &'a [u32],
    },
    /// Already summed over a sample's rows: `[S, N]` for `S` samples.
    PerSample {
        /// `[S, N]`, the parameter having `N` elements.
        d_value: &'a Tensor,
    },
}

/// Receives every parameter's contribution during a backward pass.
pub trait GradientVisitor {
    /// One contribution; a parameter used several times is visited several times.
    ///
    /// # Errors
    /// If the visitor cannot use it: an error, never silently left out.
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()>;
}

/// Drops every contribution: for gradients of inputs alone.
pub struct Ignore;

impl GradientVisitor for Ignore {
    fn visit(&mut self, _: &Parameters, _: ParameterId, _: RowOwner, _: &Contribution<'_>) -> Result<()> {
        Ok(())
    }
}

/// Gradients of a network's parameters, in their order; `None` where nothing has arrived.
pub type Gradients = Vec<Option<Tensor>>;

/// Sums every contribution over all rows: the gradient of plain training.
#[derive(Default)]
pub struct Accumulate {
    /// The sums so far.
    pub gradients: Gradients,
}

impl GradientVisitor for Accumulate {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        _: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        self.gradients.resize(parameters.len(), None);
        let value = parameters.value(id);
        let sum = self.gradients[id.0].get_or_insert_with(|| Tensor::zeros(value.shape(), value.dtype()));
        with_float!(value.dtype(), "accumulate", T => accumulate::<T>(sum, contribution))
    }
}

/// Sums every contribution with the rows of sample `i` scaled by its weight: `Σ_i W_i g_i` from one backward pass of
/// `Σ_i ℓ_i`.
pub struct Weighted<'a> {
    weights: &'a [f64],
    inner: Accumulate,
}

impl<'a> Weighted<'a> {
    /// One weight a sample of the batch.
    pub fn new(weights: &'a [f64]) -> Self {
        Self { weights, inner: Accumulate::default() }
    }

    /// The weighted sums.
    pub fn into_gradients(self) -> Gradients {
        self.inner.gradients
    }

    fn scaled(&self, rows: &Tensor, rows_per_sample: usize) -> Result<Tensor> {
        fn run<T: Float>(values: &mut Tensor, weights: &[f64]) -> Result<()> {
            let share = values.len() / weights.len();
            for (rows, &weight) in values.as_mut_slice::<T>()?.chunks_mut(share.max(1)).zip(weights) {
                let weight = T::of(weight);
                for value in rows {
                    *value *= weight;
                }
            }
            Ok(())
        }
        let held = rows.len() / rows.shape().last().copied().unwrap_or(1).max(1);
        if held != rows_per_sample * self.weights.len() {
            return Err(Error::shape(
                "weighted",
                format!("{held} rows, but {} weights for {rows_per_sample} rows each", self.weights.len()),
            ));
        }
        let mut values = rows.clone();
        with_float!(rows.dtype(), "weighted", T => run::<T>(&mut values, self.weights))?;
        Ok(values)
    }
}

impl GradientVisitor for Weighted<'_> {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        let RowOwner::Samples { rows_per_sample } = owner else {
            return Err(Error::invalid(format!(
                "{} mixes the samples of a batch, so its gradient has no per-sample parts; weigh the losses instead",
                parameters.name(id)
            )));
        };
        let scaled;
        let weighted = match *contribution {
            Contribution::Product { input, d_output } => {
                scaled = self.scaled(d_output, rows_per_sample)?;
                Contribution::Product { input, d_output: &scaled }
            }
            Contribution::Sum { d_output, column } => {
                scaled = self.scaled(d_output, rows_per_sample)?;
                Contribution::Sum { d_output: &scaled, column }
            }
            Contribution::Gather { d_output, index } => {
                scaled = self.scaled(d_output, rows_per_sample)?;
                Contribution::Gather { d_output: &scaled, index }
            }
            Contribution::PerSample { d_value } => {
                scaled = self.scaled(d_value, 1)?;
                Contribution::PerSample { d_value: &scaled }
            }
        };
        self.inner.visit(parameters, id, owner, &weighted)
    }
}

fn accumulate<T: Float>(sum: &mut Tensor, contribution: &Contribution<'_>) -> Result<()> {
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
            let count = sum.len();
            for row in d_output.as_slice::<T>()?.chunks(width) {
                for (sum, value) in sum.iter_mut().zip(&row[column..column + count]) {
                    *sum += *value;
                }
            }
        }
        Contribution::Gather { d_output, index } => {
            let width = d_output.shape()[d_output.shape().len() - 1];
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
