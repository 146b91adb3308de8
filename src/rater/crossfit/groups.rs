//! Groups of near-duplicate images: connected components of pairs whose features nearly agree, mirrored or not. A chain of
//! images that merely resemble one another, such as drawings on white, is divided at a higher similarity.
//!
//! A fold must hold whole groups: a proxy that has seen an image's near-duplicate has memorized it. The features are
//! the pixels that the tokenizer decodes from the codes, averaged over a coarse grid, so no image is read again.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::{
    encode::ImageTokenizer,
    engine::matmul::{Matrix, product},
    error::Result,
    tokens::encoded::EncodedCorpus,
};

/// Side of the grid that pixels are averaged over.
const GRID: usize = 8;
/// Length of an image's feature vector.
const LENGTH: usize = 3 * GRID * GRID;
/// Two images are near-duplicates if `2⟨f, g⟩ / (‖f‖² + ‖g‖²)` is at least the first of these, for centered features `f`
/// and `g` or the mirrored `g`. A group that is too large is divided at the next threshold.
const SIMILAR: [f32; 5] = [0.97, 0.98, 0.99, 0.995, 0.999];
/// A group is too large if it has more than `1 / LARGE.0` of the images, and more than `LARGE.1` images.
const LARGE: (usize, usize) = (20, 16);
/// Images per block of the search.
const BLOCK: usize = 512;
/// Images that are decoded together.
const CHUNK: usize = 64;

/// For each image, the smallest index of its group.
///
/// All pairs are compared, as products of matrices of a fixed size, so the result does not depend on the number of
/// threads.
///
/// # Errors
/// If a code is out of range.
pub(super) fn near_duplicates(corpus: &EncodedCorpus, tokenizer: &dyn ImageTokenizer) -> Result<Vec<usize>> {
    let indices: Vec<usize> = (0..corpus.len()).collect();
    let mut pooled = Vec::with_capacity(corpus.len() * LENGTH);
    for chunk in indices.chunks(CHUNK) {
        let images = tokenizer.decode(&corpus.codes(chunk)?)?;
        let side = images.dim(2);
        for plane in images.as_slice::<f32>()?.chunks_exact(side * side) {
            pooled.extend(averages(plane, side));
        }
    }
    Ok(groups_of(pooled))
}

/// The groups of images with these features, `[N, LENGTH]`.
fn groups_of(pooled: Vec<f32>) -> Vec<usize> {
    let features = Features::centered(pooled);
    let count = features.squares.len();
    let levels = Mutex::new(SIMILAR.map(|_| Groups { parents: (0..count).collect() }));
    let blocks: Vec<usize> = (0..count).step_by(BLOCK).collect();
    blocks.par_iter().for_each(|&start| features.join_similar(start, &levels));
    divided(levels.into_inner().unwrap_or_else(PoisonError::into_inner), count)
}

/// The roots of the groups at the first level; a group that is too large is divided into those of the next level.
fn divided(levels: [Groups; SIMILAR.len()], count: usize) -> Vec<usize> {
    let most = (count / LARGE.0).max(LARGE.1);
    let mut roots: Vec<usize> = Vec::new();
    for mut groups in levels {
        if roots.is_empty() {
            roots = (0..count).map(|index| groups.root(index)).collect();
            continue;
        }
        let mut sizes = vec![0; count];
        roots.iter().for_each(|&root| sizes[root] += 1);
        for (index, root) in roots.iter_mut().enumerate().filter(|(_, root)| sizes[**root] > most) {
            *root = groups.root(index);
        }
    }
    roots
}

/// Centered features of all images, as they are and mirrored, `[N, LENGTH]`, and their squared norms.
struct Features {
    whole: Vec<f32>,
    mirrored: Vec<f32>,
    squares: Vec<f32>,
}

impl Features {
    fn centered(mut whole: Vec<f32>) -> Self {
        let mut mirrored: Vec<f32> =
            whole.chunks_exact(GRID).flat_map(|row| row.iter().rev().copied()).collect();
        // One center for both, so that mirroring and centering commute.
        let mut center = vec![0.0f64; LENGTH];
        for image in whole.chunks_exact(LENGTH).chain(mirrored.chunks_exact(LENGTH)) {
            center.iter_mut().zip(image).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let count = 2.0 * (whole.len() / LENGTH).max(1) as f64;
        for image in whole.chunks_exact_mut(LENGTH).chain(mirrored.chunks_exact_mut(LENGTH)) {
            for (value, sum) in image.iter_mut().zip(&center) {
                #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
                let mean = (sum / count) as f32;
                *value -= mean;
            }
        }
        let square = |image: &[f32]| image.iter().map(|value| value * value).sum();
        let squares = whole.chunks_exact(LENGTH).map(square).collect();
        Self { whole, mirrored, squares }
    }

    /// Joins the images of the block that begins at `start` with similar images before them. The order in which blocks
    /// are joined does not matter, since a group's root is its smallest member.
    fn join_similar(&self, start: usize, levels: &Mutex<[Groups; SIMILAR.len()]>) {
        let end = (start + BLOCK).min(self.squares.len());
        let rows = Matrix::new(&self.whole[start * LENGTH..end * LENGTH], end - start, LENGTH);
        let mut products = vec![0.0f32; (end - start) * BLOCK];
        for from in (0..end).step_by(BLOCK) {
            let to = (from + BLOCK).min(end);
            let mut similar = Vec::new();
            for features in [&self.whole, &self.mirrored] {
                let columns = Matrix::new(&features[from * LENGTH..to * LENGTH], to - from, LENGTH);
                product(&mut products, to - from, rows, columns.transposed(), false);
                for (row, products) in products.chunks_exact(to - from).take(end - start).enumerate() {
                    let one = start + row;
                    for (other, &product) in (from..to.min(one)).zip(products) {
                        let squares = self.squares[one] + self.squares[other];
                        let level =
                            SIMILAR.iter().take_while(|&bound| 2.0 * product >= bound * squares).count();
                        if level > 0 {
                            similar.push((one, other, level));
                        }
                    }
                }
            }
            let mut levels = levels.lock().unwrap_or_else(PoisonError::into_inner);
            for (one, other, level) in similar {
                levels[..level].iter_mut().for_each(|groups| groups.join(one, other));
            }
        }
    }
}

/// A plane `[side, side]` averaged over the grid; the bounds of a cell are rounded outward.
fn averages(plane: &[f32], side: usize) -> Vec<f32> {
    let bounds = |at: usize| (at * side / GRID, ((at + 1) * side).div_ceil(GRID));
    let mut cells = Vec::with_capacity(GRID * GRID);
    for y in 0..GRID {
        let (top, bottom) = bounds(y);
        for x in 0..GRID {
            let (left, right) = bounds(x);
            let sum: f32 = (top..bottom).flat_map(|row| &plane[row * side + left..row * side + right]).sum();
            cells.push(sum / ((bottom - top) * (right - left)) as f32);
        }
    }
    cells
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
    use crate::engine::{Purpose, Random};

    #[test]
    fn cells_are_averages() {
        let plane: Vec<f32> = (0..16 * 16u16).map(f32::from).collect();
        assert_eq!(averages(&plane, 16)[..2], [8.5, 10.5]);
        // Cells overlap if the grid is finer than the plane, or does not divide it evenly.
        assert_eq!(averages(&[1.0, 2.0, 3.0, 4.0], 2)[..8], [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(averages(&[5.0; 81], 9), [5.0; 64]);
        assert_eq!(averages(&[7.0], 1), [7.0; 64]);
    }

    #[test]
    fn copies_mirrored_copies_and_slight_changes_are_grouped_over_blocks() {
        let mut random = Random::new(1, Purpose::Test, 0);
        #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
        let mut image = || (0..LENGTH).map(|_| random.normal() as f32).collect::<Vec<f32>>();
        let count = 2 * BLOCK + 3;
        let mut images: Vec<Vec<f32>> = (0..count).map(|_| image()).collect();
        let mirrored = images[0].chunks(GRID).flat_map(|row| row.iter().rev().copied()).collect();
        images[count - 1] = mirrored;
        images[BLOCK] = images[1].clone();
        images[BLOCK + 1] =
            images[1].iter().zip(&image()).map(|(value, noise)| value + 0.1 * noise).collect();
        let roots = groups_of(images.concat());
        let of_several: Vec<(usize, usize)> = roots
            .iter()
            .enumerate()
            .filter(|(index, root)| index != *root)
            .map(|(index, &root)| (index, root))
            .collect();
        assert_eq!(of_several, [(BLOCK, 1), (BLOCK + 1, 1), (count - 1, 0)]);
    }

    #[test]
    fn a_chain_of_images_that_resemble_one_another_is_divided_but_not_their_copies() {
        let mut random = Random::new(2, Purpose::Test, 0);
        #[expect(clippy::cast_possible_truncation, reason = "features are f32")]
        let mut image = || (0..LENGTH).map(|_| random.normal() as f32).collect::<Vec<f32>>();
        // Each image is similar to the next one, but the first is not similar to the last. Each occurs twice.
        let (first, last, count) = (image(), image(), 20u16);
        let between = |at: u16| {
            let share = f32::from(at) / f32::from(count - 1);
            first
                .iter()
                .zip(&last)
                .map(|(one, other)| one * (1.0 - share) + other * share)
                .collect::<Vec<f32>>()
        };
        let mut images: Vec<Vec<f32>> = (0..2 * count).map(|at| between(at % count)).collect();
        let chain = images.len();
        let alone = groups_of(images.concat());
        assert!(alone[..usize::from(count)].iter().any(|&root| root != 0), "{alone:?}");
        for at in 0..usize::from(count) {
            assert_eq!(alone[at], alone[at + usize::from(count)], "a copy is in another group");
        }
        // The chain stays one group if it is a small part of the corpus.
        images.extend((0..chain * LARGE.0).map(|_| image()));
        let roots = groups_of(images.concat());
        assert!(roots[..chain].iter().all(|&root| root == 0), "{:?}", &roots[..chain]);
    }

    #[test]
    fn few_or_equal_images_are_grouped() {
        assert!(groups_of(Vec::new()).is_empty());
        assert_eq!(groups_of(vec![0.5; LENGTH]), [0]);
        // Features of equal images are zero once they are centered.
        assert_eq!(groups_of(vec![0.5; 3 * LENGTH]), [0, 0, 0]);
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
}
