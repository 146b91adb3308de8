//! Nearest code of a vector: |z|² + |e|² - 2z·e in f32; ties go to the first code.

use pulp::{Arch, Simd, WithSimd};

const LANES: usize = 16;
const ROWS: usize = 4;

/// A codebook packed for searching: codes in blocks of 16, channel by channel within a block, so that one
/// vector instruction compares a channel of a row with that of 16 codes.
#[derive(Clone, Debug)]
pub(crate) struct NearestCode {
    channels: usize,
    /// `[blocks, C, LANES]`; the last block is padded with codes that are infinitely far away.
    blocks: Vec<[f32; LANES]>,
    /// |e|², `[blocks, LANES]`.
    norms: Vec<[f32; LANES]>,
}

impl NearestCode {
    /// Packs a codebook `[V, C]` of `channels` columns.
    ///
    /// # Panics
    /// If `channels` is 0.
    pub(crate) fn new(codebook: &[f32], channels: usize) -> Self {
        assert!(channels > 0, "a code has at least one channel");
        let vocabulary = codebook.len() / channels;
        let count = vocabulary.div_ceil(LANES);
        let mut blocks = vec![[0.0; LANES]; count * channels];
        let mut norms = vec![[f32::INFINITY; LANES]; count];
        for (code, values) in codebook.chunks_exact(channels).enumerate() {
            let (block, lane) = (code / LANES, code % LANES);
            norms[block][lane] = values.iter().map(|value| value * value).sum();
            for (channel, &value) in values.iter().enumerate() {
                blocks[block * channels + channel][lane] = value;
            }
        }
        Self { channels, blocks, norms }
    }

    /// Finds the nearest code of each of the rows `[N, C]`, and its squared distance.
    ///
    /// # Panics
    /// If the slices have inconsistent lengths.
    pub(crate) fn search(&self, rows: &[f32], codes: &mut [u32], distances: &mut [f32]) {
        assert_eq!(rows.len(), codes.len() * self.channels, "one code per row");
        assert_eq!(codes.len(), distances.len(), "one distance per row");
        Arch::new().dispatch(Search { nearest: self, rows, codes, distances });
    }
}

struct Search<'a> {
    nearest: &'a NearestCode,
    rows: &'a [f32],
    codes: &'a mut [u32],
    distances: &'a mut [f32],
}

impl WithSimd for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { nearest, rows, codes, distances } = self;
        let mut at = 0;
        while at + ROWS <= codes.len() {
            search::<ROWS>(nearest, rows, at, codes, distances);
            at += ROWS;
        }
        for at in at..codes.len() {
            search::<1>(nearest, rows, at, codes, distances);
        }
    }
}

/// The nearest codes of `N` neighboring rows.
#[inline(always)]
fn search<const N: usize>(
    nearest: &NearestCode,
    rows: &[f32],
    at: usize,
    codes: &mut [u32],
    distances: &mut [f32],
) {
    let channels = nearest.channels;
    let rows: [&[f32]; N] = std::array::from_fn(|row| &rows[(at + row) * channels..][..channels]);
    let norm: [f32; N] = std::array::from_fn(|row| rows[row].iter().map(|value| value * value).sum());
    let mut best = [[f32::INFINITY; LANES]; N];
    let mut best_block = [[0u32; LANES]; N];
    let blocks = nearest.blocks.chunks_exact(channels).zip(&nearest.norms);
    for (block_number, (block, norms)) in (0u32..).zip(blocks) {
        let mut products = [[0f32; LANES]; N];
        for (channel, codes) in block.iter().enumerate() {
            for row in 0..N {
                let value = rows[row][channel];
                for lane in 0..LANES {
                    products[row][lane] += value * codes[lane];
                }
            }
        }
        for row in 0..N {
            for lane in 0..LANES {
                let distance = (norm[row] + norms[lane]) - 2.0 * products[row][lane];
                let nearer = distance < best[row][lane];
                best[row][lane] = if nearer { distance } else { best[row][lane] };
                best_block[row][lane] = if nearer { block_number } else { best_block[row][lane] };
            }
        }
    }
    for row in 0..N {
        let (mut distance, mut code) = (f32::INFINITY, 0);
        for lane in 0..LANES {
            #[expect(clippy::cast_possible_truncation, reason = "the vocabulary was checked to fit u32")]
            let candidate = best_block[row][lane] * LANES as u32 + lane as u32;
            if best[row][lane] < distance || (best[row][lane] == distance && candidate < code) {
                (distance, code) = (best[row][lane], candidate);
            }
        }
        codes[at + row] = code;
        distances[at + row] = distance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Purpose, Random};

    #[test]
    fn finds_the_nearest_code_for_any_number_of_codes_channels_and_rows() {
        for (vocabulary, channels, rows) in [(1, 1, 1), (5, 3, 7), (16, 8, 4), (33, 2, 9), (100, 17, 6)] {
            let mut random = Random::new(vocabulary as u64, Purpose::Test, channels as u64);
            let codebook: Vec<f32> = (0..vocabulary * channels).map(|_| random.normal() as f32).collect();
            let queries: Vec<f32> = (0..rows * channels).map(|_| random.normal() as f32).collect();
            let (mut codes, mut distances) = (vec![0; rows], vec![0.0; rows]);
            NearestCode::new(&codebook, channels).search(&queries, &mut codes, &mut distances);
            for (row, query) in queries.chunks_exact(channels).enumerate() {
                let all: Vec<f64> = codebook
                    .chunks_exact(channels)
                    .map(|code| code.iter().zip(query).map(|(e, z)| f64::from(e - z).powi(2)).sum())
                    .collect();
                let least = all.iter().copied().fold(f64::INFINITY, f64::min);
                assert!((all[codes[row] as usize] - least).abs() < 1e-5);
                assert!((f64::from(distances[row]) - least).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn the_first_of_equal_codes_wins_at_any_index_in_a_block() {
        let mut codebook = vec![9.0f32; 40 * 2];
        for code in [37, 18, 23] {
            codebook[code * 2..][..2].copy_from_slice(&[1.0, 2.0]);
        }
        let (mut codes, mut distances) = ([0; 5], [0.0; 5]);
        let rows = [1.0, 2.0].repeat(5);
        NearestCode::new(&codebook, 2).search(&rows, &mut codes, &mut distances);
        assert_eq!(codes, [18; 5]);
        assert_eq!(distances, [0.0; 5]);
    }
}
