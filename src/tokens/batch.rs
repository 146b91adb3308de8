//! Batches of encoded samples, and the loss and accuracy of a forward pass over one.

use crate::{
    encode::TextStates,
    engine::{
        DType, Tensor,
        cuda::Device,
        ops::{
            cross_entropy::CrossEntropy,
            pyramid::{CodeReader, PyramidQuantizer, Reach},
        },
    },
    error::{Error, Result},
    models::Layout,
};

/// One batch of inputs and targets.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The target codes, `[B, L]` u32.
    pub codes: Tensor,
    /// The pyramid input of all scales but the first, `[B, L - L₀, Cvae]` f32, where `L₀ = patch_nums[0]²`, or
    /// `[B, L, Cvae]` with zeros for the first scale. `None` if it is computed from the codes; see [`CodeReader`].
    pub input: Option<Tensor>,
    /// The same for a network whose input for a scale includes that scale, such as the rater ([`Reach::Through`]).
    /// `None` if it is not needed or is computed from the codes.
    pub through: Option<Tensor>,
    /// The captions.
    pub text: TextStates,
    /// Number of tokens of the finest scale, which come last in each row.
    pub last_scale: usize,
}

impl Batch {
    /// Returns the batch with its pyramid input computed on the host.
    ///
    /// # Errors
    /// If a code is outside the quantizer's vocabulary.
    pub fn with_input(self, quantizer: &PyramidQuantizer) -> Result<Self> {
        Ok(Self { input: Some(quantizer.input(&self.codes)?), ..self })
    }

    /// Returns the batch with the input of `reach` computed on the host in addition to the inputs it has.
    ///
    /// # Errors
    /// If a code is outside the quantizer's vocabulary.
    pub fn with_reach(self, quantizer: &PyramidQuantizer, reach: Reach) -> Result<Self> {
        match reach {
            Reach::Before => self.with_input(quantizer),
            Reach::Through => {
                Ok(Self { through: Some(quantizer.input_reaching(&self.codes, reach)?), ..self })
            }
        }
    }

    /// The pyramid input of `reach`.
    ///
    /// # Errors
    /// If it has not been computed.
    pub fn reaching(&self, reach: Reach) -> Result<&Tensor> {
        let through =
            || Error::invalid("batch: the input with `Reach::Through` has not been computed from the codes");
        match reach {
            Reach::Before => self.input(),
            Reach::Through => self.through.as_ref().ok_or_else(through),
        }
    }

    /// The pyramid input.
    ///
    /// # Errors
    /// If it has not been computed.
    pub fn input(&self) -> Result<&Tensor> {
        self.input
            .as_ref()
            .ok_or_else(|| Error::invalid("batch: the input has not been computed from the codes"))
    }

    /// Returns the tokens of `layout` only. The batch must be on the host, with its input computed.
    ///
    /// # Errors
    /// If the input has not been computed or the batch has fewer tokens than the layout.
    pub fn part(&self, layout: &Layout) -> Result<Self> {
        let (positions, input) = (layout.indices(), self.input()?);
        let [batch, tokens] = [self.codes.dim(0), self.codes.dim(1)];
        let (rows, channels) = (input.dim(1), input.dim(2));
        // The input has no rows for the first scale, or zeros.
        let without = tokens - rows;
        let first = layout.whole_first();
        let kept: Vec<usize> =
            positions.iter().copied().filter(|&position| position >= first.max(without)).collect();
        if positions.last().is_some_and(|&last| last >= tokens) {
            return Err(Error::invalid(format!(
                "the layout has more tokens than the batch, which has {tokens}"
            )));
        }
        let codes: Vec<u32> = self
            .codes
            .as_slice::<u32>()?
            .chunks_exact(tokens)
            .flat_map(|codes| positions.iter().map(|&position| codes[position]))
            .collect();
        let values: Vec<f32> = input
            .as_slice::<f32>()?
            .chunks_exact((rows * channels).max(1))
            .flat_map(|sample| {
                kept.iter().flat_map(|&position| &sample[(position - without) * channels..][..channels])
            })
            .copied()
            .collect();
        Ok(Self {
            codes: Tensor::new(&[batch, positions.len()], codes)?,
            input: Some(Tensor::new(&[batch, kept.len(), channels], values)?),
            through: None,
            text: self.text.clone(),
            last_scale: layout.last_scale(),
        })
    }

    /// Computes the input of `reach` if it is missing. The codes are on a device.
    ///
    /// # Errors
    /// See [`CodeReader::input`].
    pub(crate) fn read_codes(
        &mut self,
        reader: Option<&CodeReader>,
        dtype: DType,
        reach: Reach,
    ) -> Result<()> {
        let input = match reach {
            Reach::Before => &mut self.input,
            Reach::Through => &mut self.through,
        };
        if let (None, Some(reader)) = (&input, reader) {
            *input = Some(reader.input(&self.codes, dtype, reach)?);
        }
        Ok(())
    }

    /// Returns the batch on `device`, with floats in `dtype`, the activations' type. Nothing is copied if it is
    /// already there.
    ///
    /// # Errors
    /// If the device runs out of memory or fails.
    pub fn to_device(&self, device: &Device, dtype: DType) -> Result<Self> {
        let mut batch = self.narrowed(dtype)?;
        for tensor in batch.tensors_mut() {
            *tensor = tensor.to_device(device)?;
        }
        Ok(batch)
    }

    /// Converts floats to `dtype` on the host, which halves the copy for 16-bit types.
    pub(crate) fn narrowed(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            codes: self.codes.clone(),
            input: self.input.as_ref().map(|input| input.cast(dtype)).transpose()?,
            through: self.through.as_ref().map(|input| input.cast(dtype)).transpose()?,
            text: TextStates {
                states: self.text.states.cast(dtype)?,
                mask: self.text.mask.clone(),
                pooled: self.text.pooled.cast(dtype)?,
            },
            last_scale: self.last_scale,
        })
    }

    /// All tensors of the batch, mutably, to move them to another device.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let TextStates { states, mask, pooled } = &mut self.text;
        [&mut self.codes, states, mask, pooled].into_iter().chain(&mut self.input).chain(&mut self.through)
    }
}

/// Loss and accuracy (percent) over all tokens and over those of the last scale:
/// `[loss, tail loss, accuracy, tail accuracy]` (upstream.md, C9).
///
/// # Errors
/// If the last scale is empty or has more tokens than the batch, or a device fails.
pub(crate) fn token_measures(cross_entropy: &CrossEntropy, tail: usize) -> Result<[f64; 4]> {
    let (samples, tokens) = (cross_entropy.token_loss.dim(0), cross_entropy.token_loss.dim(1));
    if tail == 0 || tail > tokens {
        return Err(Error::shape("token measures", format!("the last scale has {tail} of {tokens} tokens")));
    }
    let (losses, correct) = (cross_entropy.token_loss.to_f64_vec()?, cross_entropy.correct.to_host()?);
    let mut sums = [0.0; 4];
    for (losses, correct) in losses.chunks(tokens).zip(correct.as_slice::<u32>()?.chunks(tokens)) {
        let count = |correct: &[u32]| 100.0 * correct.iter().map(|&one| f64::from(one)).sum::<f64>();
        let total = (samples * tokens) as f64;
        let total_tail = (samples * tail) as f64;
        sums[0] += losses.iter().sum::<f64>() / total;
        sums[1] += losses[tokens - tail..].iter().sum::<f64>() / total_tail;
        sums[2] += count(correct) / total;
        sums[3] += count(&correct[tokens - tail..]) / total_tail;
    }
    Ok(sums)
}
