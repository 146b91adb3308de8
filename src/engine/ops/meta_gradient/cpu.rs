//! CPU reference, in f64 or f32. Each sample's values are summed in an order that depends only on its own rows.

use rayon::prelude::*;

use super::Form;
use crate::{
    engine::{
        Float, Tensor,
        autograd::contributions::Contribution,
        float::vectorized,
        matmul::{self, Matrix, product},
    },
    error::Result,
};

/// Elements per tile of one sample's gradient, which stays in a core's cache between the product and the sums over it.
const TILE: usize = 1 << 15;
/// Elements summed in `T` before the sum continues in f64.
const BLOCK: usize = 512;

/// The quantities requested of each per-sample gradient of one parameter.
#[derive(Debug)]
pub struct CpuRequest<'a, T> {
    /// V, of the parameter's size: compute the inner product with it.
    pub direction: Option<&'a [T]>,
    /// Compute the squared norm.
    pub norms: bool,
    /// Add the weighted sum over samples to this, with one weight per sample.
    pub sum: Option<(&'a mut [T], &'a [f64])>,
}

/// The results: `[S]` each, zeros if not requested.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuSampleProducts {
    /// `⟨g_i, V⟩`
    pub products: Vec<f64>,
    /// `‖g_i‖²`
    pub squared_norms: Vec<f64>,
}

impl CpuSampleProducts {
    fn new(found: impl Iterator<Item = [f64; 2]>) -> Self {
        let (products, squared_norms) = found.map(|[product, norm]| (product, norm)).unzip();
        Self { products, squared_norms }
    }
}

/// The rows of a linear layer's contribution: those of sample `i` are the `i`-th of `samples` equal parts.
#[derive(Clone, Copy, Debug)]
pub struct LinearRows<'a, T> {
    /// `[S·T, I]`
    pub input: &'a [T],
    /// `[S·T, O]`
    pub d_output: &'a [T],
    /// `S`
    pub samples: usize,
    /// `I`
    pub inputs: usize,
    /// `O`
    pub outputs: usize,
}

impl<'a, T: Float> LinearRows<'a, T> {
    fn of_sample(self) -> usize {
        self.input.len() / (self.inputs * self.samples.max(1))
    }

    fn sample(self, at: usize) -> (&'a [T], &'a [T]) {
        let rows = self.of_sample();
        let input = &self.input[at * rows * self.inputs..][..rows * self.inputs];
        (input, &self.d_output[at * rows * self.outputs..][..rows * self.outputs])
    }
}

/// Inner product with `direction`, squared norm, and `sum += weight · g`, in one pass over `g`. The switches are const
/// generics, so that what is not requested costs nothing.
#[inline(always)]
fn fold<T: Float, const DOT: bool, const NORM: bool, const SUM: bool>(
    g: &[T],
    direction: &[T],
    sum: &mut [T],
    weight: T,
) -> [f64; 2] {
    let mut total = [0.0; 2];
    // Without a direction or a sum the slices are empty and never read.
    let block = |values: &'_ [T], at: usize, len: usize| -> std::ops::Range<usize> {
        if values.is_empty() { 0..0 } else { at..at + len }
    };
    for (number, part) in g.chunks(BLOCK).enumerate() {
        let at = number * BLOCK;
        let along = &direction[block(direction, at, part.len())];
        let range = block(sum, at, part.len());
        let into = &mut sum[range];
        let (mut dots, mut squares) = ([T::ZERO; 16], [T::ZERO; 16]);
        let (body, tail) = part.as_chunks::<16>();
        for (chunk, g) in body.iter().enumerate() {
            if DOT {
                let v = &along[chunk * 16..chunk * 16 + 16];
                for lane in 0..16 {
                    dots[lane] += g[lane] * v[lane];
                }
            }
            if NORM {
                for lane in 0..16 {
                    squares[lane] += g[lane] * g[lane];
                }
            }
            if SUM {
                let sum = &mut into[chunk * 16..chunk * 16 + 16];
                for lane in 0..16 {
                    sum[lane] += weight * g[lane];
                }
            }
        }
        for (lane, g) in tail.iter().enumerate() {
            let at = body.len() * 16 + lane;
            if DOT {
                dots[lane] += *g * along[at];
            }
            if NORM {
                squares[lane] += *g * *g;
            }
            if SUM {
                into[at] += weight * *g;
            }
        }
        for lane in 0..16 {
            total[0] += dots[lane].to_f64();
            total[1] += squares[lane].to_f64();
        }
    }
    total
}

/// Calls [`fold`] with the requested switches.
fn folded<T: Float>(
    g: &[T],
    direction: Option<&[T]>,
    norm: bool,
    sum: Option<&mut [T]>,
    weight: f64,
) -> [f64; 2] {
    let (dot, add) = (direction.is_some(), sum.is_some());
    let (direction, sum, weight) = (direction.unwrap_or_default(), sum.unwrap_or_default(), T::of(weight));
    vectorized(
        #[inline(always)]
        || match (dot, norm, add) {
            (true, true, true) => fold::<T, true, true, true>(g, direction, sum, weight),
            (true, true, false) => fold::<T, true, true, false>(g, direction, sum, weight),
            (true, false, true) => fold::<T, true, false, true>(g, direction, sum, weight),
            (true, false, false) => fold::<T, true, false, false>(g, direction, sum, weight),
            (false, true, true) => fold::<T, false, true, true>(g, direction, sum, weight),
            (false, true, false) => fold::<T, false, true, false>(g, direction, sum, weight),
            (false, false, true) => fold::<T, false, false, true>(g, direction, sum, weight),
            (false, false, false) => [0.0; 2],
        },
    )
}

/// Computes the requested quantities for a linear layer in the form `form`, by default the cheaper one.
pub fn linear<T: Float>(
    asked: CpuRequest<'_, T>,
    rows: LinearRows<'_, T>,
    form: Option<Form>,
) -> CpuSampleProducts {
    let form = form.unwrap_or_else(|| match asked.direction.is_none() && !asked.norms {
        // A weighted sum alone does not need per-sample tiles.
        true => Form::Projected,
        false => Form::cheaper(rows.of_sample(), rows.inputs, rows.outputs),
    });
    match form {
        Form::InTile => in_tile(asked, rows),
        Form::Projected => projected(asked, rows),
    }
}

/// Works tile by tile of the weight: forms each sample's gradient for the tile, uses it for everything requested, and
/// discards it.
fn in_tile<T: Float>(asked: CpuRequest<'_, T>, rows: LinearRows<'_, T>) -> CpuSampleProducts {
    let LinearRows { samples, inputs, outputs, .. } = rows;
    let of_sample = rows.of_sample();
    // An even number of tiles, so that two threads finish together.
    let tiles = outputs.div_ceil((TILE / inputs).max(1)).next_multiple_of(2);
    let height = outputs.div_ceil(tiles);
    let tile = |first: usize, mut sum: Option<&mut [T]>, weights: &[f64]| -> Vec<[f64; 2]> {
        let count = height.min(outputs - first);
        let mut g = T::numbers(count * inputs);
        let direction = asked.direction.map(|direction| &direction[first * inputs..][..count * inputs]);
        let one = |sample: usize| {
            let (x, d) = rows.sample(sample);
            if of_sample == 0 {
                g.fill(T::ZERO);
            } else {
                let d = Matrix::strided(&d[first..], of_sample, count, outputs).transposed();
                product(&mut g, inputs, d, Matrix::new(x, of_sample, inputs), false);
            }
            let weight = weights.get(sample).copied().unwrap_or_default();
            folded(&g, direction, asked.norms, sum.as_deref_mut(), weight)
        };
        let found = (0..samples).map(one).collect();
        T::give_back(g);
        found
    };
    let found: Vec<Vec<[f64; 2]>> = match asked.sum {
        Some((sum, weights)) => sum
            .par_chunks_mut(height * inputs)
            .enumerate()
            .map(|(at, sum)| tile(at * height, Some(sum), weights))
            .collect(),
        None => {
            (0..outputs.div_ceil(height)).into_par_iter().map(|at| tile(at * height, None, &[])).collect()
        }
    };
    CpuSampleProducts::new((0..samples).map(|sample| {
        found.iter().fold([0.0; 2], |sum, tile| [sum[0] + tile[sample][0], sum[1] + tile[sample][1]])
    }))
}

/// Works without the gradients: `⟨g, V⟩ = Σ_t (b_tᵀ V)·x_t` takes one more product, `‖g‖² = Σ_{t,s} (x_t·x_s)(b_t·b_s)`
/// two small ones, and the weighted sum is that of scaled rows as in plain training.
fn projected<T: Float>(asked: CpuRequest<'_, T>, rows: LinearRows<'_, T>) -> CpuSampleProducts {
    let LinearRows { samples, inputs, outputs, .. } = rows;
    let of_sample = rows.of_sample();
    let one = |sample: usize| -> [f64; 2] {
        let (x, d) = rows.sample(sample);
        let mut found = [0.0; 2];
        if let Some(direction) = asked.direction {
            let mut along = T::numbers(of_sample * inputs);
            let direction = Matrix::new(direction, outputs, inputs);
            product(&mut along, inputs, Matrix::new(d, of_sample, outputs), direction, false);
            found[0] = folded(&along, Some(x), false, None, 0.0)[0];
            T::give_back(along);
        }
        if asked.norms {
            let gram = |values: &[T], width: usize| {
                let mut gram = T::numbers(of_sample * of_sample);
                let left = Matrix::new(values, of_sample, width);
                product(&mut gram, of_sample, left, left.transposed(), false);
                gram
            };
            let (of_input, of_output) = (gram(x, inputs), gram(d, outputs));
            found[1] = folded(&of_input, Some(&of_output), false, None, 0.0)[0];
            T::give_back(of_input);
            T::give_back(of_output);
        }
        found
    };
    let found: Vec<[f64; 2]> = (0..samples).into_par_iter().map(one).collect();
    if let Some((sum, weights)) = asked.sum {
        let mut scaled = T::numbers(rows.d_output.len());
        let share = of_sample * outputs;
        scaled
            .par_chunks_mut(share.max(1))
            .zip(rows.d_output.par_chunks(share.max(1)))
            .zip(weights)
            .for_each(|((to, from), &weight)| {
                let weight = T::of(weight);
                for (to, from) in to.iter_mut().zip(from) {
                    *to = *from * weight;
                }
            });
        matmul::linear_backward_weight(sum, &scaled, rows.input, inputs, outputs);
        T::give_back(scaled);
    }
    CpuSampleProducts::new(found.into_iter())
}

/// Computes the requested quantities of per-sample gradients that are already available, `[S, N]`.
pub(crate) fn per_sample<T: Float>(
    asked: CpuRequest<'_, T>,
    gradients: &[T],
    samples: usize,
) -> CpuSampleProducts {
    let count = gradients.len() / samples.max(1);
    let (mut sum, weights) = asked.sum.map_or((None, &[][..]), |(sum, weights)| (Some(sum), weights));
    CpuSampleProducts::new(gradients.chunks_exact(count.max(1)).enumerate().map(|(sample, g)| {
        let weight = weights.get(sample).copied().unwrap_or_default();
        folded(g, asked.direction, asked.norms, sum.as_deref_mut(), weight)
    }))
}

/// Per-sample gradients of a vector or a table, `[S, N]` for a parameter of `N` elements.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn gradients<T: Float>(
    contribution: &Contribution<'_>,
    samples: usize,
    count: usize,
) -> Result<Vec<T>> {
    let rows = contribution.rows();
    let values = rows.as_slice::<T>()?;
    let width = rows.shape().last().copied().unwrap_or(1).max(1);
    let share = (values.len() / samples.max(1)).max(1);
    let mut found = vec![T::ZERO; samples * count];
    let add = |to: &mut [T], row: &[T]| {
        for (to, value) in to.iter_mut().zip(row) {
            *to += *value;
        }
    };
    found.par_chunks_mut(count.max(1)).zip(values.par_chunks(share)).for_each(|(to, values)| {
        match contribution {
            Contribution::Sum { column, .. } => {
                values.chunks(width).for_each(|row| add(to, &row[*column..]));
            }
            Contribution::Gather { rows, .. } => {
                for (row, &at) in values.chunks(width).zip(rows.index().iter().cycle()) {
                    if at != u32::MAX {
                        add(&mut to[at as usize * width..][..width], row);
                    }
                }
            }
            Contribution::PerSample { .. } | Contribution::Product { .. } => add(to, values),
        }
    });
    Ok(found)
}

/// `to = v / (√(second·inverse_correction) + ε)`, all zeros where `inverse_correction` is 0.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn precondition<T: Float>(
    v: &Tensor,
    second: &Tensor,
    [inverse_correction, epsilon]: [f64; 2],
) -> Result<Tensor> {
    let mut to = v.clone();
    let (inverse, epsilon) = (T::of(inverse_correction), T::of(epsilon));
    let values = to.as_mut_slice::<T>()?;
    if inverse_correction == 0.0 {
        values.fill(T::ZERO);
        return Ok(to);
    }
    values.par_chunks_mut(1 << 14).zip(second.as_slice::<T>()?.par_chunks(1 << 14)).for_each(
        |(values, second)| {
            for (value, second) in values.iter_mut().zip(second) {
                *value = *value / ((*second * inverse).sqrt() + epsilon);
            }
        },
    );
    Ok(to)
}
