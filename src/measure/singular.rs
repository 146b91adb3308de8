//! The sum of a matrix's singular values: Householder bidiagonalization (Golub and Kahan, 1965); the singular values of
//! the bidiagonal matrix are the positive half of the eigenvalues of one tridiagonal matrix, found by implicit QL
//! (Martin and Wilkinson, 1968).
//!
//! The order of every sum depends on the shape alone, so the bits are the same for any number of threads.

use rayon::prelude::*;

use crate::engine::float::vectorized;

/// Rows per parallel task.
const TASK_ROWS: usize = 96;
/// Partial sums of a dot product.
const LANES: usize = 16;
/// Maximum QL steps per eigenvalue; two or three are usual.
const MOST_STEPS: usize = 60;

/// The sum of the singular values of a row-major matrix; `None` if it is not finite.
pub(super) fn sum_of_singular_values(matrix: &[f64], rows: usize, columns: usize) -> Option<f64> {
    let largest = matrix.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    if matrix.iter().any(|value| !value.is_finite()) {
        return None;
    }
    if largest == 0.0 {
        return Some(0.0);
    }
    // Scaled so that squares cannot overflow, and relevant squares cannot underflow.
    let (mut scaled, rows, columns) = if rows >= columns {
        (matrix.iter().map(|value| value / largest).collect::<Vec<_>>(), rows, columns)
    } else {
        let transposed = (0..columns).flat_map(|at| matrix.iter().skip(at).step_by(columns));
        (transposed.map(|value| value / largest).collect(), columns, rows)
    };
    let band = two_diagonals(&mut scaled, rows, columns);
    let eigenvalues = eigenvalues_of_band(band)?;
    Some(0.5 * largest * eigenvalues.iter().map(|value| value.abs()).sum::<f64>())
}

/// A reflection `1 − factor · w wᵀ`, with `w = (1, scale · rest)`, that maps a vector to a multiple `kept` of the first
/// unit vector; `first` is the vector's first component and `rest` the sum of squares of the others.
struct Reflection {
    kept: f64,
    factor: f64,
    scale: f64,
}

impl Reflection {
    fn new(first: f64, rest: f64) -> Self {
        if rest == 0.0 {
            return Self { kept: first, factor: 0.0, scale: 0.0 };
        }
        let kept = -first.hypot(rest.sqrt()).copysign(first);
        Self { kept, factor: (kept - first) / kept, scale: 1.0 / (first - kept) }
    }
}

/// What a pass computes for the next column to eliminate: the sum of squares of the column without its first row, and
/// the sum of the other rows, each times its entry in the column.
struct Found {
    square: f64,
    weighted: Vec<f64>,
}

/// The rank-2 update that a pass subtracts from every row: `u · y + x · v` with a `u` per row and
/// `x = factor · (row − u · y) · v`.
struct Update<'a> {
    y: &'a [f64],
    v: &'a [f64],
    y_v: f64,
    factor: f64,
}

/// The two diagonals of the bidiagonal form, interleaved from the upper left, up to sign. The matrix has at least as
/// many rows as columns, and is overwritten.
fn two_diagonals(matrix: &mut [f64], rows: usize, columns: usize) -> Vec<f64> {
    let mut band = Vec::with_capacity(2 * columns);
    // The column to eliminate next, by row.
    let mut column = vec![0.0; rows];
    let mut y = vec![0.0; columns];
    let mut v = vec![0.0; columns];
    let nothing = Update { y: &y, v: &v, y_v: 0.0, factor: 0.0 };
    let mut found = pass(matrix, &mut column, columns, 0, &nothing);
    for at in 0..columns {
        let reflection = Reflection::new(column[at], found.square);
        band.push(reflection.kept);
        let next = at + 1;
        if next == columns {
            break;
        }
        column[next..].iter_mut().for_each(|value| *value *= reflection.scale);
        let row = &matrix[at * columns + next..(at + 1) * columns];
        y.clear();
        y.extend(
            row.iter()
                .zip(&found.weighted)
                .map(|(value, sum)| reflection.factor * (value + reflection.scale * sum)),
        );
        v.clear();
        v.extend(row.iter().zip(&y).map(|(value, y)| value - y));
        let reflection = Reflection::new(v[0], dot(&v[1..], &v[1..]));
        band.push(reflection.kept);
        v[0] = 1.0;
        v[1..].iter_mut().for_each(|value| *value *= reflection.scale);
        let update = Update { y: &y, v: &v, y_v: dot(&y, &v), factor: reflection.factor };
        found = pass(&mut matrix[next * columns..], &mut column[next..], columns, next, &update);
    }
    band
}

/// Subtracts the update from all `rows`, from column `first` on, and reduces that column. `column` holds `u` on entry,
/// and column `first` on return. One fused pass, because it is memory-bound.
fn pass(rows: &mut [f64], column: &mut [f64], width: usize, first: usize, update: &Update<'_>) -> Found {
    let tasks: Vec<Found> = rows
        .par_chunks_mut(TASK_ROWS * width)
        .zip(column.par_chunks_mut(TASK_ROWS))
        .enumerate()
        .map(|(task, (rows, column))| {
            vectorized(
                #[inline(always)]
                || pass_of_task(rows, column, width, first, update, task == 0),
            )
        })
        .collect();
    let mut tasks = tasks.into_iter();
    let none = Found { square: 0.0, weighted: vec![0.0; width - first - 1] };
    let mut found = tasks.next().unwrap_or(none);
    for task in tasks {
        found.square += task.square;
        found.weighted.iter_mut().zip(&task.weighted).for_each(|(sum, value)| *sum += value);
    }
    found
}

#[inline(always)]
fn pass_of_task(
    rows: &mut [f64],
    column: &mut [f64],
    width: usize,
    first: usize,
    update: &Update<'_>,
    skip: bool,
) -> Found {
    let mut found = Found { square: 0.0, weighted: vec![0.0; width - first - 1] };
    for (at, (row, column)) in rows.chunks_exact_mut(width).zip(column).enumerate() {
        let (row, u) = (&mut row[first..], *column);
        let x = update.factor * (dot(row, update.v) - u * update.y_v);
        for ((value, y), v) in row.iter_mut().zip(update.y).zip(update.v) {
            *value -= u * y + x * v;
        }
        let kept = row[0];
        *column = kept;
        if !(skip && at == 0) {
            found.square += kept * kept;
            found.weighted.iter_mut().zip(&row[1..]).for_each(|(sum, value)| *sum += kept * value);
        }
    }
    found
}

#[inline(always)]
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    let rest: f64 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f64>() + rest
}

/// The eigenvalues of the symmetric tridiagonal matrix with a zero diagonal and the off-diagonal `band`. `None` if QL
/// does not converge, which does not happen with finite values.
fn eigenvalues_of_band(mut band: Vec<f64>) -> Option<Vec<f64>> {
    let size = band.len() + 1;
    let mut diagonal = vec![0.0f64; size];
    let least = f64::EPSILON * band.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    band.push(0.0);
    for at in 0..size {
        for step in 0.. {
            // The block that starts here ends where the off-diagonal entry is negligible.
            let end = (at..size - 1).find(|&row| band[row].abs() <= least).unwrap_or(size - 1);
            if end == at {
                break;
            }
            if step == MOST_STEPS {
                return None;
            }
            ql_step(&mut diagonal, &mut band, at, end);
        }
    }
    Some(diagonal)
}

/// One QL step with Wilkinson's shift on the block from `at` to `end`.
fn ql_step(diagonal: &mut [f64], band: &mut [f64], at: usize, end: usize) {
    let half = (diagonal[at + 1] - diagonal[at]) / (2.0 * band[at]);
    let root = half.hypot(1.0);
    let mut g = diagonal[end] - diagonal[at] + band[at] / (half + root.copysign(half));
    let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
    for row in (at..end).rev() {
        let (f, b) = (sine * band[row], cosine * band[row]);
        let radius = f.hypot(g);
        band[row + 1] = radius;
        if radius == 0.0 {
            // The block splits here.
            diagonal[row + 1] -= shift;
            band[end] = 0.0;
            return;
        }
        sine = f / radius;
        cosine = g / radius;
        g = diagonal[row + 1] - shift;
        let rotated = (diagonal[row] - g) * sine + 2.0 * cosine * b;
        shift = sine * rotated;
        diagonal[row + 1] = g + shift;
        g = cosine * rotated - b;
    }
    diagonal[at] -= shift;
    band[at] = g;
    band[end] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Purpose, Random};

    /// An orthogonal matrix: one reflection by a random vector.
    fn mirror(size: usize, stream: u64) -> Vec<f64> {
        let mut random = Random::new(11, Purpose::Test, stream);
        let w: Vec<f64> = (0..size).map(|_| random.normal()).collect();
        let square = dot(&w, &w);
        (0..size * size)
            .map(|at| f64::from(at / size == at % size) - 2.0 * w[at / size] * w[at % size] / square)
            .collect()
    }

    /// A matrix with these singular values, multiplied by reflections on both sides.
    fn matrix(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let (left, right) = (mirror(rows, 1), mirror(columns, 2));
        (0..rows * columns)
            .map(|at| {
                let (row, column) = (at / columns, at % columns);
                let terms = values.iter().enumerate();
                terms.map(|(k, value)| left[row * rows + k] * value * right[k * columns + column]).sum()
            })
            .collect()
    }

    #[test]
    fn known_singular_values_are_summed_whatever_their_sizes() {
        let shapes = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 3), (3, 5), (150, 149), (97, 210), (300, 40)];
        for (rows, columns) in shapes {
            let count = rows.min(columns);
            let even: Vec<f64> = (1..=count).map(|at| at as f64).collect();
            let falling: Vec<f64> = (0..count).map(|at| f64::powf(0.6, at as f64)).collect();
            let equal = vec![2.0; count];
            let few: Vec<f64> = (0..count).map(|at| f64::from(at < count.div_ceil(3))).collect();
            for (values, size) in [even, falling, equal, few].iter().zip([1.0, 1e-200, 1e200, 3.0]) {
                let values: Vec<f64> = values.iter().map(|value| value * size).collect();
                let found = sum_of_singular_values(&matrix(&values, rows, columns), rows, columns).unwrap();
                approx::assert_relative_eq!(found, values.iter().sum::<f64>(), max_relative = 1e-13);
            }
        }
    }

    #[test]
    fn nothing_has_no_singular_values_and_what_is_not_finite_is_reported() {
        assert_eq!(sum_of_singular_values(&[], 0, 4), Some(0.0));
        assert_eq!(sum_of_singular_values(&[], 4, 0), Some(0.0));
        assert_eq!(sum_of_singular_values(&[0.0; 12], 3, 4), Some(0.0));
        assert_eq!(sum_of_singular_values(&[1.0, f64::NAN], 1, 2), None);
        assert_eq!(sum_of_singular_values(&[1.0, f64::INFINITY], 2, 1), None);
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        let mut random = Random::new(11, Purpose::Test, 3);
        let matrix: Vec<f64> = (0..230 * 220).map(|_| random.normal()).collect();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_singular_values(&matrix, 230, 220).unwrap())
        };
        assert_eq!(with(1).to_bits(), with(3).to_bits());
    }
}
