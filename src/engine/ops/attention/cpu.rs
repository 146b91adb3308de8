//! CPU reference of attention, one task per sample and head.

use std::sync::Arc;

use rayon::prelude::*;

use crate::{
    engine::{
        Float, Tensor,
        float::vectorized,
        matmul::{Matrix, product},
        ops::{
            attention::RotaryTable,
            layer_norm::cpu::{dot, sum},
        },
    },
    error::Result,
};

/// Queries per tile: their logits are the largest buffer of a task.
const TILE: usize = 128;
/// Upstream upper bound of a head's scale.
const LARGEST_SCALE: f64 = 100.0;
/// Upstream lower bound of a vector's length in normalization.
const SHORTEST: f64 = 1e-12;

/// Layout of queries, keys or values in their source: rows of `stride` values, with the heads starting at `offset`.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Rows per sample.
    pub length: usize,
    /// Values per row.
    pub stride: usize,
    /// The first channel of head 0.
    pub offset: usize,
}

/// The sizes of one attention.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// The queries, in the first source.
    pub queries: Side,
    /// The keys, in the second source.
    pub keys: Side,
    /// The values, in the second source.
    pub values: Side,
    /// The number of keys that each query attends to, from the first on; non-decreasing.
    pub visible: Arc<Vec<usize>>,
    /// Which keys of each sample are unmasked.
    pub key_mask: Option<Vec<bool>>,
}

/// Values that the backward pass needs in addition to inputs and output.
pub struct Saved {
    /// The maximum of each query's logits and `1 / Σ exp(logit − maximum)`, `[B, H, L, 2]`; −∞ and 0 if it has no
    /// keys. Two values, because the log-sum-exp would lose digits where logits reach 100.
    row: Tensor,
}

/// Gradients of one attention.
pub struct AttentionGradients {
    /// Of the two sources; `None` for the second where both are one packed tensor.
    pub d_sources: [Option<Tensor>; 2],
    /// Of the logarithm of the scale, `[B, H]`.
    pub d_scale: Option<Tensor>,
}

/// Rows of one head, gathered, rotated and normalized.
struct Rows<T> {
    values: Vec<T>,
    /// `1 / max(‖row‖, 1e-12)` before normalization.
    inverse_length: Vec<T>,
}

/// Rotary angles in the compute type.
struct Rotary<T> {
    cosine: Vec<T>,
    sine: Vec<T>,
}

impl<T: Float> Rotary<T> {
    fn new(table: &RotaryTable) -> Self {
        Self {
            cosine: table.cosine.iter().map(|&value| T::of(value)).collect(),
            sine: table.sine.iter().map(|&value| T::of(value)).collect(),
        }
    }

    /// Rotates the pairs of each row, the first of which is token `first`; with `backwards`, by the opposite angles
    /// (for gradients).
    #[inline(always)]
    fn turn(&self, rows: &mut [T], first: usize, head_dim: usize, backwards: bool) {
        let half = head_dim / 2;
        let [cosine, sine] = [&self.cosine, &self.sine].map(|table| table[first * half..].chunks(half));
        let angles = cosine.zip(sine);
        for (row, (cosine, sine)) in rows.chunks_mut(head_dim).zip(angles) {
            for ((pair, &cosine), &sine) in row.as_chunks_mut::<2>().0.iter_mut().zip(cosine).zip(sine) {
                let sine = if backwards { -sine } else { sine };
                let [real, imaginary] = *pair;
                *pair = [real * cosine - imaginary * sine, real * sine + imaginary * cosine];
            }
        }
    }
}

/// The rotation angles, and the token of the first row.
type Turn<'a, T> = Option<(&'a Rotary<T>, usize)>;

impl Heads {
    /// The rotations of queries and keys: with more keys than queries, the queries are the last tokens.
    fn turns<'a, T>(&self, rotary: Option<&'a Rotary<T>>) -> [Turn<'a, T>; 2] {
        let first = self.keys.length.saturating_sub(self.queries.length);
        [rotary.map(|rotary| (rotary, first)), rotary.map(|rotary| (rotary, 0))]
    }

    fn gather<T: Float>(&self, source: &[T], side: Side, sample: usize, head: usize) -> Vec<T> {
        let mut rows = T::numbers(side.length * self.head_dim);
        for (row, target) in rows.chunks_exact_mut(self.head_dim).enumerate() {
            let at = (sample * side.length + row) * side.stride + side.offset + head * self.head_dim;
            target.copy_from_slice(&source[at..at + self.head_dim]);
        }
        rows
    }

    fn prepare<T: Float>(&self, mut values: Vec<T>, rotary: Turn<'_, T>, normalize: bool) -> Rows<T> {
        let mut inverse_length = Vec::new();
        vectorized(
            #[inline(always)]
            || {
                if let Some((rotary, first)) = rotary {
                    rotary.turn(&mut values, first, self.head_dim, false);
                }
                if normalize {
                    for row in values.chunks_mut(self.head_dim) {
                        let inverse = T::ONE / sum(row, |value| value * value).sqrt().max(T::of(SHORTEST));
                        inverse_length.push(inverse);
                        for value in row {
                            *value *= inverse;
                        }
                    }
                }
            },
        );
        Rows { values, inverse_length }
    }

    /// Maps the gradient of normalized, rotated rows to that of the original rows, in place.
    fn undo<T: Float>(&self, d_rows: &mut [T], rows: &Rows<T>, rotary: Turn<'_, T>) {
        vectorized(
            #[inline(always)]
            || {
                if !rows.inverse_length.is_empty() {
                    let normalized = rows.values.chunks(self.head_dim);
                    for ((d, row), &inverse) in
                        d_rows.chunks_mut(self.head_dim).zip(normalized).zip(&rows.inverse_length)
                    {
                        // Below the lower bound the length is constant, so the gradient is not projected.
                        let along = if inverse < T::of(1.0 / SHORTEST) { dot(d, row) } else { T::ZERO };
                        for (d, row) in d.iter_mut().zip(row) {
                            *d = (*d - *row * along) * inverse;
                        }
                    }
                }
                if let Some((rotary, first)) = rotary {
                    rotary.turn(d_rows, first, self.head_dim, true);
                }
            },
        );
    }

    /// The mask of the keys of `sample`.
    fn mask(&self, sample: usize) -> Option<&[bool]> {
        let length = self.keys.length;
        self.key_mask.as_ref().map(|mask| &mask[sample * length..(sample + 1) * length])
    }

    /// Factor on the logits of each head, and whether the learned scale is below its bound.
    fn factors<T: Float>(&self, scale: Option<&Tensor>) -> Result<Vec<(T, bool)>> {
        Ok(match scale {
            None => vec![(T::of(0.25 / (self.head_dim as f64).sqrt()), false); self.heads],
            Some(scale) => {
                let bound = T::of(LARGEST_SCALE.ln());
                let values = scale.as_slice::<T>()?;
                let clamp = |log: T| if log > bound { bound } else { log };
                values.iter().map(|&log| (T::of(clamp(log).to_f64().exp()), log <= bound)).collect()
            }
        })
    }
}

/// Attention of every sample and head: output `[B, L, C]` and what the backward pass needs.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub fn forward<T: Float>(
    heads: &Heads,
    sources: [&Tensor; 2],
    scale: Option<&Tensor>,
    rotary: Option<&RotaryTable>,
) -> Result<(Tensor, Saved)> {
    let (first, second) = (sources[0].as_slice::<T>()?, sources[1].as_slice::<T>()?);
    let (dim, length, keys) = (heads.head_dim, heads.queries.length, heads.keys.length);
    let rotary = rotary.map(Rotary::new);
    let [q_turn, k_turn] = heads.turns(rotary.as_ref());
    let factors = heads.factors::<T>(scale)?;
    // Head-major, so that each task owns a contiguous part.
    let mut attended = T::numbers(heads.batch * heads.heads * length * dim);
    let mut saved = vec![[T::NEGATIVE_INFINITY, T::ZERO]; heads.batch * heads.heads * length];
    attended.par_chunks_mut(length * dim).zip(saved.par_chunks_mut(length)).enumerate().for_each(
        |(task, (attended, saved))| {
            let (sample, head) = (task / heads.heads, task % heads.heads);
            let q = heads.gather(first, heads.queries, sample, head);
            let q = heads.prepare(q, q_turn, scale.is_some());
            let k = heads.gather(second, heads.keys, sample, head);
            let k = heads.prepare(k, k_turn, scale.is_some());
            let v = heads.gather(second, heads.values, sample, head);
            let mut logits = T::numbers(TILE * keys);
            for start in (0..length).step_by(TILE) {
                let end = (start + TILE).min(length);
                let visible = heads.visible[end - 1];
                if visible == 0 {
                    attended[start * dim..end * dim].fill(T::ZERO);
                    continue;
                }
                let queries = Matrix::new(&q.values[start * dim..end * dim], end - start, dim);
                let tile = &mut logits[..(end - start) * visible];
                product(tile, visible, queries, Matrix::new(&k.values, visible, dim).transposed(), false);
                vectorized(
                    #[inline(always)]
                    || {
                        for (row, logits) in (start..end).zip(tile.chunks_mut(visible)) {
                            saved[row] =
                                softmax(logits, heads.visible[row], factors[head].0, heads.mask(sample));
                        }
                    },
                );
                let values = Matrix::new(&v, visible, dim);
                let target = &mut attended[start * dim..end * dim];
                product(target, dim, Matrix::new(tile, end - start, visible), values, false);
            }
            [q.values, k.values, v, logits].into_iter().for_each(T::give_back);
        },
    );
    let output = scatter(heads, &[&attended], heads.queries.length);
    T::give_back(attended);
    let row = Tensor::new(&[heads.batch, heads.heads, length, 2], saved.into_flattened())?;
    Ok((Tensor::new(&[heads.batch, length, heads.heads * dim], output)?, Saved { row }))
}

/// Turns logits into probabilities in place and returns the maximum logit and the inverse of the sum. Keys from
/// `visible` on, and masked keys, get 0.
#[inline(always)]
fn softmax<T: Float>(products: &mut [T], visible: usize, factor: T, mask: Option<&[bool]>) -> [T; 2] {
    let (shown, hidden) = products.split_at_mut(visible);
    hidden.fill(T::ZERO);
    for value in shown.iter_mut() {
        *value *= factor;
    }
    hide(shown, mask);
    let largest = largest(shown);
    if largest == T::NEGATIVE_INFINITY {
        shown.fill(T::ZERO);
        return [T::NEGATIVE_INFINITY, T::ZERO];
    }
    for value in shown.iter_mut() {
        *value = (*value - largest).exp();
    }
    let total = sum(shown, |value| value);
    let inverse = T::ONE / total;
    for value in shown.iter_mut() {
        *value *= inverse;
    }
    [largest, inverse]
}

#[inline(always)]
fn hide<T: Float>(logits: &mut [T], mask: Option<&[bool]>) {
    if let Some(mask) = mask {
        for (value, &keep) in logits.iter_mut().zip(mask) {
            *value = if keep { *value } else { T::NEGATIVE_INFINITY };
        }
    }
}

/// The maximum, in 16 lanes; −∞ if empty.
#[inline(always)]
pub(crate) fn largest<T: Float>(values: &[T]) -> T {
    let mut lanes = [T::NEGATIVE_INFINITY; 16];
    let (body, tail) = values.as_chunks::<16>();
    for chunk in body {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(tail)
        .fold(T::NEGATIVE_INFINITY, |most, value| if *value > most { *value } else { most })
}

/// Interleaves head-major parts `[B, H, length, D]`: `[B, length, parts, H, D]`.
fn scatter<T: Float>(heads: &Heads, parts: &[&[T]], length: usize) -> Vec<T> {
    let dim = heads.head_dim;
    let width = parts.len() * heads.heads * dim;
    let mut output = T::numbers(heads.batch * length * width);
    output.par_chunks_mut((length * width).max(1)).enumerate().for_each(|(sample, output)| {
        for (row, output) in output.chunks_mut(width).enumerate() {
            for (at, target) in output.chunks_mut(dim).enumerate() {
                let (part, head) = (at / heads.heads, at % heads.heads);
                let from = ((sample * heads.heads + head) * length + row) * dim;
                target.copy_from_slice(&parts[part][from..from + dim]);
            }
        }
    });
    output
}

/// Gradients of every sample and head.
///
/// # Errors
/// If a tensor's dtype is not `T`.
#[expect(clippy::too_many_arguments, reason = "the forward's inputs, its output and the gradient")]
pub fn backward<T: Float>(
    heads: &Heads,
    sources: [&Tensor; 2],
    output: &Tensor,
    saved: &Saved,
    d_output: &Tensor,
    scale: Option<&Tensor>,
    rotary: Option<&RotaryTable>,
    packed: bool,
) -> Result<AttentionGradients> {
    let (first, second) = (sources[0].as_slice::<T>()?, sources[1].as_slice::<T>()?);
    let (output, d_output) = (output.as_slice::<T>()?, d_output.as_slice::<T>()?);
    let saved = saved.row.as_slice::<T>()?.as_chunks::<2>().0;
    let (dim, length, keys) = (heads.head_dim, heads.queries.length, heads.keys.length);
    let rotary = rotary.map(Rotary::new);
    let [q_turn, k_turn] = heads.turns(rotary.as_ref());
    let factors = heads.factors::<T>(scale)?;
    let result_side = Side { length, stride: heads.heads * dim, offset: 0 };
    let tasks = heads.batch * heads.heads;
    let (mut d_queries, mut d_scale) = (T::numbers(tasks * length * dim), vec![T::ZERO; tasks]);
    let (mut d_keys, mut d_values) = (T::numbers(tasks * keys * dim), T::numbers(tasks * keys * dim));
    d_queries
        .par_chunks_mut((length * dim).max(1))
        .zip(d_keys.par_chunks_mut((keys * dim).max(1)))
        .zip(d_values.par_chunks_mut((keys * dim).max(1)))
        .zip(d_scale.par_iter_mut())
        .enumerate()
        .for_each(|(task, (((d_q, d_k), d_v), d_scale))| {
            let (sample, head) = (task / heads.heads, task % heads.heads);
            let (factor, learning) = factors[head];
            [&mut *d_q, &mut *d_k, &mut *d_v].into_iter().for_each(|d| d.fill(T::ZERO));
            let q = heads.gather(first, heads.queries, sample, head);
            let q = heads.prepare(q, q_turn, scale.is_some());
            let k = heads.gather(second, heads.keys, sample, head);
            let k = heads.prepare(k, k_turn, scale.is_some());
            let v = heads.gather(second, heads.values, sample, head);
            let out = heads.gather(output, result_side, sample, head);
            let d_out = heads.gather(d_output, result_side, sample, head);
            let saved = &saved[task * length..(task + 1) * length];
            let (mut logits, mut d_logits) = (T::numbers(TILE * keys), T::numbers(TILE * keys));
            for start in (0..length).step_by(TILE) {
                let end = (start + TILE).min(length);
                let (rows, visible) = (end - start, heads.visible[end - 1]);
                if visible == 0 {
                    continue;
                }
                let here = start * dim..end * dim;
                let (p, d) = (&mut logits[..rows * visible], &mut d_logits[..rows * visible]);
                let queries = Matrix::new(&q.values[here.clone()], rows, dim);
                let d_here = Matrix::new(&d_out[here.clone()], rows, dim);
                product(p, visible, queries, Matrix::new(&k.values, visible, dim).transposed(), false);
                product(d, visible, d_here, Matrix::new(&v, visible, dim).transposed(), false);
                let mut scale_sum = T::ZERO;
                vectorized(
                    #[inline(always)]
                    || {
                        let tile = p.chunks_mut(visible).zip(d.chunks_mut(visible));
                        for (row, (p, d)) in (start..end).zip(tile) {
                            let at = row * dim..(row + 1) * dim;
                            let mean = dot(&out[at.clone()], &d_out[at]);
                            let mask = heads.mask(sample);
                            scale_sum +=
                                softmax_backward(p, d, heads.visible[row], factor, saved[row], mean, mask);
                        }
                    },
                );
                *d_scale += scale_sum;
                let (p, d) = (Matrix::new(p, rows, visible), Matrix::new(d, rows, visible));
                product(&mut d_v[..visible * dim], dim, p.transposed(), d_here, true);
                product(&mut d_k[..visible * dim], dim, d.transposed(), queries, true);
                product(&mut d_q[here], dim, d, Matrix::new(&k.values, visible, dim), false);
            }
            if !learning {
                *d_scale = T::ZERO;
            }
            heads.undo(d_q, &q, q_turn);
            heads.undo(d_k, &k, k_turn);
            [q.values, k.values, v, out, d_out, logits, d_logits].into_iter().for_each(T::give_back);
        });
    let d_scale = scale.map(|_| Tensor::new(&[heads.batch, heads.heads], d_scale)).transpose()?;
    let channels = heads.heads * dim;
    let d_sources = if packed {
        let all = scatter(heads, &[&d_queries, &d_keys, &d_values], length);
        [Some(Tensor::new(&[heads.batch, length, 3 * channels], all)?), None]
    } else {
        let d_q = scatter(heads, &[&d_queries], length);
        let d_kv = scatter(heads, &[&d_keys, &d_values], keys);
        [
            Some(Tensor::new(&[heads.batch, length, channels], d_q)?),
            Some(Tensor::new(&[heads.batch, keys, 2 * channels], d_kv)?),
        ]
    };
    [d_queries, d_keys, d_values].into_iter().for_each(T::give_back);
    Ok(AttentionGradients { d_sources, d_scale })
}

/// Computes probabilities from logits, and gradients of logits from those of probabilities, in place; returns
/// the gradient of the logarithm of the scale.
#[inline(always)]
fn softmax_backward<T: Float>(
    products: &mut [T],
    d: &mut [T],
    visible: usize,
    factor: T,
    [most, inverse]: [T; 2],
    mean: T,
    mask: Option<&[bool]>,
) -> T {
    if most == T::NEGATIVE_INFINITY {
        products.fill(T::ZERO);
        d.fill(T::ZERO);
        return T::ZERO;
    }
    let (p, hidden) = products.split_at_mut(visible);
    hidden.fill(T::ZERO);
    let (d, hidden) = d.split_at_mut(visible);
    hidden.fill(T::ZERO);
    if let Some(mask) = mask {
        for ((p, d), &keep) in p.iter_mut().zip(d.iter_mut()).zip(mask) {
            if !keep {
                // Low enough for the probability to be 0.
                *p = T::of(-1e30);
                *d = T::ZERO;
            }
        }
    }
    let mut lanes = [T::ZERO; 16];
    for (p, d) in p.chunks_mut(16).zip(d.chunks_mut(16)) {
        for ((lane, p), d) in lanes.iter_mut().zip(p).zip(d) {
            let logit = *p * factor;
            let probability = (logit - most).exp() * inverse;
            let d_logit = probability * (*d - mean);
            // A masked key has probability 0; its placeholder logit must not enter the sum.
            *lane += if probability > T::ZERO { d_logit * logit } else { T::ZERO };
            *p = probability;
            *d = d_logit * factor;
        }
    }
    let mut total = T::ZERO;
    for lane in lanes {
        total += lane;
    }
    total
}
