//! Cases of attention, with the CPU reference in f64 and plain loops in the kernels' own types.

use std::sync::Arc;

use alchemist_engine::engine::{
    Tensor,
    cuda::{Buffer, Device, device::Factor},
    ops::attention::{
        RotaryTable,
        cpu::{self, Heads, Side},
        visible_keys,
    },
};
use half::{bf16, f16};

/// A type that kernels store numbers in, with the bound on its error.
pub(crate) trait Number: Factor {
    const BOUND: f64;
    fn round(value: f64) -> Self;
    fn wide(self) -> f64;
}
impl Number for f32 {
    const BOUND: f64 = 1e-5;
    fn round(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}
impl Number for bf16 {
    const BOUND: f64 = 2e-2;
    fn round(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}
impl Number for f16 {
    const BOUND: f64 = 3e-3;
    fn round(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

/// Numbers between -1 and 1, the same on every run.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn rounded<T: Number>(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&value| T::round(value).wide()).collect()
}

pub(crate) fn upload<T: Number>(device: &Device, values: &[f64]) -> Buffer<T> {
    device.upload(&values.iter().map(|&value| T::round(value)).collect::<Vec<_>>()).unwrap()
}

/// One attention with its inputs, as f64 numbers that the kernel's type can hold.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Self-attention over this pyramid, or cross-attention from `queries` to `keys`.
    pub(crate) pyramid: Option<Vec<usize>>,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) visible: Option<Vec<usize>>,
    pub(crate) mask: Option<Vec<u32>>,
    pub(crate) log_scale: Option<Vec<f64>>,
    pub(crate) rotary: Option<RotaryTable>,
    pub(crate) sources: [Vec<f64>; 2],
    pub(crate) d_out: Vec<f64>,
}

impl Case {
    pub(crate) fn pyramid<T: Number>(
        batch: usize,
        heads: usize,
        head_dim: usize,
        patch_nums: &[usize],
    ) -> Self {
        let tokens: usize = patch_nums.iter().map(|side| side * side).sum();
        let mut rotary = RotaryTable::new(patch_nums, head_dim, 10000.0, 64.0);
        rotary.cosine = rounded::<f32>(&rotary.cosine);
        rotary.sine = rounded::<f32>(&rotary.sine);
        let channels = heads * head_dim;
        Self {
            batch,
            heads,
            head_dim,
            pyramid: Some(patch_nums.to_vec()),
            queries: tokens,
            keys: tokens,
            visible: Some(visible_keys(patch_nums)),
            mask: None,
            log_scale: Some(rounded::<f32>(&(0..heads).map(|h| (4.0 - h as f64).ln()).collect::<Vec<_>>())),
            rotary: Some(rotary),
            sources: [rounded::<T>(&noise(batch * tokens * 3 * channels, 1)), Vec::new()],
            d_out: rounded::<T>(&noise(batch * tokens * channels, 2)),
        }
    }

    pub(crate) fn cross<T: Number>(
        sizes: [usize; 3],
        queries: usize,
        keys: usize,
        mask: impl Fn(usize, usize) -> u32,
    ) -> Self {
        let [batch, heads, head_dim] = sizes;
        let channels = heads * head_dim;
        Self {
            batch,
            heads,
            head_dim,
            pyramid: None,
            queries,
            keys,
            visible: None,
            mask: Some((0..batch * keys).map(|at| mask(at / keys, at % keys)).collect()),
            log_scale: Some(rounded::<f32>(&(0..heads).map(|h| (4.0 - h as f64).ln()).collect::<Vec<_>>())),
            rotary: None,
            sources: [
                rounded::<T>(&noise(batch * queries * channels, 3)),
                rounded::<T>(&noise(batch * keys * 2 * channels, 4)),
            ],
            d_out: rounded::<T>(&noise(batch * queries * channels, 5)),
        }
    }

    pub(crate) fn packed(&self) -> bool {
        self.pyramid.is_some()
    }

    pub(crate) fn describe(&self) -> String {
        let Self { batch, heads, head_dim, queries, keys, log_scale, rotary, .. } = self;
        format!(
            "B {batch}, H {heads}, D {head_dim}, {queries} queries, {keys} keys, scale {log_scale:?}, rotary {}",
            rotary.is_some()
        )
    }

    pub(crate) fn heads(&self) -> Heads {
        let channels = self.heads * self.head_dim;
        let (q_stride, kv_stride, k, v) = if self.packed() {
            (3 * channels, 3 * channels, channels, 2 * channels)
        } else {
            (channels, 2 * channels, 0, channels)
        };
        Heads {
            batch: self.batch,
            heads: self.heads,
            head_dim: self.head_dim,
            queries: Side { length: self.queries, stride: q_stride, offset: 0 },
            keys: Side { length: self.keys, stride: kv_stride, offset: k },
            values: Side { length: self.keys, stride: kv_stride, offset: v },
            visible: Arc::new(self.visible.clone().unwrap_or_else(|| vec![self.keys; self.queries])),
            key_mask: self.mask.as_ref().map(|mask| mask.iter().map(|&seen| seen == 1).collect()),
        }
    }

    pub(crate) fn second(&self) -> &[f64] {
        &self.sources[usize::from(!self.packed())]
    }

    /// One sample of the batch, alone.
    pub(crate) fn alone(&self, sample: usize) -> Self {
        let part = |values: &[f64]| {
            let each = values.len() / self.batch;
            values[sample * each..][..each].to_vec()
        };
        Self {
            batch: 1,
            mask: self.mask.as_ref().map(|mask| mask[sample * self.keys..][..self.keys].to_vec()),
            sources: [part(&self.sources[0]), part(&self.sources[1])],
            d_out: part(&self.d_out),
            ..self.clone()
        }
    }
}

/// Everything that forward and backward give.
#[derive(Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) out: Vec<f64>,
    pub(crate) d_sources: [Vec<f64>; 2],
    pub(crate) d_log_scale: Vec<f64>,
}

impl Outcome {
    pub(crate) fn parts(&self) -> [(&'static str, &[f64]); 4] {
        [
            ("the result", &self.out),
            ("the gradient of the first source", &self.d_sources[0]),
            ("the gradient of the second source", &self.d_sources[1]),
            ("the gradient of the scale", &self.d_log_scale),
        ]
    }

    /// The error of each part: the largest, and the root mean square.
    pub(crate) fn errors(&self, expected: &Self) -> [[f64; 2]; 4] {
        let mut errors = [[0.0; 2]; 4];
        for (([largest, mean], (what, values)), (_, expected)) in
            errors.iter_mut().zip(self.parts()).zip(expected.parts())
        {
            assert_eq!(values.len(), expected.len(), "{what}");
            let root_mean = |squares: f64| (squares / expected.len().max(1) as f64).sqrt();
            let rms = root_mean(expected.iter().map(|value| value * value).sum());
            // With one key all gradients but the values' are zero, but for rounding: nothing to be relative to.
            let rms = if rms < 1e-9 { 1.0 } else { rms };
            let mut squares = 0.0;
            for (value, expected) in values.iter().zip(expected) {
                let error = (value - expected).abs();
                squares += error * error;
                let relative = error / (expected.abs() + rms);
                *largest = if relative.is_nan() { f64::INFINITY } else { f64::max(*largest, relative) };
            }
            *mean = root_mean(squares) / rms;
        }
        errors
    }
}

pub(crate) fn reference(case: &Case) -> Outcome {
    let heads = case.heads();
    let tensor = |values: &[f64]| Tensor::new(&[values.len()], values.to_vec()).unwrap();
    let (first, second) = (tensor(&case.sources[0]), tensor(case.second()));
    let scale = case.log_scale.as_ref().map(|scale| tensor(scale));
    let rotary = case.rotary.as_ref();
    let sources = [&first, &second];
    let (out, saved) = cpu::forward::<f64>(&heads, sources, scale.as_ref(), rotary).unwrap();
    let gradients = cpu::backward::<f64>(
        &heads,
        sources,
        &out,
        &saved,
        &tensor(&case.d_out),
        scale.as_ref(),
        rotary,
        case.packed(),
    )
    .unwrap();
    let numbers =
        |tensor: Option<Tensor>| tensor.map_or(Vec::new(), |t| t.as_slice::<f64>().unwrap().to_vec());
    let [first, second] = gradients.d_sources;
    Outcome {
        out: numbers(Some(out)),
        d_sources: [numbers(first), numbers(second)],
        d_log_scale: numbers(gradients.d_scale),
    }
}

/// Plain loops that round the result of every step to `T`, as a network of single operations would. Products of vectors
/// are summed in f32.
pub(crate) fn naive<T: Number>(case: &Case) -> Outcome {
    let round = |value: f64| T::round(value).wide();
    let heads = case.heads();
    let (dim, channels) = (case.head_dim, case.heads * case.head_dim);
    let (first, second) = (&case.sources[0], case.second());
    let mut outcome = Outcome {
        out: vec![0.0; case.d_out.len()],
        d_sources: [vec![0.0; first.len()], vec![0.0; case.sources[1].len()]],
        d_log_scale: Vec::new(),
    };
    for (sample, head) in (0..case.batch).flat_map(|b| (0..case.heads).map(move |h| (b, h))) {
        let at =
            |side: Side, row: usize| (sample * side.length + row) * side.stride + side.offset + head * dim;
        let angle = |row: usize, pair: usize, table: &[f64]| table[row * dim / 2 + pair];
        let turn = |values: &mut [f64], row: usize, sign: f64| {
            if let Some(table) = &case.rotary {
                for pair in 0..dim / 2 {
                    let (c, s) = (angle(row, pair, &table.cosine), sign * angle(row, pair, &table.sine));
                    let (real, imaginary) = (values[2 * pair], values[2 * pair + 1]);
                    values[2 * pair] = round(real * c - imaginary * s);
                    values[2 * pair + 1] = round(real * s + imaginary * c);
                }
            }
        };
        let normalize = case.log_scale.is_some();
        let prepare = |source: &[f64], side: Side, row: usize| {
            let mut values = source[at(side, row)..][..dim].to_vec();
            turn(&mut values, row, 1.0);
            let length = values.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
            let inverse = if normalize { 1.0 / length } else { 1.0 };
            (values.iter().map(|value| round(value * inverse)).collect::<Vec<_>>(), inverse)
        };
        let undo = |d: &[f64], hat: &[f64], inverse: f64, row: usize| {
            let along: f64 = if normalize { d.iter().zip(hat).map(|(d, hat)| d * hat).sum() } else { 0.0 };
            let mut values: Vec<f64> =
                d.iter().zip(hat).map(|(d, hat)| round((d - hat * along) * inverse)).collect();
            turn(&mut values, row, -1.0);
            values
        };
        let log = case.log_scale.as_ref().map(|scale| scale[head]);
        let factor = log.map_or(0.25 / (dim as f64).sqrt(), |log| log.min(100f64.ln()).exp());
        let k: Vec<_> = (0..case.keys).map(|row| prepare(second, heads.keys, row)).collect();
        let mut d_k = vec![vec![0.0; dim]; case.keys];
        let mut d_v = vec![vec![0.0; dim]; case.keys];
        let mut d_log = 0.0;
        for row in 0..case.queries {
            let (q, inverse) = prepare(first, heads.queries, row);
            let scaled: Vec<f64> = q.iter().map(|value| round(value * factor)).collect();
            let place = (sample * case.queries + row) * channels + head * dim;
            let d_out = &case.d_out[place..][..dim];
            let sees = |key: usize| {
                key < heads.visible[row]
                    && heads.key_mask.as_ref().is_none_or(|mask| mask[sample * case.keys + key])
            };
            let keys: Vec<usize> = (0..case.keys).filter(|&key| sees(key)).collect();
            let dot = |a: &[f64], b: &[f64]| {
                f64::from(a.iter().zip(b).fold(0.0f32, |sum, (a, b)| sum + *a as f32 * *b as f32))
            };
            let logits: Vec<f64> = keys.iter().map(|&key| round(dot(&scaled, &k[key].0))).collect();
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            let p: Vec<f64> = logits.iter().map(|logit| round((logit - most).exp() / total)).collect();
            let value = |key: usize| &second[at(heads.values, key)..][..dim];
            let d_p: Vec<f64> = keys.iter().map(|&key| round(dot(d_out, value(key)))).collect();
            let mut d_scaled = vec![0.0; dim];
            for (&key, p) in keys.iter().zip(&p) {
                for c in 0..dim {
                    outcome.out[place + c] += p * value(key)[c];
                }
            }
            outcome.out[place..place + dim].iter_mut().for_each(|value| *value = round(*value));
            // From the rounded output, as by all who do not keep the probabilities.
            let mean = dot(&outcome.out[place..place + dim], d_out);
            for ((&key, p), d_p) in keys.iter().zip(&p).zip(&d_p) {
                let d_s = round(p * (d_p - mean));
                for c in 0..dim {
                    d_scaled[c] += d_s * k[key].0[c];
                    d_k[key][c] += d_s * scaled[c];
                    d_v[key][c] += p * d_out[c];
                }
            }
            let d_q: Vec<f64> = d_scaled.iter().map(|d| round(round(*d) * factor)).collect();
            d_log += dot(&d_scaled, &scaled);
            outcome.d_sources[0][at(heads.queries, row)..][..dim]
                .copy_from_slice(&undo(&d_q, &q, inverse, row));
        }
        let target = &mut outcome.d_sources[usize::from(!case.packed())];
        for row in 0..case.keys {
            let rounded: Vec<f64> = d_k[row].iter().map(|&value| round(value)).collect();
            let d = undo(&rounded, &k[row].0, k[row].1, row);
            target[at(heads.keys, row)..][..dim].copy_from_slice(&d);
            for c in 0..dim {
                target[at(heads.values, row) + c] = round(d_v[row][c]);
            }
        }
        if let Some(log) = log {
            outcome.d_log_scale.push(if log <= 100f64.ln() { d_log } else { 0.0 });
        }
    }
    outcome
}
