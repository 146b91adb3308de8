//! The caption gain of a model on held-out records: how much better it predicts images with their own captions than with
//! those of other records. It is 0 for a model that ignores its captions.

use super::Model;
use crate::{
    encode::{ImageTokenizer, TextEncoder},
    error::Result,
    tokens::encoded::{EncodedCorpus, batch},
};

/// Other captions per record.
const OTHERS: usize = 4;
/// The largest number of records that are evaluated.
const RECORDS: usize = 1024;

/// A caption normalized for comparison: letters and digits in lower case, one space between words.
pub(crate) fn normalized(caption: &str) -> String {
    let words = caption.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The mean over the scales of the pyramid of a sample's mean loss on each. In a mean over all tokens, the finest
/// scale would have most of the weight, although its tokens depend on the coarser ones more than on the caption.
#[expect(clippy::cast_precision_loss, reason = "a few scales")]
pub(crate) fn mean_over_scales(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// The mean of `ℓ(image, other caption) − ℓ(image, own caption)` over at most 1,024 records of `corpus` and, for each,
/// the captions of four other records; in nats per token, averaged per scale and then over the scales. Captions that
/// equal the record's own, apart from case and punctuation, are skipped. `None` if no caption differs.
///
/// # Errors
/// If an encoder fails or a shape does not fit.
pub(super) fn caption_gain(
    model: &Model,
    corpus: &EncodedCorpus,
    size: usize,
    tokenizer: &dyn ImageTokenizer,
    text: &dyn TextEncoder,
) -> Result<Option<f64>> {
    let count = corpus.len().min(RECORDS);
    let sides = tokenizer.quantizer().patch_nums();
    let names: Vec<String> = corpus.captions[..count].iter().map(|caption| normalized(caption)).collect();
    let (mut sum, mut pairs) = (0.0, 0.0);
    for start in (0..count).step_by(size) {
        let indices: Vec<usize> = (start..(start + size).min(count)).collect();
        let losses = |captions: &[&str]| -> Result<Vec<f64>> {
            let mut batch = batch(corpus.codes(&indices)?, captions, tokenizer, text)?;
            if model.reader.is_none() {
                batch = batch.with_input(tokenizer.quantizer())?;
            }
            let scales = model.scale_losses(&batch, sides)?;
            Ok(scales.iter().map(|scales| mean_over_scales(scales)).collect())
        };
        let of = |index: usize| corpus.captions[index].as_str();
        let own = losses(&indices.iter().map(|&index| of(index)).collect::<Vec<_>>())?;
        for number in 1..=OTHERS {
            // Each `number` selects a different record, if there are enough records.
            let other = |index: usize| (index + (number * count).div_ceil(OTHERS + 1)) % count;
            let found = losses(&indices.iter().map(|&index| of(other(index))).collect::<Vec<_>>())?;
            for ((&index, own), found) in indices.iter().zip(&own).zip(found) {
                if names[index] != names[other(index)] {
                    sum += found - own;
                    pairs += 1.0;
                }
            }
        }
    }
    Ok((pairs > 0.0).then(|| sum / pairs))
}
