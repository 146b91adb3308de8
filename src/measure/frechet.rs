//! The Fréchet distance of two sets of features, each modeled as a Gaussian (Dowson and Landau, 1982; Heusel et al.,
//! arXiv 1706.08500): `|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½)`.
//!
//! With factors `Cᵢ = Fᵢ Fᵢᵀ` the last trace is the sum of the singular values of `F₁ᵀ F₂`: its squares are the
//! eigenvalues of `C₁^½ C₂ C₁^½`, whose square roots lose half of the digits if a covariance is nearly singular, as it
//! is for few images.

use crate::{
    engine::{
        Tensor,
        matmul::{linear_backward_weight, linear_forward},
    },
    error::{Error, Result},
    measure::singular::sum_of_singular_values,
};

const OP: &str = "Fréchet distance";

/// Rows folded into the sums per update. Independent of the batch size, so that results are bit-identical for any batch
/// size.
const FOLD_ROWS: usize = 256;

/// Running mean and covariance of features, in f64.
#[derive(Clone, Debug)]
pub struct Moments {
    dimensions: usize,
    count: usize,
    mean: Vec<f64>,
    /// Sum of the outer products of the centered rows, `[D, D]`.
    products: Vec<f64>,
    /// Rows that are not folded in yet; fewer than [`FOLD_ROWS`].
    waiting: Vec<f64>,
}

impl Moments {
    /// Moments of an empty set of features of `dimensions` values each (`D`).
    pub(crate) fn new(dimensions: usize) -> Self {
        Self {
            dimensions,
            count: 0,
            mean: vec![0.0; dimensions],
            products: vec![0.0; dimensions * dimensions],
            waiting: Vec::new(),
        }
    }

    /// Adds features `[N, D]` of any float type.
    ///
    /// # Errors
    /// If the shape does not match, or a value is not finite.
    pub(crate) fn add(&mut self, features: &Tensor) -> Result<()> {
        if self.dimensions == 0 || !matches!(*features.shape(), [_, columns] if columns == self.dimensions) {
            return Err(Error::shape(
                OP,
                format!("expected features [N, {}], got {:?}", self.dimensions, features.shape()),
            ));
        }
        for row in features.to_f64_vec()?.chunks_exact(self.dimensions) {
            if row.iter().any(|value| !value.is_finite()) {
                return Err(Error::not_finite(format!(
                    "the features of image {} are not finite; the weights are damaged or of another network",
                    self.count()
                )));
            }
            self.waiting.extend_from_slice(row);
            if self.waiting.len() == FOLD_ROWS * self.dimensions {
                self.fold();
            }
        }
        Ok(())
    }

    /// Number of rows (`N`).
    pub(crate) fn count(&self) -> usize {
        self.count + self.waiting.len() / self.dimensions.max(1)
    }

    /// Chan, Golub and LeVeque's update: the moments of the new rows, and the shift between the means.
    #[expect(clippy::cast_precision_loss, reason = "a count of images")]
    fn fold(&mut self) {
        let mut rows = std::mem::take(&mut self.waiting);
        let added = rows.len() / self.dimensions.max(1);
        if added == 0 {
            return;
        }
        let mut mean = vec![0.0; self.dimensions];
        for row in rows.chunks_exact(self.dimensions) {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / added as f64);
        }
        for row in rows.chunks_exact_mut(self.dimensions) {
            row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let (before, added_share) = (self.count as f64, added as f64 / (self.count + added) as f64);
        let weight = f64::sqrt(before * added_share);
        // The shift between the means enters as one more row.
        rows.extend(mean.iter().zip(&self.mean).map(|(new, old)| (new - old) * weight));
        linear_backward_weight(&mut self.products, &rows, &rows, self.dimensions, self.dimensions);
        for (old, new) in self.mean.iter_mut().zip(&mean) {
            *old += (new - *old) * added_share;
        }
        self.count += added;
    }

    /// The Gaussian with these moments; the covariance is normalized by `N − 1`.
    ///
    /// # Errors
    /// If there are fewer than two rows, or the covariance cannot be decomposed.
    #[expect(clippy::cast_precision_loss, reason = "a count of images")]
    pub(crate) fn finish(mut self) -> Result<Gaussian> {
        self.fold();
        if self.count < 2 {
            return Err(Error::not_enough_data(format!(
                "a Fréchet distance needs at least 2 images on either side, but there {} {}",
                if self.count == 1 { "is" } else { "are" },
                self.count
            )));
        }
        let size = self.dimensions;
        let scale = 1.0 / (self.count - 1) as f64;
        let covariance: Vec<f64> = (0..size * size)
            .map(|at| {
                let transposed = at % size * size + at / size;
                0.5 * (self.products[at] + self.products[transposed]) * scale
            })
            .collect();
        let trace = (0..size).map(|at| covariance[at * size + at]).sum();
        let (factor, rank) = factor(covariance, size)?;
        Ok(Gaussian { count: self.count, mean: self.mean, trace, factor, rank })
    }
}

/// Columns of a factor between two updates of the remaining covariance.
const BLOCK: usize = 64;

/// `Fᵀ` `[r, D]` with `F Fᵀ` = the covariance `[D, D]`, and its rank `r`: pivoted Cholesky factorization, which stops
/// when the remainder is rounding error.
#[expect(clippy::cast_precision_loss, reason = "a few thousand dimensions")]
fn factor(mut covariance: Vec<f64>, size: usize) -> Result<(Vec<f64>, usize)> {
    if covariance.iter().any(|value| !value.is_finite()) {
        return Err(Error::invalid("the covariance of the features is not finite"));
    }
    let mut left: Vec<f64> = (0..size).map(|at| covariance[at * size + at]).collect();
    let least = left.iter().copied().fold(0.0, f64::max) * size as f64 * f64::EPSILON;
    let mut factor: Vec<f64> = Vec::new();
    loop {
        // The rows of a block are subtracted from the remaining covariance only at the end of the block.
        let start = factor.len();
        while factor.len() < start + BLOCK * size {
            let largest = (0..size).reduce(|best, at| if left[at] > left[best] { at } else { best });
            let Some(at) = largest.filter(|&at| left[at] > least) else {
                let rank = factor.len() / size;
                return Ok((factor, rank));
            };
            let mut row = covariance[at * size..(at + 1) * size].to_vec();
            for before in factor[start..].chunks_exact(size) {
                let share = before[at];
                row.iter_mut().zip(before).for_each(|(value, before)| *value -= share * before);
            }
            let root = left[at].sqrt();
            for (value, left) in row.iter_mut().zip(&mut left) {
                // Entries of columns that are already factored are 0.
                *value = if *left == f64::NEG_INFINITY { 0.0 } else { *value / root };
                *left -= *value * *value;
            }
            row[at] = root;
            left[at] = f64::NEG_INFINITY;
            factor.extend(row);
        }
        let negative: Vec<f64> = factor[start..].iter().map(|value| -value).collect();
        linear_backward_weight(&mut covariance, &negative, &factor[start..], size, size);
    }
}

/// A Gaussian with a factored covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    count: usize,
    mean: Vec<f64>,
    /// The trace of the covariance.
    trace: f64,
    /// `[r, D]`; its transpose times itself is the covariance.
    factor: Vec<f64>,
    rank: usize,
}

impl Gaussian {
    /// Dimensions of a feature (`D`).
    pub(crate) fn dimensions(&self) -> usize {
        self.mean.len()
    }
}

/// A Fréchet distance and the size of its samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrechetDistance {
    /// In squared units of the features; 0 for equal sets.
    pub value: f64,
    /// Images on either side, in the order of the arguments.
    pub images: [usize; 2],
    /// Dimensions of a feature (`D`).
    pub dimensions: usize,
    /// Whether a side has so few images (`N ≤ D`) that its covariance is singular; the distance then depends strongly
    /// on `N`.
    pub rank_deficient: bool,
}

/// Computes the distance, which is symmetric except for rounding.
///
/// # Errors
/// If the dimensions of the features differ, or the singular values do not converge.
pub fn frechet_distance(first: &Gaussian, second: &Gaussian) -> Result<FrechetDistance> {
    let size = first.dimensions();
    if size != second.dimensions() {
        return Err(Error::shape(
            OP,
            format!("cannot compare features of {size} dimensions with features of {}", second.dimensions()),
        ));
    }
    let images = [first.count, second.count];
    let rank_deficient = images.iter().any(|&count| count <= size);
    let (rows, columns) = (first.rank, second.rank);
    let mut cross = vec![0.0; rows * columns];
    if rows > 0 && columns > 0 {
        linear_forward(&mut cross, &first.factor, &second.factor, None, size, columns);
    }
    let roots = sum_of_singular_values(&cross, rows, columns)
        .ok_or_else(|| Error::invalid("the singular values of the covariance factors do not converge"))?;
    let shift: f64 = first.mean.iter().zip(&second.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let spread = first.trace + second.trace - 2.0 * roots;
    Ok(FrechetDistance { value: (shift + spread).max(0.0), images, dimensions: size, rank_deficient })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Purpose, Random};

    fn gaussian(rows: &[f64], dimensions: usize) -> Gaussian {
        let mut moments = Moments::new(dimensions);
        moments.add(&Tensor::new(&[rows.len() / dimensions, dimensions], rows.to_vec()).unwrap()).unwrap();
        moments.finish().unwrap()
    }

    fn distance(first: &[f64], second: &[f64], dimensions: usize) -> f64 {
        frechet_distance(&gaussian(first, dimensions), &gaussian(second, dimensions)).unwrap().value
    }

    fn normal(rows: usize, dimensions: usize, stream: u64) -> Vec<f64> {
        let mut random = Random::new(7, Purpose::Test, stream);
        (0..rows * dimensions).map(|at| 3.0 + random.normal() * (1.0 + (at % dimensions) as f64)).collect()
    }

    /// In one dimension it is `(μ₁ − μ₂)² + (σ₁ − σ₂)²`.
    #[test]
    fn one_dimension_is_the_closed_form() {
        let (first, second) = ([1.0, 2.0, 3.0, 6.0], [10.0, 0.0, 5.0]);
        let deviation = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
            (mean, (square / (values.len() - 1) as f64).sqrt())
        };
        let ((m, s), (n, t)) = (deviation(&first), deviation(&second));
        let truth = (m - n).powi(2) + (s - t).powi(2);
        approx::assert_relative_eq!(distance(&first, &second, 1), truth, max_relative = 1e-12);
    }

    /// Features whose columns are uncorrelated exactly: all corners of a box.
    #[test]
    fn diagonal_gaussians_are_the_closed_form() {
        let corners = |middle: [f64; 3], half: [f64; 3]| -> Vec<f64> {
            (0..8)
                .flat_map(|corner| {
                    (0..3).map(move |axis| {
                        middle[axis] + if corner >> axis & 1 == 0 { half[axis] } else { -half[axis] }
                    })
                })
                .collect()
        };
        let found = distance(
            &corners([1.0, 2.0, 3.0], [0.5, 1.0, 4.0]),
            &corners([0.0, 2.5, 1.0], [2.0, 1.5, 0.25]),
            3,
        );
        let shift = 1.0 + 0.25 + 4.0;
        // Eight corners at ±h have the variance 8/7 h².
        let spread = 8.0 / 7.0 * (1.5f64.powi(2) + 0.5f64.powi(2) + 3.75f64.powi(2));
        approx::assert_relative_eq!(found, shift + spread, max_relative = 1e-12);
    }

    /// Full covariances and one of few rows, against what this gives (NumPy 2.4.6, SciPy 1.17.1):
    ///
    /// ```python
    /// import numpy as np
    /// from scipy.linalg import sqrtm
    /// def rows(n, a, b, m):
    ///     i, j = np.meshgrid(np.arange(n), np.arange(4), indexing="ij")
    ///     return ((i * i * a + j * j * b + i * j * 7 + 3 * i + 5 * j) % m) / m
    /// def distance(x, y):
    ///     c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    ///     return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c + d - 2 * np.real(sqrtm(c @ d)))
    /// print(repr(distance(rows(40, 3, 11, 37), 2 * rows(33, 5, 2, 29))), repr(distance(rows(40, 3, 11, 37), rows(3, 5,
    /// 2, 29))))
    /// ```
    #[test]
    fn full_covariances_are_those_of_scipy() {
        let rows = |count: u64, a: u64, b: u64, m: u64, scale: f64| -> Vec<f64> {
            let pairs = (0..count).flat_map(|i| (0..4).map(move |j| (i, j)));
            pairs
                .map(|(i, j)| {
                    scale * ((i * i * a + j * j * b + i * j * 7 + 3 * i + 5 * j) % m) as f64 / m as f64
                })
                .collect()
        };
        let (first, second) = (rows(40, 3, 11, 37, 1.0), rows(33, 5, 2, 29, 2.0));
        approx::assert_relative_eq!(distance(&first, &second, 4), SCIPY_FULL, max_relative = 1e-10);
        let few = rows(3, 5, 2, 29, 1.0);
        // SciPy's root of a singular matrix has about half of the digits.
        approx::assert_relative_eq!(distance(&first, &few, 4), SCIPY_FEW, max_relative = 1e-6);
    }
    const SCIPY_FULL: f64 = 1.060_915_883_313_839_5;
    const SCIPY_FEW: f64 = 0.276_606_860_115_513_94;

    #[test]
    fn equal_sets_are_at_no_distance_and_sides_may_be_exchanged() {
        for (rows, dimensions) in [(700, 24), (10, 40)] {
            let (first, second) = (normal(rows, dimensions, 1), normal(rows + 3, dimensions, 2));
            let scale = gaussian(&first, dimensions).trace;
            assert!(distance(&first, &first, dimensions) < 1e-12 * scale);
            let (there, back) =
                (distance(&first, &second, dimensions), distance(&second, &first, dimensions));
            assert!(there > 0.1, "{there}");
            approx::assert_relative_eq!(there, back, max_relative = 1e-12);
        }
    }

    /// A mean far from zero does not cost precision, and the batches do not matter.
    #[test]
    fn moments_do_not_depend_on_the_batches_or_the_mean() {
        let (dimensions, rows) = (5, normal(1000, 5, 3));
        let whole = gaussian(&rows, dimensions);
        let mut parts = Moments::new(dimensions);
        for part in rows.chunks(17 * dimensions) {
            let part = Tensor::new(&[part.len() / dimensions, dimensions], part.to_vec()).unwrap();
            parts.add(&part).unwrap();
        }
        assert_eq!(parts.count(), 1000);
        let parts = parts.finish().unwrap();
        assert!(parts.mean == whole.mean && parts.factor == whole.factor);
        let far: Vec<f64> = rows.iter().map(|value| value + 1e6).collect();
        approx::assert_relative_eq!(gaussian(&far, dimensions).trace, whole.trace, max_relative = 1e-9);
        let mean: Vec<f64> = (0..5).map(|at| rows.iter().skip(at).step_by(5).sum::<f64>() / 1000.0).collect();
        let variance = (0..5).map(|at| {
            rows.iter().skip(at).step_by(5).map(|value| (value - mean[at]).powi(2)).sum::<f64>() / 999.0
        });
        approx::assert_relative_eq!(whole.trace, variance.sum::<f64>(), max_relative = 1e-12);
    }

    #[test]
    fn too_few_images_are_refused_or_reported() {
        let mut one = Moments::new(3);
        one.add(&Tensor::new(&[1, 3], vec![1.0f32, 2.0, 3.0]).unwrap()).unwrap();
        assert!(one.clone().finish().unwrap_err().to_string().contains("at least 2 images"));
        assert!(one.add(&Tensor::new(&[1, 2], vec![1.0f32, 2.0]).unwrap()).is_err());
        assert!(one.add(&Tensor::new(&[1, 3], vec![1.0f32, f32::NAN, 3.0]).unwrap()).is_err());
        let distance_of = |rows| {
            let sides = [normal(rows, 3, 4), normal(9, 3, 5)].map(|rows| gaussian(&rows, 3));
            frechet_distance(&sides[0], &sides[1]).unwrap()
        };
        assert!(distance_of(3).rank_deficient && !distance_of(4).rank_deficient);
        assert_eq!(distance_of(4).images, [4, 9]);
        let other = gaussian(&normal(5, 2, 6), 2);
        assert!(frechet_distance(&other, &gaussian(&normal(5, 3, 6), 3)).is_err());
    }
}
