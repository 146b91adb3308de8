//! Groups of near-duplicate images: connected components of pairs whose features nearly agree, mirrored or not.
//!
//! A fold must hold whole groups: a proxy that has seen an image's near-duplicate has memorized it. The features are
//! the tokenizer's reconstruction from the codes, averaged over a coarse grid, so they cost no forward pass.

use rayon::prelude::*;

use crate::{
    encode::ImageTokenizer,
    engine::{
        Purpose, Random,
        matmul::{Matrix, product},
    },
    error::Result,
    tokens::encoded::EncodedCorpus,
};

/// Sides of the grid that features are averaged over, at most.
const GRID: usize = 8;
/// Channels of the random projection that candidates are searched with.
const PROJECTED: usize = 128;
/// Two images are near-duplicates if `2⟨f, g⟩ / (‖f‖² + ‖g‖²)` is at least this, for centered features `f` and `g` or
/// the mirrored `g`.
const SIMILAR: f32 = 0.98;
/// How much lower a projected similarity may be: several standard deviations of its error at [`SIMILAR`].
const SLACK: f32 = 0.04;
/// Images per block of the search.
const BLOCK: usize = 512;
/// Images whose codes are reconstructed together.
const CHUNK: usize = 256;

/// For each image, the smallest index of its group.
///
/// The search compares all pairs in a random projection (a matrix product) and confirms candidates with the whole
/// features, so the result depends on neither the number of threads nor the order of blocks.
///
/// # Errors
/// If a code is out of range.
pub(super) fn near_duplicates(corpus: &EncodedCorpus, tokenizer: &dyn ImageTokenizer) -> Result<Vec<usize>> {
    let features = Features::of(corpus, tokenizer)?;
    let blocks: Vec<usize> = (0..corpus.len()).step_by(BLOCK).collect();
    let found: Vec<Vec<(usize, usize)>> =
        blocks.par_iter().map(|&start| features.similar_to(start)).collect();
    let mut groups = Groups { parents: (0..corpus.len()).collect() };
    for (one, other) in found.into_iter().flatten() {
        groups.join(one, other);
    }
    Ok((0..corpus.len()).map(|index| groups.root(index)).collect())
}

/// Centered features of all images, as they are and mirrored, with their projections.
struct Features {
    length: usize,
    whole: Vec<f32>,
    mirrored: Vec<f32>,
    norms: Vec<f32>,
    projected: Vec<f32>,
    /// Of the projections; a projection keeps the similarity of two vectors better than their lengths.
    projected_norms: Vec<f32>,
    projected_mirrored: Vec<f32>,
}

impl Features {
    fn of(corpus: &EncodedCorpus, tokenizer: &dyn ImageTokenizer) -> Result<Self> {
        let quantizer = tokenizer.quantizer();
        let (side, channels) = (quantizer.side(), quantizer.channels());
        let grid = side.min(GRID);
        let length = channels * grid * grid;
        let indices: Vec<usize> = (0..corpus.len()).collect();
        let chunks: Vec<Vec<f32>> = indices
            .par_chunks(CHUNK)
            .map(|chunk| {
                let maps = quantizer.reconstruct(&corpus.codes(chunk)?)?;
                let maps = maps.as_slice::<f32>()?;
                Ok(maps.chunks_exact(side * side).flat_map(|map| pooled(map, side, grid)).collect())
            })
            .collect::<Result<_>>()?;
        let mut whole = chunks.concat();
        let mut mirrored: Vec<f32> =
            whole.chunks_exact(grid).flat_map(|row| row.iter().rev().copied()).collect();
        // One center for both, so that mirroring and centering commute.
        let mut center = vec![0.0f64; length];
        for image in whole.chunks_exact(length).chain(mirrored.chunks_exact(length)) {
            center.iter_mut().zip(image).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let count = 2.0 * corpus.len().max(1) as f64;
        for image in whole.chunks_exact_mut(length).chain(mirrored.chunks_exact_mut(length)) {
            for (value, sum) in image.iter_mut().zip(&center) {
                #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
                let mean = (sum / count) as f32;
                *value -= mean;
            }
        }
        let squares = |rows: &[f32], length| rows.chunks_exact(length).map(|row| dot(row, row)).collect();
        let norms = squares(&whole, length);
        let projection = projection(length);
        let (projected, projected_mirrored) =
            (projected(&whole, length, &projection), projected(&mirrored, length, &projection));
        let projected_norms = squares(&projected, PROJECTED.min(length));
        Ok(Self { length, whole, mirrored, norms, projected, projected_norms, projected_mirrored })
    }

    /// The near-duplicates of the images of a block that begins at `start`, among the earlier images and themselves.
    fn similar_to(&self, start: usize) -> Vec<(usize, usize)> {
        let (count, width) = (self.norms.len(), PROJECTED.min(self.length));
        let end = (start + BLOCK).min(count);
        let rows = Matrix::new(&self.projected[start * width..end * width], end - start, width);
        let mut found = Vec::new();
        let mut products = vec![0.0f32; (end - start) * BLOCK];
        for from in (0..end).step_by(BLOCK) {
            let to = (from + BLOCK).min(end);
            for (projected, features) in
                [(&self.projected, &self.whole), (&self.projected_mirrored, &self.mirrored)]
            {
                let columns = Matrix::new(&projected[from * width..to * width], to - from, width);
                product(&mut products, to - from, rows, columns.transposed(), false);
                for (row, products) in products.chunks_exact(to - from).take(end - start).enumerate() {
                    let one = start + row;
                    for (other, &product) in (from..to.min(one)).zip(products) {
                        let scale = self.projected_norms[one] + self.projected_norms[other];
                        if 2.0 * product >= (SIMILAR - SLACK) * scale && self.confirmed(one, other, features)
                        {
                            found.push((one, other));
                        }
                    }
                }
            }
        }
        found
    }

    fn confirmed(&self, one: usize, other: usize, features: &[f32]) -> bool {
        let scale = self.norms[one] + self.norms[other];
        let [one, other] = [one, other].map(|index| index * self.length..(index + 1) * self.length);
        2.0 * dot(&self.whole[one], &features[other]) >= SIMILAR * scale
    }
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// A map `[side, side]` averaged over a grid `[grid, grid]`; the bounds of a cell are rounded outward.
fn pooled(map: &[f32], side: usize, grid: usize) -> Vec<f32> {
    let bounds = |at: usize| (at * side / grid, ((at + 1) * side).div_ceil(grid));
    let mut cells = Vec::with_capacity(grid * grid);
    for y in 0..grid {
        let (top, bottom) = bounds(y);
        for x in 0..grid {
            let (left, right) = bounds(x);
            let sum: f32 = (top..bottom).flat_map(|row| &map[row * side + left..row * side + right]).sum();
            cells.push(sum / ((bottom - top) * (right - left)) as f32);
        }
    }
    cells
}

/// A random projection `[length, PROJECTED]` that keeps inner products (Johnson and Lindenstrauss); the identity for
/// shorter features.
fn projection(length: usize) -> Vec<f32> {
    let width = PROJECTED.min(length);
    if width == length {
        let mut identity = vec![0.0; length * length];
        identity.iter_mut().step_by(length + 1).for_each(|value| *value = 1.0);
        return identity;
    }
    let mut random = Random::new(0, Purpose::Fit, u64::MAX - 1);
    let scale = 1.0 / (width as f64).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
    let values = (0..length * width).map(|_| (scale * random.normal()) as f32).collect();
    values
}

/// Features `[N, length]` times the projection `[length, PROJECTED]`.
fn projected(features: &[f32], length: usize, projection: &[f32]) -> Vec<f32> {
    let width = projection.len() / length;
    let chunks: Vec<Vec<f32>> = features
        .par_chunks(CHUNK * length)
        .map(|rows| {
            let count = rows.len() / length;
            let mut output = vec![0.0; count * width];
            let projection = Matrix::new(projection, length, width);
            product(&mut output, width, Matrix::new(rows, count, length), projection, false);
            output
        })
        .collect();
    chunks.concat()
}

/// Disjoint sets whose roots are their smallest members.
struct Groups {
    parents: Vec<usize>,
}

impl Groups {
    fn root(&mut self, mut index: usize) -> usize {
        while self.parents[index] != index {
            self.parents[index] = self.parents[self.parents[index]];
            index = self.parents[index];
        }
        index
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one.max(other)] = one.min(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_cells() {
        let map: Vec<f32> = (0..16u8).map(f32::from).collect();
        assert_eq!(pooled(&map, 4, 2), [2.5, 4.5, 10.5, 12.5]);
        assert_eq!(pooled(&map, 4, 4), map);
        // Cells of an uneven grid overlap.
        assert_eq!(pooled(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 3, 2), [3.0, 4.0, 6.0, 7.0]);
    }

    #[test]
    fn groups_are_connected_components() {
        let mut groups = Groups { parents: (0..6).collect() };
        for (one, other) in [(4, 5), (1, 3), (3, 5)] {
            groups.join(one, other);
        }
        let roots: Vec<usize> = (0..6).map(|index| groups.root(index)).collect();
        assert_eq!(roots, [0, 1, 2, 1, 1, 1]);
    }

    #[test]
    fn a_projection_keeps_similarities() {
        let length = 4 * PROJECTED;
        let mut random = Random::new(1, Purpose::Test, 0);
        #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
        let mut draw = || (0..length).map(|_| random.normal() as f32).collect::<Vec<f32>>();
        let (one, noise) = (draw(), draw());
        let other: Vec<f32> = one.iter().zip(&noise).map(|(a, b)| a + 0.15 * b).collect();
        let similarity = |a: &[f32], b: &[f32]| 2.0 * dot(a, b) / (dot(a, a) + dot(b, b));
        let rows = projected(&[one.clone(), other.clone()].concat(), length, &projection(length));
        let (a, b) = rows.split_at(PROJECTED);
        assert!(similarity(&one, &other) > SIMILAR);
        assert!((similarity(a, b) - similarity(&one, &other)).abs() < SLACK / 2.0);
    }
}
