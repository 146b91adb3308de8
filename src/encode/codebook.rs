//! Fits a pyramid's codebook by k-means over the residuals of all scales.
//!
//! The residuals that a scale quantizes depend on the codes of the coarser scales, so every iteration runs the whole
//! pyramid with the current codebook, then moves each code toward the mean of the residuals assigned to it. Lloyd's
//! full step would overshoot: moving a code changes the residuals of every finer scale at the same position, so the
//! steps of all scales add up (on clip art with six scales the full step diverges). A step of one over the number of
//! scales is stable, and equals the full step for a single scale.

use rayon::prelude::*;

use crate::{
    engine::{
        Purpose, Random, Tensor,
        ops::pyramid::{
            PyramidQuantizer,
            cpu::resample::{Area, Bicubic},
        },
    },
    error::Result,
};

/// Number of iterations.
const ROUNDS: usize = 24;

/// Number of final iterations without reseeding, so that the means converge.
const SETTLING: usize = 8;

/// Number of residuals per code that suffices to fit it; more maps would only take longer.
const RESIDUALS_PER_CODE: usize = 256;

/// Maps are summed in at most this many groups, each by one task in order, so that sums do not depend on the number of
/// threads.
const GROUPS: usize = 16;

/// A code that is chosen less often than this share of the average is reseeded. A larger share would assign more and
/// more codes to outliers, which are rare by nature.
const RARE: f64 = 0.01;

/// Fits a codebook `[V, C]` to channels-last feature maps `[N, H², C]`, N ≥ 1, H the last of `patch_nums`. The maps
/// must be in random order: if there are very many, only the first are used.
///
/// # Errors
/// If `patch_nums` is invalid.
pub(super) fn fit(
    maps: &[f32],
    patch_nums: &[usize],
    channels: usize,
    vocabulary: usize,
    seed: u64,
) -> Result<Tensor> {
    let length = patch_nums.last().map_or(0, |side| side * side * channels);
    let tokens: usize = patch_nums.iter().map(|side| side * side).sum();
    let enough = (RESIDUALS_PER_CODE * vocabulary).div_ceil(tokens.max(1)).max(1);
    let maps = &maps[..maps.len().min(enough * length)];
    let first = first_codes(maps, patch_nums, channels, vocabulary, seed);
    let mut codebook = Tensor::new(&[vocabulary, channels], first)?;
    #[expect(clippy::cast_precision_loss, reason = "a few scales")]
    let step = 1.0 / patch_nums.len() as f64;
    let mut best = (f64::INFINITY, codebook.clone());
    for round in 0..=ROUNDS {
        let quantizer = PyramidQuantizer::new(patch_nums, &codebook, Vec::new())?;
        let found = observe(&quantizer, maps);
        if found.error < best.0 {
            best = (found.error, codebook.clone());
        }
        if round < ROUNDS {
            found.update(codebook.as_mut_slice()?, step, round + SETTLING < ROUNDS);
        }
    }
    Ok(best.1)
}

/// Initial codes: residuals of the same pyramid without quantization, sampled from all scales.
fn first_codes(
    maps: &[f32],
    patch_nums: &[usize],
    channels: usize,
    vocabulary: usize,
    seed: u64,
) -> Vec<f32> {
    let full = patch_nums[patch_nums.len() - 1];
    let length = full * full * channels;
    let count = maps.len() / length;
    let tokens: usize = patch_nums.iter().map(|side| side * side).sum();
    let mut random = Random::new(seed, Purpose::Fit, 1);
    let draws: Vec<(usize, usize)> = {
        #[expect(clippy::cast_possible_truncation, reason = "an index fits usize")]
        let mut draw = |bound: usize| random.below(bound as u64) as usize;
        (0..vocabulary).map(|_| (draw(count), draw(tokens))).collect()
    };
    let resizes: Vec<(Area, Bicubic)> =
        patch_nums.iter().map(|&side| (Area::new(full, side), Bicubic::new(side, full))).collect();
    draws
        .par_iter()
        .flat_map_iter(|&(map, token)| {
            let mut rest = maps[map * length..][..length].to_vec();
            let (mut rows, mut working, mut resized) = (Vec::new(), Vec::new(), vec![0.0; length]);
            let mut before = 0;
            for (&side, (down, up)) in patch_nums.iter().zip(&resizes) {
                rows.resize(side * side * channels, 0.0);
                down.pool(&rest, channels, &mut rows);
                if token < before + side * side {
                    break;
                }
                before += side * side;
                up.resize(&rows, channels, &mut working, &mut resized);
                for (rest, value) in rest.iter_mut().zip(&resized) {
                    *rest -= value;
                }
            }
            rows[(token - before) * channels..][..channels].to_vec()
        })
        .collect()
}

/// Statistics of an iteration: for every code its count and the sum of its residuals; and the farthest residuals.
struct Round {
    channels: usize,
    /// The squared error of the reconstruction, summed over the maps.
    error: f64,
    weights: Vec<f64>,
    sums: Vec<f64>,
    /// (squared distance, residual), one per map.
    far: Vec<(f32, Vec<f32>)>,
}

fn observe(quantizer: &PyramidQuantizer, maps: &[f32]) -> Round {
    let (vocabulary, channels, side) = (quantizer.vocabulary(), quantizer.channels(), quantizer.side());
    let length = side * side * channels;
    let group = (maps.len() / length).div_ceil(GROUPS).max(1) * length;
    let empty = || Round {
        channels,
        error: 0.0,
        weights: vec![0.0; vocabulary],
        sums: vec![0.0; vocabulary * channels],
        far: Vec::new(),
    };
    let rounds: Vec<Round> = maps
        .par_chunks(group)
        .map(|maps| {
            let mut round = empty();
            for map in maps.chunks_exact(length) {
                let mut farthest = (-1f32, Vec::new());
                quantizer.observe(map, |found| {
                    if found.codes.len() == side * side {
                        // The residual after the last scale is the error of the reconstruction.
                        round.error +=
                            found.distances.iter().map(|&distance| f64::from(distance)).sum::<f64>();
                    }
                    for ((row, &code), &distance) in
                        found.rows.chunks_exact(channels).zip(found.codes).zip(found.distances)
                    {
                        let code = code as usize;
                        round.weights[code] += 1.0;
                        for (sum, &value) in round.sums[code * channels..][..channels].iter_mut().zip(row) {
                            *sum += f64::from(value);
                        }
                        if distance > farthest.0 {
                            farthest = (distance, row.to_vec());
                        }
                    }
                });
                round.far.push(farthest);
            }
            round
        })
        .collect();
    let mut all = empty();
    for round in rounds {
        all.error += round.error;
        for (sum, value) in all.weights.iter_mut().zip(&round.weights) {
            *sum += value;
        }
        for (sum, value) in all.sums.iter_mut().zip(&round.sums) {
            *sum += value;
        }
        all.far.extend(round.far);
    }
    // The sort is stable: of equally far residuals, the one of the earlier map comes first.
    all.far.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

impl Round {
    /// Moves every code by the share `step` toward the mean of its residuals; with `reseed`, a rarely chosen code is
    /// set to a far residual.
    fn update(self, codebook: &mut [f32], step: f64, reseed: bool) {
        #[expect(clippy::cast_precision_loss, reason = "a count of codes")]
        let rare = RARE * self.weights.iter().sum::<f64>() / self.weights.len() as f64;
        let mut far = self.far.into_iter().filter(|(distance, _)| *distance > 0.0);
        for (code, values) in codebook.chunks_exact_mut(self.channels).enumerate() {
            let weight = self.weights[code];
            if reseed
                && weight < rare
                && let Some((_, row)) = far.next()
            {
                values.copy_from_slice(&row);
                continue;
            }
            if weight > 0.0 {
                for (value, sum) in values.iter_mut().zip(&self.sums[code * self.channels..]) {
                    let moved = f64::from(*value) + step * (sum / weight - f64::from(*value));
                    #[expect(clippy::cast_possible_truncation, reason = "a codebook is f32")]
                    {
                        *value = moved as f32;
                    }
                }
            }
        }
    }
}
