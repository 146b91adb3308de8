//! The three matrix products of a linear layer, over the `gemm` crates.
//!
//! The output is cut into tiles whose sizes depend only on the shape, and each tile is one single-threaded product, so
//! results are bit-identical for any number of threads.

use rayon::prelude::*;

use crate::engine::float::Float;

/// Maximum rows of an output tile: enough to amortize packing the other side.
const TILE_ROWS: usize = 640;
/// Maximum rows of a weight gradient's tile.
const TILE_WEIGHT_ROWS: usize = 256;

/// Rows per tile, with an even number of equal tiles so that two threads finish together.
fn tile(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).next_multiple_of(2).max(1)).max(1)
}

/// A row-major matrix view, possibly strided or transposed.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// If the slice is shorter than the matrix.
    pub(crate) fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows of `columns` values that start every `row_stride` values.
    ///
    /// # Panics
    /// If the last row would end beyond the slice.
    pub(crate) fn strided(values: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * row_stride + columns <= values.len(),
            "a matrix reaches beyond its values"
        );
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without copying.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `output = left · right`, or `output += left · right` when `accumulate`; single-threaded. `output` is row-major
/// `[left.rows, right.columns]` with rows every `row_stride` values.
///
/// # Panics
/// If the sizes do not match.
pub fn product<T: Float>(
    output: &mut [T],
    row_stride: usize,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    accumulate: bool,
) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert_eq!(inner, right.rows, "the inner sizes of a product differ");
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * row_stride + columns <= output.len(), "a product reaches beyond its output");
    if inner == 0 {
        if !accumulate {
            for row in output.chunks_mut(row_stride).take(rows) {
                row[..columns].fill(T::ZERO);
            }
        }
        return;
    }
    let signed = |stride: usize| isize::try_from(stride).expect("a stride fits isize");
    // The kernels require outputs with contiguous columns: the transpose of this one, unless it is a single column.
    let ((rows, left), (columns, right)) = if row_stride > 1 {
        ((columns, right.transposed()), (rows, left.transposed()))
    } else {
        ((rows, left), (columns, right))
    };
    let (column_step, row_step) = if row_stride > 1 { (row_stride, 1) } else { (1, row_stride) };
    #[expect(unsafe_code, reason = "the gemm crates take pointers")]
    // SAFETY: the constructors of `Matrix` and the assertion above bound every address within the sizes and strides;
    // `output` is borrowed mutably, so it overlaps neither side.
    unsafe {
        T::product_kernel()(
            rows,
            columns,
            inner,
            output.as_mut_ptr(),
            signed(column_step),
            signed(row_step),
            accumulate,
            left.values.as_ptr(),
            signed(left.column_stride),
            signed(left.row_stride),
            right.values.as_ptr(),
            signed(right.column_stride),
            signed(right.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

/// The fewest rows for which a row's bits do not depend on the number of rows: gemm has separate kernels for outputs of
/// at most 256 elements and for a single row, and it splits a long sum at other points if neither side exceeds 64.
fn least_rows(columns: usize, inner: usize) -> usize {
    let long = if columns <= 64 && inner > 512 { 65 } else { 2 };
    (256 / columns.max(1) + 1).max(long)
}

/// As [`product`], but each output row is bit-identical for any number of rows: if there are too few, the input is
/// padded with rows of zeros.
///
/// # Panics
/// If the sizes do not match.
pub(crate) fn product_by_row<T: Float>(
    output: &mut [T],
    row_stride: usize,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    accumulate: bool,
) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    let least = least_rows(columns, inner);
    if rows >= least || rows == 0 || inner == 0 {
        return product(output, row_stride, left, right, accumulate);
    }
    let mut padded = vec![T::ZERO; least * inner];
    for (at, row) in padded.chunks_exact_mut(inner).take(rows).enumerate() {
        for (column, value) in row.iter_mut().enumerate() {
            *value = left.values[at * left.row_stride + column * left.column_stride];
        }
    }
    let mut found = vec![T::ZERO; least * columns];
    if accumulate {
        for (found, row) in found.chunks_exact_mut(columns).zip(output.chunks(row_stride)).take(rows) {
            found.copy_from_slice(&row[..columns]);
        }
    }
    product(&mut found, columns, Matrix::new(&padded, least, inner), right, accumulate);
    for (found, row) in found.chunks_exact(columns).zip(output.chunks_mut(row_stride)).take(rows) {
        row[..columns].copy_from_slice(found);
    }
}

/// `y = x · wᵀ` (+ the bias): `x` `[R, I]`, `w` `[O, I]`, `bias` `[O]`, `y` `[R, O]`.
pub(crate) fn linear_forward<T: Float>(
    y: &mut [T],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    inputs: usize,
    outputs: usize,
) {
    let tile = tile(x.len() / inputs, TILE_ROWS);
    y.par_chunks_mut(tile * outputs).zip(x.par_chunks(tile * inputs)).for_each(|(y, x)| {
        let rows = x.len() / inputs;
        // The output starts as the bias and the product is added to it, which saves a pass over the output.
        if let Some(bias) = bias {
            y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        }
        let (x, w) = (Matrix::new(x, rows, inputs), Matrix::new(w, outputs, inputs).transposed());
        product_by_row(y, outputs, x, w, bias.is_some());
    });
}

/// `dx = dy · w`: `dy` `[R, O]`, `w` `[O, I]`, `dx` `[R, I]`.
pub(crate) fn linear_backward_input<T: Float>(
    dx: &mut [T],
    dy: &[T],
    w: &[T],
    inputs: usize,
    outputs: usize,
) {
    let tile = tile(dy.len() / outputs, TILE_ROWS);
    dx.par_chunks_mut(tile * inputs).zip(dy.par_chunks(tile * outputs)).for_each(|(dx, dy)| {
        let rows = dy.len() / outputs;
        product_by_row(dx, inputs, Matrix::new(dy, rows, outputs), Matrix::new(w, outputs, inputs), false);
    });
}

/// `dw += dyᵀ · x`: `dy` `[R, O]`, `x` `[R, I]`, `dw` `[O, I]`.
pub fn linear_backward_weight<T: Float>(dw: &mut [T], dy: &[T], x: &[T], inputs: usize, outputs: usize) {
    let rows = x.len() / inputs;
    let size = tile(outputs, TILE_WEIGHT_ROWS);
    dw.par_chunks_mut(size * inputs).enumerate().for_each(|(tile, dw)| {
        let first = tile * size;
        let count = dw.len() / inputs;
        if rows == 0 {
            return;
        }
        let dy = Matrix::strided(&dy[first..], rows, count, outputs).transposed();
        product(dw, inputs, dy, Matrix::new(x, rows, inputs), true);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::{Purpose, Random};

    fn values(count: usize, stream: u64) -> Vec<f64> {
        let mut random = Random::new(3, Purpose::Test, stream);
        (0..count).map(|_| random.normal()).collect()
    }

    /// The naive loops that the products are compared with.
    #[expect(clippy::many_single_char_names, reason = "sizes of a product")]
    fn naive(x: &[f64], w: &[f64], r: usize, i: usize, o: usize) -> Vec<f64> {
        let mut y = vec![0.0; r * o];
        for row in 0..r {
            for out in 0..o {
                y[row * o + out] = (0..i).map(|k| x[row * i + k] * w[out * i + k]).sum();
            }
        }
        y
    }

    #[test]
    fn a_row_has_the_same_bits_beside_any_number_of_others() {
        for (inputs, outputs) in [(1, 1), (5, 1), (33, 3), (2, 40), (700, 64), (1500, 70), (64, 300)] {
            let (x, w) = (values(300 * inputs, 1), values(outputs * inputs, 2));
            let x: Vec<f32> = x.iter().map(|&value| value as f32).collect();
            let w: Vec<f32> = w.iter().map(|&value| value as f32).collect();
            let forward = |from: usize, rows: usize, bias: bool| {
                let (mut y, bias) = (vec![9.0; rows * outputs], bias.then_some(&w[..outputs]));
                linear_forward(&mut y, &x[from * inputs..][..rows * inputs], &w, bias, inputs, outputs);
                y
            };
            let backward = |from: usize, rows: usize| {
                let mut dx = vec![9.0; rows * outputs];
                let transposed: Vec<f32> =
                    (0..inputs * outputs).map(|at| w[at % outputs * inputs + at / outputs]).collect();
                let dy = &x[from * inputs..][..rows * inputs];
                linear_backward_input(&mut dx, dy, &transposed, outputs, inputs);
                dx
            };
            let whole = [forward(0, 300, false), forward(0, 300, true), backward(0, 300)];
            for (from, rows) in [(0, 1), (7, 1), (3, 2), (10, 5), (100, 17), (20, 260)] {
                let part = [forward(from, rows, false), forward(from, rows, true), backward(from, rows)];
                for (part, whole) in part.iter().zip(&whole) {
                    assert!(
                        part == &whole[from * outputs..][..rows * outputs],
                        "{rows} rows from {from} of {inputs} by {outputs}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_three_products_match_plain_loops_on_odd_sizes() {
        for (r, i, o) in [(1, 1, 1), (3, 5, 7), (257, 33, 129), (513, 64, 255), (130, 17, 1)] {
            let (x, w, dy) = (values(r * i, 1), values(o * i, 2), values(r * o, 3));
            let mut y = vec![9.0; r * o];
            linear_forward(&mut y, &x, &w, None, i, o);
            let truth = naive(&x, &w, r, i, o);
            for (a, b) in y.iter().zip(&truth) {
                approx::assert_relative_eq!(a, b, epsilon = 1e-12, max_relative = 1e-11);
            }
            let mut dx = vec![9.0; r * i];
            linear_backward_input(&mut dx, &dy, &w, i, o);
            for row in 0..r {
                for k in 0..i {
                    let truth: f64 = (0..o).map(|out| dy[row * o + out] * w[out * i + k]).sum();
                    approx::assert_relative_eq!(
                        dx[row * i + k],
                        truth,
                        epsilon = 1e-12,
                        max_relative = 1e-10
                    );
                }
            }
            let mut dw = vec![1.0; o * i];
            linear_backward_weight(&mut dw, &dy, &x, i, o);
            for out in 0..o {
                for k in 0..i {
                    let truth: f64 = 1.0 + (0..r).map(|row| dy[row * o + out] * x[row * i + k]).sum::<f64>();
                    approx::assert_relative_eq!(
                        dw[out * i + k],
                        truth,
                        epsilon = 1e-11,
                        max_relative = 1e-10
                    );
                }
            }
        }
    }
}
