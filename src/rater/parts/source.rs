//! A table of images, read part by part: the outcome of each record and the stamp of its image.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    data::{Corpus, Cursor, ImageRef, Record, RecordBatch},
    encode::ImageTokenizer,
    engine::Tensor,
    error::{Error, LeftOutRows, Result},
    tokens::{
        cache::TokenCache,
        identity::{Looking, first_changed},
        stamp::ImageState,
        tokenize::{FitImages, Tokenize},
    },
};

/// Records per part file, rounded up to whole batches.
pub(super) const PART: usize = 512;

/// One part file: the outcomes of consecutive records.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part<N> {
    /// Its position; `None` at the first record.
    pub(crate) from: Option<Cursor>,
    /// The position of the next part; `None` at the end of the corpus.
    pub(crate) next: Option<Cursor>,
    /// The records in order.
    pub(crate) rows: Vec<PartRow<N>>,
}

/// One record of a part.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartRow<N> {
    /// Its row in the corpus.
    pub(crate) row: u64,
    /// The stamp of its image.
    pub(crate) image: ImageState,
    /// Its outcome.
    pub(crate) outcome: Outcome<N>,
}

/// The outcome of a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome<N> {
    /// The results.
    Found(N),
    /// The reason why there are none.
    Failed(String),
}

/// Measures a batch of usable records and their codes `[B, L]`; returns one outcome per record.
pub(crate) type Measure<'a, N> = dyn FnMut(&Tensor, &[&Record]) -> Result<Vec<Outcome<N>>> + 'a;

/// A table of images and how to read it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The table.
    pub(crate) path: &'a Path,
    /// Columns, decoding and threads.
    pub(crate) config: &'a Config,
    /// The image tokenizer.
    pub(crate) tokenizer: &'a dyn ImageTokenizer,
    /// The cache of codes.
    pub(crate) cache: Option<&'a TokenCache>,
    /// Usable images per call of the measure function.
    pub(crate) batch: usize,
}

impl Source<'_> {
    /// Opens the table.
    pub(crate) fn open(&self) -> Result<Corpus> {
        self.config.open_corpus(self.path)
    }

    /// Reads the whole table once and counts its rows, so that a malformed line ends the job at the start rather than
    /// at the end.
    pub(crate) fn rows(&self) -> Result<u64> {
        self.open()?.count_records()
    }

    /// Computes the part that begins at `from`.
    pub(crate) fn part<N>(
        &self,
        corpus: &mut Corpus,
        from: Option<Cursor>,
        left_out: &mut LeftOutRows,
        measure: &mut Measure<'_, N>,
    ) -> Result<Part<N>> {
        let size = PART.div_ceil(self.batch) * self.batch;
        let RecordBatch { records, next } = corpus.batch(from, size)?;
        let Self { config, tokenizer, cache, .. } = *self;
        let paths: Vec<&ImageRef> = records.iter().map(|record| &record.image).collect();
        let looking = Looking::at(&paths, cache);
        let mut reasons = Vec::with_capacity(records.len());
        let (mut usable, mut codes) = (Vec::new(), Vec::new());
        let tokenize = Tokenize { config, tokenizer, cache };
        tokenize.each(&records, &mut FitImages::default(), |index, found| {
            reasons.push(match found {
                Ok(found) => {
                    usable.push(&records[index]);
                    codes.extend(found.into_iter().map(u32::from));
                    None
                }
                Err(error) => {
                    left_out.add(&records[index].id, &error);
                    Some(error.to_string())
                }
            });
            Ok(())
        })?;
        let images = looking.states(&paths).map_err(|at| {
            records[at].image.refuse("changed while it was read; run the same command again")
        })?;
        let tokens = tokenizer.quantizer().tokens();
        let mut measured = Vec::with_capacity(usable.len());
        for (records, codes) in usable.chunks(self.batch).zip(codes.chunks(self.batch * tokens)) {
            measured.extend(measure(&Tensor::new(&[records.len(), tokens], codes.to_vec())?, records)?);
        }
        let mut measured = measured.into_iter();
        let mut rows = Vec::with_capacity(records.len());
        for ((record, reason), image) in records.iter().zip(reasons).zip(images) {
            let outcome = match reason {
                Some(reason) => Outcome::Failed(reason),
                None => {
                    measured.next().ok_or_else(|| Error::invalid(format!("no result for {}", record.id)))?
                }
            };
            rows.push(PartRow { row: record.row, image, outcome });
        }
        Ok(Part { from, next, rows })
    }

    /// The first record, counting from position `from`, whose image no longer has its stamp.
    pub(super) fn first_changed<'s>(
        &self,
        corpus: &mut Corpus,
        from: Option<Cursor>,
        images: impl ExactSizeIterator<Item = &'s ImageState>,
    ) -> Result<Option<ImageRef>> {
        let mut records: Vec<Record> = Vec::with_capacity(images.len());
        let mut next = from;
        // The images of a whole corpus can span several shards.
        while records.len() < images.len() {
            let batch = corpus.batch(next, images.len() - records.len())?;
            records.extend(batch.records);
            next = batch.next;
            if next.is_none() {
                break;
            }
        }
        let pairs: Vec<_> = records.iter().map(|record| &record.image).zip(images).collect();
        Ok(first_changed(&pairs, self.cache).map(|at| records[at].image.clone()))
    }
}
