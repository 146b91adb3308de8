//! The caption gain: how much better a fold's proxy predicts an image with its own caption than with other ones,
//! `mean_k ℓ(image, caption_k) − ℓ(image, own caption)`. It estimates the pointwise mutual information of image and
//! caption, so it is about 0 for a wrong caption.
//!
//! `ℓ` is the mean over the scales of the pyramid of the mean over their tokens, in nats per token. In a mean over all
//! tokens, the finest scale would have most of the weight; its tokens depend on the coarser ones more than on the
//! caption, so they add noise.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{CrossFit, fold_proxy::FoldProxy, folds::hash, largest_batch};
use crate::{
    config::Config,
    encode::{ImageTokenizer, TextEncoder},
    engine::ops::pyramid::Reach,
    error::{Error, Result},
    files::{
        sealed::{read_sealed, write_sealed},
        sha256,
    },
    generator::fit::{Model, mean_over_scales, normalized},
    interrupt::Interrupt,
    jobs::progress::Progress,
    tokens::encoded::{EncodedCorpus, batch, in_parallel},
};

/// The largest number of captions in a bank.
const BANK: usize = 256;
/// Records per file of finished gains.
const PART: usize = 128;

/// Measurements of a record by the proxy of its fold, which was not trained on the fold. Losses and gains are in nats
/// per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// The fold of the record.
    pub fold: usize,
    /// The loss with its own caption.
    pub loss: f64,
    /// The mean loss with other captions, minus `loss`.
    pub gain: f64,
    /// The standard deviation of the loss over the other captions.
    pub gain_std: f64,
    /// The loss with the empty caption, minus `loss`.
    pub gain_empty: f64,
    /// The norm of the gradient of the mean loss per token.
    pub gradient_norm: f64,
}

impl HeldOut {
    /// The mean of the two gains, over other captions and over the empty one. Their errors differ, so the mean finds
    /// wrong captions better than either gain does.
    pub fn caption_gain(&self) -> f64 {
        f64::midpoint(self.gain, self.gain_empty)
    }
}

/// Captions of a fold that its records are compared with.
pub(super) struct Bank {
    captions: Vec<String>,
    normalized: Vec<String>,
    seed: u64,
}

impl Bank {
    /// At most 256 distinct captions, chosen by a hash of the seed and the record's id.
    ///
    /// # Errors
    /// If the fold has fewer than two distinct captions.
    pub(super) fn new<'a>(
        records: impl Iterator<Item = (&'a str, &'a str)>,
        seed: u64,
        fold: usize,
    ) -> Result<Self> {
        let mut order: Vec<(u64, &str, &str)> =
            records.map(|(id, caption)| (hash(seed, "bank", id, 0), id, caption)).collect();
        order.sort_unstable();
        let (mut captions, mut known) = (Vec::new(), HashSet::new());
        for (_, _, caption) in order {
            let text = normalized(caption);
            if captions.len() < BANK && !text.is_empty() && known.insert(text) {
                captions.push(caption.to_owned());
            }
        }
        if captions.len() < 2 {
            return Err(Error::not_enough_data(format!(
                "the captions of fold {fold} are all the same or empty, so there is no other caption to compare with; use \
                 another rule"
            )));
        }
        Ok(Self::of(captions, seed))
    }

    /// The bank of these captions.
    pub(super) fn of(captions: Vec<String>, seed: u64) -> Self {
        Self { normalized: captions.iter().map(|caption| normalized(caption)).collect(), captions, seed }
    }

    /// Its captions.
    pub(super) fn captions(&self) -> &[String] {
        &self.captions
    }

    /// `count` distinct captions for a record, none of them its own; fewer if the bank has no more.
    fn others(&self, id: &str, caption: &str, count: usize) -> Vec<&str> {
        let (own, size) = (normalized(caption), self.captions.len());
        let mut free: Vec<bool> = self.normalized.iter().map(|text| *text != own).collect();
        let mut chosen = Vec::with_capacity(count);
        for number in 0..count.min(free.iter().filter(|&&free| free).count()) {
            let start =
                usize::try_from(hash(self.seed, "other", id, number as u64) % size as u64).unwrap_or(0);
            let next = (start..size).chain(0..start).find(|&at| free[at]);
            chosen.extend(next.map(|at| self.captions[at].as_str()));
            next.into_iter().for_each(|at| free[at] = false);
        }
        chosen
    }

    fn fingerprint(&self) -> String {
        sha256(self.captions.join("\n").as_bytes())
    }
}

/// A file of finished gains.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    /// Identifies the proxy, the bank, the configuration and the records.
    evaluated_by: String,
    gains: Vec<HeldOut>,
}

/// The measurements of records by a fold's proxy, in order. Finished parts are kept under `name` in the fold's folder.
///
/// # Errors
/// If the fold has too few distinct captions, a loss is not finite, a file cannot be written, or the user interrupts.
pub(super) fn gains(
    cross_fit: &CrossFit<'_>,
    fold: usize,
    proxy: &FoldProxy,
    (name, records): (&str, &[usize]),
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Vec<HeldOut>> {
    let corpus = &cross_fit.data.train;
    let bank = cross_fit.bank(fold)?;
    let (tokenizer, text) = (cross_fit.data.tokenizer.as_ref(), cross_fit.data.text.as_ref());
    let evaluator =
        Evaluator { config: cross_fit.config, tokenizer, text, model: &proxy.model, bank: &bank, fold };
    let common = [
        proxy.fingerprint.clone(),
        bank.fingerprint(),
        cross_fit.config.fingerprint(),
        cross_fit.data.text.fingerprint(),
    ]
    .join("+");
    let mut found = Vec::with_capacity(records.len());
    for (number, part) in records.chunks(PART).enumerate() {
        let path = cross_fit.folder(fold).join(format!("{name}-{number:06}.json"));
        let evaluated = corpus.part(part, Vec::new()).fingerprint();
        let evaluated_by = sha256(format!("{common}+{evaluated}").as_bytes());
        let kept = path.exists().then(|| read_sealed::<Part>(&path, "it is computed again"));
        match kept {
            Some(Ok(kept)) if kept.evaluated_by == evaluated_by && kept.gains.len() == part.len() => {
                found.extend(kept.gains);
                continue;
            }
            Some(Err(error)) => tracing::warn!("{error}"),
            _ => {}
        }
        let mut gains = Vec::with_capacity(part.len());
        for chunk in part.chunks(cross_fit.chunk()) {
            interrupt.check(&format!(
                "{} of {} captions of fold {fold} are evaluated; continue with `train --out {} --resume`",
                found.len(),
                records.len(),
                cross_fit.directory.path().display()
            ))?;
            for (found, &index) in evaluator.evaluate(corpus, chunk)?.into_iter().zip(chunk) {
                gains.push(found.ok_or_else(|| {
                    Error::Diverged(format!(
                        "the loss or gradient of {} is not finite under the proxy of fold {fold}; lower tlr or tclip",
                        corpus.ids[index]
                    ))
                })?);
            }
            let done = found.len() + gains.len();
            progress.counted("evaluating captions", done as u64, records.len() as u64);
        }
        write_sealed(&path, &Part { evaluated_by, gains: gains.clone() })?;
        found.extend(gains);
    }
    Ok(found)
}

/// Evaluates records with the proxy of a fold.
pub(super) struct Evaluator<'a> {
    pub(super) config: &'a Config,
    pub(super) tokenizer: &'a dyn ImageTokenizer,
    pub(super) text: &'a dyn TextEncoder,
    /// The proxy.
    pub(super) model: &'a Model,
    /// The captions that the record's own is compared with.
    pub(super) bank: &'a Bank,
    pub(super) fold: usize,
}

impl Evaluator<'_> {
    /// Evaluates the records at `chunk`; `None` if a loss or gradient is not finite. On a CPU, each is a batch of its own,
    /// so that its bits do not depend on the others.
    ///
    /// # Errors
    /// If an encoder or a device fails.
    pub(super) fn evaluate(&self, corpus: &EncodedCorpus, chunk: &[usize]) -> Result<Vec<Option<HeldOut>>> {
        let count = self.config.crossfit.captions;
        let of = |index: usize, norm: f64| -> Result<Option<HeldOut>> {
            let own = corpus.captions[index].as_str();
            let others = self.bank.others(&corpus.ids[index], own, count);
            let captions: Vec<&str> = [own, ""].into_iter().chain(others).collect();
            Ok(summary(self.fold, &self.losses(corpus, index, &captions, count + 2)?, norm))
        };
        if !self.is_on_device() {
            return in_parallel(chunk, |&index| of(index, self.gradient_norms(corpus, &[index], 1)?[0]));
        }
        let rows = largest_batch(self.config);
        let mut found = Vec::with_capacity(chunk.len());
        for part in chunk.chunks(rows) {
            for (&index, norm) in part.iter().zip(self.gradient_norms(corpus, part, rows)?) {
                found.push(of(index, norm)?);
            }
        }
        Ok(found)
    }

    fn is_on_device(&self) -> bool {
        self.model.parameters.device().is_some()
    }

    /// The losses of an image with each caption, averaged over the scales. On a device, the batch is padded to `rows`, so
    /// that every batch does the same work.
    fn losses(
        &self,
        corpus: &EncodedCorpus,
        index: usize,
        captions: &[&str],
        rows: usize,
    ) -> Result<Vec<f64>> {
        let quantizer = self.tokenizer.quantizer();
        let count = captions.len();
        let rows = if self.is_on_device() { rows } else { count };
        let captions: Vec<&str> = captions.iter().copied().chain(std::iter::repeat("")).take(rows).collect();
        let mut batch = batch(corpus.codes(&vec![index; rows])?, &captions, self.tokenizer, self.text)?;
        if !self.is_on_device() {
            batch = batch.with_reach(quantizer, Reach::Before)?;
        }
        let losses = self.model.scale_losses(&batch, quantizer.patch_nums())?;
        Ok(losses.iter().take(count).map(|scales| mean_over_scales(scales)).collect())
    }

    /// The norms of the gradients of the records' losses, computed in a batch that is padded to `rows` with the last record.
    fn gradient_norms(&self, corpus: &EncodedCorpus, indices: &[usize], rows: usize) -> Result<Vec<f64>> {
        let last = indices.last().copied().unwrap_or(0);
        let padded: Vec<usize> =
            indices.iter().copied().chain(std::iter::repeat(last)).take(rows.max(indices.len())).collect();
        let mut batch = corpus.batch(&padded, |_, _| false, self.tokenizer, self.text)?;
        if !self.is_on_device() {
            batch = batch.with_reach(self.tokenizer.quantizer(), Reach::Before)?;
        }
        let mut norms = self.model.gradient_norms(&batch)?;
        norms.truncate(indices.len());
        Ok(norms)
    }
}

/// The measurements from the losses with a record's own caption, the empty one, and the others.
fn summary(fold: usize, losses: &[f64], gradient_norm: f64) -> Option<HeldOut> {
    let [loss, empty, others @ ..] = losses else { return None };
    let count = others.len() as f64;
    let mean = others.iter().sum::<f64>() / count;
    let variance = others.iter().map(|other| (other - mean).powi(2)).sum::<f64>() / count;
    let found = HeldOut {
        fold,
        loss: *loss,
        gain: mean - loss,
        gain_std: variance.sqrt(),
        gain_empty: empty - loss,
        gradient_norm,
    };
    (gradient_norm.is_finite() && losses.iter().all(|loss| loss.is_finite())).then_some(found)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn a_gain_compares_with_the_mean_of_the_others() {
        let found = summary(1, &[2.0, 2.5, 3.0, 4.0], 0.25).unwrap();
        let expected =
            HeldOut { fold: 1, loss: 2.0, gain: 1.5, gain_std: 0.5, gain_empty: 0.5, gradient_norm: 0.25 };
        assert_eq!(found, expected);
        assert_relative_eq!(found.caption_gain(), 1.0);
        assert_eq!(summary(1, &[2.0, f64::NAN, 3.0], 0.25), None);
        assert_eq!(summary(1, &[2.0, 2.5, 3.0], f64::INFINITY), None);
    }

    #[test]
    fn a_bank_holds_distinct_captions_and_gives_none_of_the_records_own() {
        let ids: Vec<String> = (0..600).map(|index| index.to_string()).collect();
        let captions: Vec<String> = (0..600).map(|index| format!("A red circle, {}", index % 300)).collect();
        let records = || ids.iter().map(String::as_str).zip(captions.iter().map(String::as_str));
        let bank = Bank::new(records(), 3, 0).unwrap();
        assert_eq!(bank.captions.len(), BANK);
        for (id, caption) in records() {
            let others = bank.others(id, caption, 8);
            assert_eq!(others.iter().collect::<HashSet<_>>().len(), 8);
            assert!(others.iter().all(|other| normalized(other) != normalized(caption)));
            assert_eq!(others, bank.others(id, &caption.to_uppercase(), 8));
        }
        // The choice depends on the records, not on their order.
        let mut reversed: Vec<_> = records().collect();
        reversed.reverse();
        assert_eq!(Bank::new(reversed.into_iter(), 3, 0).unwrap().captions, bank.captions);
        let few = Bank::new([("1", "a"), ("2", "b"), ("3", "A.")].into_iter(), 0, 0).unwrap();
        assert_eq!(few.others("1", "a", 8).len(), 1);
        assert!(Bank::new([("1", "a"), ("2", ""), ("3", "A.")].into_iter(), 0, 0).is_err());
    }
}
