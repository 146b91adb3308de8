//! A batch as the networks see it, and what a pass over it shows of the predictions.

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

/// One batch as the networks see it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The codes to be predicted, `[B, L]` u32.
    pub codes: Tensor,
    /// The pyramid input of all scales but the first, `[B, L - L₀, Cvae]` f32, where `L₀ = patch_nums[0]²`, or
    /// `[B, L, Cvae]` with zeros for the first. Nothing where it is to be made from the codes, see [`CodeReader`].
    pub input: Option<Tensor>,
    /// The same for a network that sees up to each scale itself, which a rater does ([`Reach::Through`]). Nothing where it is
    /// not needed, or is to be made from the codes.
    pub through: Option<Tensor>,
    /// The captions.
    pub text: TextStates,
    /// Tokens of the finest scale, the last ones of each row.
    pub last_scale: usize,
}

impl Batch {
    /// The same batch with its input made on the host.
    ///
    /// # Errors
    /// If the codes are not the quantizer's.
    pub fn with_input(self, quantizer: &PyramidQuantizer) -> Result<Self> {
        Ok(Self { input: Some(quantizer.input(&self.codes)?), ..self })
    }

    /// The same batch with the rows that show what `reach` says, made on the host, beside those that it has.
    ///
    /// # Errors
    /// If the codes are not the quantizer's.
    pub fn with_reach(self, quantizer: &PyramidQuantizer, reach: Reach) -> Result<Self> {
        match reach {
            Reach::Before => self.with_input(quantizer),
            Reach::Through => {
                Ok(Self { through: Some(quantizer.input_reaching(&self.codes, reach)?), ..self })
            }
        }
    }

    /// The pyramid input whose rows show what `reach` says.
    ///
    /// # Errors
    /// If it has not been made.
    pub fn reaching(&self, reach: Reach) -> Result<&Tensor> {
        let through = || {
            Error::invalid("the input of a batch up to each scale itself has not been made from its codes")
        };
        match reach {
            Reach::Before => self.input(),
            Reach::Through => self.through.as_ref().ok_or_else(through),
        }
    }

    /// The pyramid input.
    ///
    /// # Errors
    /// If it has not been made.
    pub fn input(&self) -> Result<&Tensor> {
        self.input
            .as_ref()
            .ok_or_else(|| Error::invalid("the input of a batch has not been made from its codes"))
    }

    /// The tokens of `layout` alone, of a batch on the host whose input has been made.
    ///
    /// # Errors
    /// If the input has not been made or there are fewer tokens.
    pub fn part(&self, layout: &Layout) -> Result<Self> {
        let (places, input) = (layout.places(), self.input()?);
        let [batch, tokens] = [self.codes.dim(0), self.codes.dim(1)];
        let (rows, channels) = (input.dim(1), input.dim(2));
        // The input has no rows for the first scale, or zeros.
        let without = tokens - rows;
        let first = layout.whole_first();
        let kept: Vec<usize> = places.iter().copied().filter(|&place| place >= first.max(without)).collect();
        if places.last().is_some_and(|&last| last >= tokens) {
            return Err(Error::invalid(format!("a layout of more tokens than the {tokens} of a batch")));
        }
        let codes: Vec<u32> = self
            .codes
            .as_slice::<u32>()?
            .chunks_exact(tokens)
            .flat_map(|codes| places.iter().map(|&place| codes[place]))
            .collect();
        let values: Vec<f32> = input
            .as_slice::<f32>()?
            .chunks_exact((rows * channels).max(1))
            .flat_map(|sample| {
                kept.iter().flat_map(|&place| &sample[(place - without) * channels..][..channels])
            })
            .copied()
            .collect();
        Ok(Self {
            codes: Tensor::new(&[batch, places.len()], codes)?,
            input: Some(Tensor::new(&[batch, kept.len(), channels], values)?),
            through: None,
            text: self.text.clone(),
            last_scale: layout.last_scale(),
        })
    }

    /// Makes the input of this reach where it is missing; the codes are on a device.
    ///
    /// # Errors
    /// Those of [`CodeReader::input`].
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

    /// The same batch on a device, floats in the type of the activations; nothing is copied if it is there.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn to_device(&self, device: &Device, dtype: DType) -> Result<Self> {
        let mut batch = self.narrowed(dtype)?;
        for tensor in batch.tensors_mut() {
            *tensor = tensor.to_device(device)?;
        }
        Ok(batch)
    }

    /// Floats in the type of the activations: narrowed on the host, half as much has to be copied.
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

    /// The tensors, to be taken elsewhere.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let TextStates { states, mask, pooled } = &mut self.text;
        [&mut self.codes, states, mask, pooled].into_iter().chain(&mut self.input).chain(&mut self.through)
    }
}

/// Loss and accuracy (percent) over all tokens and over those of the last scale: `[loss, tail loss, accuracy, tail
/// accuracy]` (upstream.md, C9).
///
/// # Errors
/// If the last scale has no token or more than there are, or a device fails.
pub(crate) fn token_measures(seen: &CrossEntropy, tail: usize) -> Result<[f64; 4]> {
    let (samples, tokens) = (seen.token_loss.dim(0), seen.token_loss.dim(1));
    if tail == 0 || tail > tokens {
        return Err(Error::shape("token measures", format!("a last scale of {tail} tokens among {tokens}")));
    }
    let (losses, correct) = (seen.token_loss.to_f64_vec()?, seen.correct.to_host()?);
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
