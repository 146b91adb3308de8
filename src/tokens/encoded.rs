//! An encoded corpus in memory: the codes and caption of every usable record.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    data::Record,
    encode::{ImageTokenizer, TextEncoder, TextStates},
    engine::{Purpose, Random, Tensor},
    error::{Error, LeftOutRows, Result},
    files::hexadecimal,
    interrupt::{Interrupt, NO_STEP},
    jobs::progress::Progress,
    tokens::{
        batch::Batch,
        records::FailedRecord,
        tokenize::{FitImages, Tokenize},
    },
};

/// Usable records with their codes.
#[derive(Clone, Debug)]
pub struct EncodedCorpus {
    /// Ids of the usable records, in table order.
    pub ids: Vec<String>,
    /// Captions of the usable records.
    pub captions: Vec<String>,
    /// Records that could not be used.
    pub failed: Vec<FailedRecord>,
    codes: Vec<u16>,
    tokens: usize,
    /// For each record of the table, the start of a SHA-256 over id, caption and codes; 0 if it could not be used.
    pub(crate) rows: Vec<u64>,
}

impl EncodedCorpus {
    /// Encodes every record, from the cache or from its image.
    ///
    /// # Errors
    /// If the vocabulary has more than 65,536 codes or the user interrupts the job.
    pub(crate) fn encode(
        tokenize: Tokenize<'_>,
        mut records: Vec<Record>,
        images: &mut FitImages,
        interrupt: &Interrupt,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let tokens = tokenize.tokenizer.quantizer().tokens();
        let total = records.len() as u64;
        let (mut codes, mut reasons) = (Vec::new(), Vec::with_capacity(records.len()));
        let origins = tokenize.each(&records, images, |index, found| {
            interrupt.check(NO_STEP)?;
            progress.counted("tokenizing", index as u64 + 1, total);
            reasons.push(match found {
                Ok(found) => {
                    codes.extend(found);
                    None
                }
                Err(error) => Some(error.to_string()),
            });
            Ok(())
        })?;
        if let Some(cache) = tokenize.cache {
            let folder = cache.folder().display();
            if origins.changed > 0 {
                tracing::warn!(
                    "{} images have changed since {folder} was written; they are tokenized again",
                    origins.changed
                );
            }
            tracing::info!("the tokens of {} of {total} images are in {folder}", origins.cached);
        }
        let mut corpus = Self {
            ids: Vec::new(),
            captions: Vec::new(),
            failed: Vec::new(),
            codes,
            tokens,
            rows: Vec::with_capacity(records.len()),
        };
        let mut left_out = LeftOutRows::default();
        for (record, reason) in records.drain(..).zip(reasons) {
            let codes = corpus.codes_of(corpus.ids.len());
            let digest = || record_digest(&record.id, &record.caption, codes.iter().copied());
            corpus.rows.push(reason.as_ref().map_or_else(digest, |_| 0));
            match reason {
                None => {
                    corpus.ids.push(record.id);
                    corpus.captions.push(record.caption);
                }
                Some(reason) => {
                    left_out.add(&record.id, &reason);
                    corpus.failed.push(FailedRecord { id: record.id, origin: record.origin, reason });
                }
            }
        }
        Ok(corpus)
    }

    /// Records, given as id and caption, with their codes `[B, L]`.
    ///
    /// # Errors
    /// If a code has more than 16 bits.
    pub(crate) fn of_codes(codes: &Tensor, records: &[(&str, &str)]) -> Result<Self> {
        let wide = |&code: &u32| {
            u16::try_from(code).map_err(|_| Error::invalid(format!("code {code} has more than 16 bits")))
        };
        Ok(Self {
            ids: records.iter().map(|(id, _)| (*id).to_owned()).collect(),
            captions: records.iter().map(|(_, caption)| (*caption).to_owned()).collect(),
            failed: Vec::new(),
            codes: codes.as_slice::<u32>()?.iter().map(wide).collect::<Result<_>>()?,
            tokens: codes.dim(1),
            rows: Vec::new(),
        })
    }

    /// Number of usable records.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no usable records.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Splits off the last `count` records of a seeded shuffle, for validation if no validation table is given.
    pub fn split_off(&mut self, count: usize, seed: u64) -> Self {
        let mut indices: Vec<usize> = (0..self.len()).collect();
        Random::new(seed, Purpose::Shuffle, u64::MAX).shuffle(&mut indices);
        let mut validation = indices.split_off(self.len() - count);
        validation.sort_unstable();
        indices.sort_unstable();
        let taken = self.part(&validation, Vec::new());
        let failed = std::mem::take(&mut self.failed);
        *self = self.part(&indices, failed);
        taken
    }

    /// The records at `indices`, and the failed ones given.
    pub(crate) fn part(&self, indices: &[usize], failed: Vec<FailedRecord>) -> Self {
        Self {
            ids: indices.iter().map(|&index| self.ids[index].clone()).collect(),
            captions: indices.iter().map(|&index| self.captions[index].clone()).collect(),
            failed,
            codes: indices.iter().flat_map(|&index| self.codes_of(index)).copied().collect(),
            tokens: self.tokens,
            rows: Vec::new(),
        }
    }

    /// The codes of the records at `indices`, `[B, L]`; an index may be repeated.
    ///
    /// # Errors
    /// If there is no such record.
    pub(crate) fn codes(&self, indices: &[usize]) -> Result<Tensor> {
        let codes: Vec<u32> =
            indices.iter().flat_map(|&index| self.codes_of(index)).map(|&code| u32::from(code)).collect();
        Tensor::new(&[indices.len(), self.tokens], codes)
    }

    fn codes_of(&self, index: usize) -> &[u16] {
        self.codes.get(index * self.tokens..(index + 1) * self.tokens).unwrap_or_default()
    }

    /// The digest of the usable record at `index`.
    pub(crate) fn digest(&self, index: usize) -> u64 {
        record_digest(&self.ids[index], &self.captions[index], self.codes_of(index).iter().copied())
    }

    /// SHA-256 over ids, captions and codes, in order.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (id, caption) in self.ids.iter().zip(&self.captions) {
            hash.update(format!("{}:{id}{}:{caption}", id.len(), caption.len()));
        }
        for code in &self.codes {
            hash.update(code.to_le_bytes());
        }
        hexadecimal(&hash.finalize())
    }

    /// The records at `indices` as one batch. Captions for which `drop_caption` returns `true` are replaced by the
    /// empty one.
    ///
    /// # Errors
    /// If an encoder fails.
    pub fn batch(
        &self,
        indices: &[usize],
        drop_caption: impl Fn(usize, &str) -> bool,
        tokenizer: &dyn ImageTokenizer,
        text: &dyn TextEncoder,
    ) -> Result<Batch> {
        let captions: Vec<&str> = indices
            .iter()
            .enumerate()
            .map(
                |(at, &index)| {
                    if drop_caption(at, &self.captions[index]) { "" } else { self.captions[index].as_str() }
                },
            )
            .collect();
        batch(self.codes(indices)?, &captions, tokenizer, text)
    }
}

/// The start of a SHA-256 over a record's id, caption and codes; never 0.
pub(crate) fn record_digest(id: &str, caption: &str, codes: impl Iterator<Item = u16>) -> u64 {
    let mut hash = Sha256::new();
    hash.update(format!("{}:{id}{}:{caption}", id.len(), caption.len()));
    for code in codes {
        hash.update(code.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)).max(1)
}

/// Codes `[B, L]` and captions as one batch. The pyramid input is not computed yet.
///
/// # Errors
/// If an encoder fails.
pub fn batch(
    codes: Tensor,
    captions: &[&str],
    tokenizer: &dyn ImageTokenizer,
    text: &dyn TextEncoder,
) -> Result<Batch> {
    let quantizer = tokenizer.quantizer();
    let text: TextStates = text.encode(captions)?;
    let last_scale = quantizer.patch_nums().last().map_or(0, |side| side * side);
    Ok(Batch { codes, input: None, through: None, text, last_scale })
}

/// Maps every item of a chunk on all threads, in order.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    items.par_iter().map(work).collect()
}
