//! Principal components: the leading eigenvectors of a covariance, by block iteration in f64.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::engine::{Purpose, Random};

/// Mean and leading principal components of a set of vectors of `n` values.
#[derive(Clone, Debug)]
pub(super) struct Components {
    /// `[n]`.
    pub(super) mean: Vec<f64>,
    /// Orthonormal rows, `[count, n]`, in order of decreasing variance.
    pub(super) vectors: Vec<f64>,
    /// The variance along each component.
    pub(super) variances: Vec<f64>,
    /// The total variance.
    pub(super) total_variance: f64,
}

/// Rows of the covariance that one task computes.
const BLOCK: usize = 16;

/// The leading `count` components of the rows `[N, n]`; requires `count` ≤ n and N ≥ 1.
///
/// Bit-identical for any number of threads: every value is summed by one task, in order. The sign of each
/// component is chosen so that its largest entry is positive.
#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
pub(super) fn leading(rows: &[f32], n: usize, count: usize, seed: u64) -> Components {
    let samples = (rows.len() / n) as f64;
    let mut mean = vec![0f64; n];
    for row in rows.chunks_exact(n) {
        for (sum, &value) in mean.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    for sum in &mut mean {
        *sum /= samples;
    }
    let mut covariance = vec![0f64; n * n];
    covariance.par_chunks_mut(BLOCK * n).enumerate().for_each(|(block, covariance)| {
        Arch::new().dispatch(Covariance { first: block * BLOCK, rows, mean: &mean, covariance });
    });
    for row in 0..n {
        for column in 0..=row {
            let value = covariance[column * n + row] / samples;
            covariance[column * n + row] = value;
            covariance[row * n + column] = value;
        }
    }
    let total_variance = (0..n).map(|at| covariance[at * n + at]).sum();
    let (variances, vectors) = eigenvectors(&covariance, n, count, seed);
    Components { mean, vectors, variances, total_variance }
}

/// Rows of the sum of outer products, from the block's first column on; the rest follows by symmetry.
struct Covariance<'a> {
    first: usize,
    rows: &'a [f32],
    mean: &'a [f64],
    covariance: &'a mut [f64],
}

impl WithSimd for Covariance<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { first, rows, mean, covariance } = self;
        let n = mean.len();
        let mut centerd = vec![0f64; n];
        for row in rows.chunks_exact(n) {
            for at in 0..n {
                centerd[at] = f64::from(row[at]) - mean[at];
            }
            for (at, sums) in covariance.chunks_exact_mut(n).enumerate() {
                let value = centerd[first + at];
                for (sum, other) in sums[first..].iter_mut().zip(&centerd[first..]) {
                    *sum += value * other;
                }
            }
        }
    }
}

/// The `count` largest eigenvalues of a symmetric positive semi-definite matrix `[n, n]`, and their orthonormal
/// eigenvectors `[count, n]`: block power iteration with a Rayleigh-Ritz step (Golub & Van Loan, 8.2.4).
fn eigenvectors(matrix: &[f64], n: usize, count: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
    // More directions than requested, because the convergence rate depends on the first eigenvalue outside the block.
    let block = (2 * count + 8).min(n);
    let mut random = Random::new(seed, Purpose::Fit, u64::MAX);
    let mut basis: Vec<f64> = (0..block * n).map(|_| random.normal()).collect();
    orthonormalize(&mut basis, n);
    let mut values = vec![0f64; block];
    for _ in 0..500 {
        let mut image = vec![0f64; block * n];
        image.par_chunks_exact_mut(n).zip(basis.par_chunks_exact(n)).for_each(|(image, vector)| {
            for (row, image) in matrix.chunks_exact(n).zip(image) {
                *image = dot(row, vector);
            }
        });
        let mut projected: Vec<f64> = (0..block * block)
            .map(|at| dot(&basis[at / block * n..][..n], &image[at % block * n..][..n]))
            .collect();
        let rotation = jacobi(&mut projected, block);
        let mut order: Vec<usize> = (0..block).collect();
        order.sort_by(|&a, &b| projected[b * block + b].total_cmp(&projected[a * block + a]));
        let found: Vec<f64> = order.iter().map(|&at| projected[at * block + at].max(0.0)).collect();
        let rotate = |vectors: &[f64]| -> Vec<f64> {
            let mut rotated = vec![0f64; block * n];
            for (rotated, &column) in rotated.chunks_exact_mut(n).zip(&order) {
                for (from, vector) in vectors.chunks_exact(n).enumerate() {
                    let weight = rotation[from * block + column];
                    for (sum, value) in rotated.iter_mut().zip(vector) {
                        *sum += weight * value;
                    }
                }
            }
            rotated
        };
        let settled = found[..count]
            .iter()
            .zip(&values[..count])
            .all(|(new, old)| (new - old).abs() <= 1e-14 * found[0].max(f64::MIN_POSITIVE));
        values = found;
        if settled || block == n {
            basis = rotate(&basis);
            break;
        }
        basis = rotate(&image);
        orthonormalize(&mut basis, n);
    }
    values.truncate(count);
    basis.truncate(count * n);
    for vector in basis.chunks_exact_mut(n) {
        let largest = vector
            .iter()
            .copied()
            .fold(0f64, |best, value| if value.abs() > best.abs() { value } else { best });
        if largest < 0.0 {
            for value in vector {
                *value = -*value;
            }
        }
    }
    (values, basis)
}

/// Gram-Schmidt, twice for accuracy. A row that depends linearly on the previous ones (a matrix of low rank) is
/// replaced by the first unit vector that does not.
fn orthonormalize(basis: &mut [f64], n: usize) {
    let mut axis = 0;
    for at in 0..basis.len() / n {
        let (before, rest) = basis.split_at_mut(at * n);
        let row = &mut rest[..n];
        loop {
            let length = dot(row, row).sqrt();
            for _ in 0..2 {
                for other in before.chunks_exact(n) {
                    let share = dot(other, row);
                    for (value, other) in row.iter_mut().zip(other) {
                        *value -= share * other;
                    }
                }
            }
            let left = dot(row, row).sqrt();
            if left > 1e-10 * length && left > f64::MIN_POSITIVE.sqrt() {
                for value in &mut *row {
                    *value /= left;
                }
                break;
            }
            // There are at most n rows, so one of the unit vectors is always independent of the previous rows.
            row.fill(0.0);
            row[axis % n] = 1.0;
            axis += 1;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Diagonalizes a small symmetric matrix in place by Jacobi rotations; the columns of the result are the eigenvectors.
fn jacobi(matrix: &mut [f64], size: usize) -> Vec<f64> {
    let mut vectors = vec![0f64; size * size];
    for at in 0..size {
        vectors[at * size + at] = 1.0;
    }
    for _ in 0..60 {
        let off: f64 = (0..size)
            .flat_map(|p| (0..p).map(move |q| (p, q)))
            .map(|(p, q)| matrix[p * size + q].powi(2))
            .sum();
        let on: f64 = (0..size).map(|p| matrix[p * size + p].powi(2)).sum();
        if off <= 1e-30 * on || off == 0.0 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                let between = matrix[p * size + q];
                if between == 0.0 {
                    continue;
                }
                let theta = (matrix[q * size + q] - matrix[p * size + p]) / (2.0 * between);
                let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
                let sine = tangent * cosine;
                let turn = |a: &mut f64, b: &mut f64| {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                };
                for k in 0..size {
                    let (mut a, mut b) = (matrix[k * size + p], matrix[k * size + q]);
                    turn(&mut a, &mut b);
                    (matrix[k * size + p], matrix[k * size + q]) = (a, b);
                    let (mut a, mut b) = (vectors[k * size + p], vectors[k * size + q]);
                    turn(&mut a, &mut b);
                    (vectors[k * size + p], vectors[k * size + q]) = (a, b);
                }
                for k in 0..size {
                    let (mut a, mut b) = (matrix[p * size + k], matrix[q * size + k]);
                    turn(&mut a, &mut b);
                    (matrix[p * size + k], matrix[q * size + k]) = (a, b);
                }
            }
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_eigenvectors_of_a_known_spectrum() {
        // A = Σ λ_i v_i v_iᵀ for a random orthonormal basis v and a decaying spectrum λ.
        let n = 40;
        let mut random = Random::new(5, Purpose::Test, 0);
        let mut basis: Vec<f64> = (0..n * n).map(|_| random.normal()).collect();
        orthonormalize(&mut basis, n);
        let spectrum: Vec<f64> = (0..n).map(|at| 3.0 * 0.7f64.powi(at as i32)).collect();
        let mut matrix = vec![0.0; n * n];
        for (vector, value) in basis.chunks_exact(n).zip(&spectrum) {
            for row in 0..n {
                for column in 0..n {
                    matrix[row * n + column] += value * vector[row] * vector[column];
                }
            }
        }
        let (values, vectors) = eigenvectors(&matrix, n, 6, 1);
        for at in 0..6 {
            assert!((values[at] - spectrum[at]).abs() < 1e-12, "{values:?}");
            let aligned = dot(&vectors[at * n..][..n], &basis[at * n..][..n]).abs();
            assert!((aligned - 1.0).abs() < 1e-12, "component {at}: {aligned}");
        }
    }

    #[test]
    fn a_matrix_of_low_rank_still_gives_an_orthonormal_basis() {
        for rank in 0..3 {
            let n = 12;
            let rows: Vec<f32> = (0..20 * n)
                .map(|at| if at % n < rank { ((at / n * 7 + at % n * 3) % 5) as f32 } else { 0.5 })
                .collect();
            let found = leading(&rows, n, n, 3);
            for a in 0..n {
                for b in 0..n {
                    let product = dot(&found.vectors[a * n..][..n], &found.vectors[b * n..][..n]);
                    assert!((product - f64::from(u8::from(a == b))).abs() < 1e-12, "rank {rank}: {a} {b}");
                }
            }
            assert!(found.variances[rank..].iter().all(|&value| value < 1e-12), "{:?}", found.variances);
        }
    }
}
