//! Images from captions, generated scale by scale from the coarser scales and the text, with a key-value cache and
//! guidance that grows with the scale (upstream: `autoregressive_infer_cfg`).

mod job;
mod layout;

pub use job::{SampleRequest, SampleSummary, sample};
pub use layout::{ImageLayout, geneval_prompts};

use crate::{
    encode::TextStates,
    engine::{Parameters, Purpose, Random, Tape, Tensor, ops::pyramid::PyramidQuantizer},
    error::{Error, Result},
    models::Proxy,
};

/// How codes are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// Guidance at the finest scale. At scale k of S it is `t = guidance · k / (S − 1)`, and the logits are
    /// `(1 + t) · with caption − t · without`.
    pub guidance: f64,
    /// Sample only from this many of the likeliest codes; 0: all.
    pub top_k: usize,
    /// Sample only from the likeliest codes with this total probability; 0: all.
    pub top_p: f64,
    /// The seed of the random streams.
    pub seed: u64,
}

impl Default for SampleSettings {
    /// The upstream defaults: guidance 4, top-k 600, then top-p 0.8.
    fn default() -> Self {
        Self { guidance: 4.0, top_k: 600, top_p: 0.8, seed: 0 }
    }
}

impl SampleSettings {
    /// # Errors
    /// If a setting is not finite or out of range.
    fn check(&self) -> Result<()> {
        if !(self.guidance.is_finite() && self.guidance >= 0.0) {
            return Err(Error::argument(format!("the guidance must be 0 or more, but is {}", self.guidance)));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(Error::argument(format!("top-p must be between 0 and 1, but is {}", self.top_p)));
        }
        Ok(())
    }
}

/// Samples token pyramids from a model.
#[derive(Clone, Copy, Debug)]
pub struct Sampler<'a> {
    /// The network.
    pub network: &'a Proxy,
    /// Its weights.
    pub parameters: &'a Parameters,
    /// Computes the next scale's input from codes.
    pub quantizer: &'a PyramidQuantizer,
    /// How codes are sampled.
    pub settings: SampleSettings,
}

impl Sampler<'_> {
    /// Codes `[B, L]` (u32) for the captions `caption`, a batch of `B`; `empty` is the empty caption, a batch of 1.
    /// `streams` selects the random stream of each image, so an image does not depend on the others in its batch.
    ///
    /// # Errors
    /// If the sizes do not fit or a logit is not finite.
    pub fn codes(&self, caption: &TextStates, empty: &TextStates, streams: &[u64]) -> Result<Tensor> {
        self.settings.check()?;
        let batch = streams.len();
        if caption.states.dim(0) != batch || empty.states.dim(0) != 1 || batch == 0 {
            return Err(Error::invalid(format!(
                "{batch} images, but {} captions and {} empty captions",
                caption.states.dim(0),
                empty.states.dim(0)
            )));
        }
        let guided = self.settings.guidance > 0.0;
        let mut text = if guided { with_empty_captions(caption, empty, batch)? } else { caption.clone() };
        if let Some(device) = self.parameters.device() {
            for tensor in [&mut text.states, &mut text.mask, &mut text.pooled] {
                *tensor = tensor.to_device(device)?;
            }
        }
        let rows = if guided { 2 * batch } else { batch };
        let sides = self.quantizer.patch_nums();
        let (channels, full) = (self.quantizer.channels(), self.quantizer.side());
        let mut reconstruction =
            Tensor::new(&[batch, channels, full, full], vec![0f32; batch * channels * full * full])?;
        let mut input = Tensor::new(&[rows, 0, channels], Vec::<f32>::new())?;
        let mut cache = self.network.cache();
        let mut generated: Vec<Vec<u32>> = vec![Vec::with_capacity(self.quantizer.tokens()); batch];
        for (scale, side) in sides.iter().enumerate() {
            let cells = side * side;
            let given = match self.parameters.device() {
                Some(device) => input.cast(self.parameters.compute_dtype())?.to_device(device)?,
                None => input.clone(),
            };
            let mut tape = Tape::inference(self.parameters);
            let logits = self.network.next_logits(&mut tape, &given, &text, &mut cache)?.into_value();
            let logits = logits.to_host()?.to_f64_vec()?;
            #[expect(clippy::cast_precision_loss, reason = "a few scales")]
            let guidance = self.settings.guidance * scale as f64 / (sides.len() - 1).max(1) as f64;
            let codes = self.sample_codes(&logits, rows, guidance, scale, streams)?;
            for (generated, codes) in generated.iter_mut().zip(codes.chunks_exact(cells)) {
                generated.extend_from_slice(codes);
            }
            let embedded = self.quantizer.embed(scale, &Tensor::new(&[batch, cells], codes)?)?;
            let next = self.quantizer.next_input(scale, &mut reconstruction, &embedded)?;
            if let Some(side) = sides.get(scale + 1) {
                input = rows_of(&next, side * side, rows / batch)?;
            }
        }
        Tensor::new(&[batch, self.quantizer.tokens()], generated.concat())
    }

    /// One code per token of a scale, from logits `[rows, pn², V]`.
    fn sample_codes(
        &self,
        logits: &[f64],
        rows: usize,
        guidance: f64,
        scale: usize,
        streams: &[u64],
    ) -> Result<Vec<u32>> {
        let vocabulary = self.quantizer.vocabulary();
        let half = logits.len() / rows * streams.len();
        let (with, without) = logits.split_at(half);
        let tokens = half / vocabulary / streams.len();
        let mut codes = Vec::with_capacity(half / vocabulary);
        let mut mixed = Vec::with_capacity(vocabulary);
        for (image, (stream, with)) in streams.iter().zip(with.chunks_exact(tokens * vocabulary)).enumerate()
        {
            let mut random =
                Random::new(self.settings.seed, Purpose::Sample, stream.wrapping_mul(64) + scale as u64);
            for (token, with) in with.chunks_exact(vocabulary).enumerate() {
                mixed.clear();
                if without.is_empty() {
                    mixed.extend_from_slice(with);
                } else {
                    let at = (image * tokens + token) * vocabulary;
                    let pairs = with.iter().zip(&without[at..at + vocabulary]);
                    mixed.extend(pairs.map(|(with, without)| (1.0 + guidance) * with - guidance * without));
                }
                codes.push(choose(&mut mixed, self.settings, random.uniform())?);
            }
        }
        Ok(codes)
    }
}

/// Samples from the distribution of logits after top-k and top-p; `uniform` in [0, 1) selects the code.
fn choose(logits: &mut [f64], settings: SampleSettings, uniform: f64) -> Result<u32> {
    if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
        return Err(Error::not_finite(format!("a logit is {bad}; the model has diverged")));
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Likeliest first; ties by code.
    order.sort_by(|&one, &two| logits[two].total_cmp(&logits[one]).then(one.cmp(&two)));
    if settings.top_k > 0 && settings.top_k < order.len() {
        // As upstream, codes tied with the last one kept are kept too.
        let least = logits[order[settings.top_k - 1]];
        let kept = order.iter().take_while(|&&code| logits[code] >= least).count();
        order.truncate(kept);
    }
    let largest = logits[order[0]];
    let mut weights: Vec<f64> = order.iter().map(|&code| (logits[code] - largest).exp()).collect();
    if settings.top_p > 0.0 {
        // Upstream: the least likely codes are removed, as long as their total probability is at most 1 − p.
        let total: f64 = weights.iter().sum();
        let (mut gone, mut kept) = (0.0, weights.len());
        while kept > 1 {
            gone += weights[kept - 1] / total;
            if gone > 1.0 - settings.top_p {
                break;
            }
            kept -= 1;
        }
        weights.truncate(kept);
    }
    let mut left = uniform * weights.iter().sum::<f64>();
    let mut at = weights.len() - 1;
    for (index, weight) in weights.iter().enumerate() {
        if left < *weight {
            at = index;
            break;
        }
        left -= weight;
    }
    u32::try_from(order[at]).map_err(|_| Error::invalid("a code does not fit 32 bits"))
}

/// The captions, followed by the same number of empty ones.
fn with_empty_captions(caption: &TextStates, empty: &TextStates, batch: usize) -> Result<TextStates> {
    let floats = |caption: &Tensor, empty: &Tensor| -> Result<Tensor> {
        let mut shape = caption.shape().to_vec();
        if empty.shape()[1..] != shape[1..] {
            return Err(Error::shape(
                "sample",
                format!("captions of shape {shape:?}, but an empty one of {:?}", empty.shape()),
            ));
        }
        shape[0] *= 2;
        let repeated = empty.as_slice::<f32>()?.repeat(batch);
        Tensor::new(&shape, [caption.as_slice::<f32>()?, &repeated].concat())
    };
    let (mask, none) = (caption.mask.as_slice::<u32>()?, empty.mask.as_slice::<u32>()?.repeat(batch));
    Ok(TextStates {
        states: floats(&caption.states, &empty.states)?,
        mask: Tensor::new(&[2 * batch, caption.mask.dim(1)], [mask, &none].concat())?,
        pooled: floats(&caption.pooled, &empty.pooled)?,
    })
}

/// Maps `[B, C, pn, pn]` as rows `[copies · B, pn², C]`, with the whole batch repeated.
fn rows_of(maps: &Tensor, cells: usize, copies: usize) -> Result<Tensor> {
    let (batch, channels) = (maps.dim(0), maps.dim(1));
    let values = maps.as_slice::<f32>()?;
    let mut rows = Vec::with_capacity(copies * values.len());
    for map in values.chunks_exact(channels * cells) {
        for cell in 0..cells {
            rows.extend((0..channels).map(|channel| map[channel * cells + cell]));
        }
    }
    let rows = rows.repeat(copies);
    Tensor::new(&[copies * batch, cells, channels], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(top_k: usize, top_p: f64) -> SampleSettings {
        SampleSettings { guidance: 0.0, top_k, top_p, seed: 0 }
    }

    /// How often each code is sampled in 10,000 evenly spaced samples.
    fn shares(logits: &[f64], settings: SampleSettings) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for sample_codes in 0..10_000 {
            let code = choose(&mut logits.to_vec(), settings, (f64::from(sample_codes) + 0.5) / 1e4).unwrap();
            counts[code as usize] += 1;
        }
        counts
    }

    #[test]
    fn samples_follow_the_softmax() {
        let logits = [0.1f64.ln(), 0.6f64.ln(), 0.3f64.ln()];
        assert_eq!(shares(&logits, settings(0, 0.0)), [1000, 6000, 3000]);
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_those_as_likely() {
        let logits = [1.0, 3.0, 2.0, 2.0, 0.0];
        assert_eq!(shares(&logits, settings(1, 0.0)), [0, 10_000, 0, 0, 0]);
        let counts = shares(&logits, settings(2, 0.0));
        assert!(counts[2] > 0 && counts[3] > 0, "two codes tie for the second rank");
        assert_eq!((counts[0], counts[4]), (0, 0));
    }

    #[test]
    fn top_p_drops_the_tail_but_never_all() {
        let logits: Vec<f64> = [0.5f64, 0.3, 0.15, 0.05].iter().map(|share| share.ln()).collect();
        assert_eq!(shares(&logits, settings(0, 0.85))[2..], [1579, 0]);
        assert_eq!(shares(&logits, settings(0, 0.79))[2..], [0, 0]);
        assert_eq!(shares(&logits, settings(0, 1e-9)), [10_000, 0, 0, 0]);
        assert_eq!(shares(&[0.0, 0.0], settings(0, 1.0)), [5000, 5000]);
    }

    #[test]
    fn a_non_finite_logit_is_an_error() {
        let error = choose(&mut [0.0, f64::NAN], settings(0, 0.0), 0.5).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    }
}
