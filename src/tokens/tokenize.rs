//! Turns images into codes: from the token cache where available, else decoded in advance and tokenized in chunks.

use std::{collections::HashMap, thread::ScopedJoinHandle};

use rayon::prelude::*;

use crate::{
    config::Config,
    data::{Loader, Record, SquareImage, stack},
    encode::ImageTokenizer,
    engine::Tensor,
    error::{Error, Result},
    tokens::cache::{Cached, TokenCache},
};

/// Images per tokenizer call.
const CHUNK: usize = 64;
/// Maximum number of records that wait until a chunk is full.
const WAITING: usize = 4096;
/// Images decoded in advance.
const AHEAD: usize = 128;

/// Images that were read already, by the index of their record, or the reasons why they could not be read. A failure is
/// final: an image that could not be used to fit the tokenizer is skipped and counted.
#[derive(Default)]
pub struct FitImages(pub(super) HashMap<usize, Result<SquareImage>>);

impl FitImages {
    /// The images that could not be read, with the reasons.
    pub(super) fn failed(&self) -> impl Iterator<Item = (usize, String)> {
        self.0.iter().filter_map(|(index, image)| Some((*index, image.as_ref().err()?.to_string())))
    }

    /// Contains only failed images.
    pub(super) fn of_failed(failed: impl Iterator<Item = (usize, String)>) -> Self {
        Self(failed.map(|(index, reason)| (index, Err(Error::invalid(reason)))).collect())
    }
}

/// How many records' codes came from which source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    /// Codes from the cache.
    pub(crate) cached: usize,
    /// Images that have changed since they were encoded.
    pub(crate) changed: usize,
    /// Images that are not in the cache.
    pub(crate) absent: usize,
}

/// Options and inputs of tokenizing records.
#[derive(Clone, Copy)]
pub(crate) struct Tokenize<'a> {
    /// Configures decoding and threads.
    pub(crate) config: &'a Config,
    pub(crate) tokenizer: &'a dyn ImageTokenizer,
    /// The token cache; it was built with this tokenizer.
    pub(crate) cache: Option<&'a TokenCache>,
}

/// A record that has not been delivered yet.
enum Waiting {
    Codes(Vec<u16>),
    /// An image that waits to be tokenized; the images are in order.
    Image,
    Failed(Error),
}

impl Tokenize<'_> {
    /// Passes the codes of every record to `give` in order, or the reason why there are none.
    ///
    /// # Errors
    /// If the vocabulary has more than 65,536 codes, the cache is damaged, or `give` fails.
    pub(crate) fn each(
        &self,
        records: &[Record],
        images: &mut FitImages,
        mut give: impl FnMut(usize, Result<Vec<u16>>) -> Result<()>,
    ) -> Result<Origins> {
        if self.tokenizer.quantizer().vocabulary() > usize::from(u16::MAX) + 1 {
            return Err(Error::invalid("a vocabulary may have at most 65536 codes"));
        }
        let known: Vec<Cached> = match self.cache {
            None => vec![Cached::Absent; records.len()],
            Some(cache) => records
                .par_iter()
                .map(|record| match record.malformed {
                    None => cache.find(&record.image),
                    Some(_) => Cached::Absent,
                })
                .collect(),
        };
        let requests: Vec<_> = records
            .iter()
            .zip(&known)
            .enumerate()
            .filter(|(_, (record, _))| record.malformed.is_none())
            .filter(|(index, (_, known))| !matches!(known, Cached::At(_)) && !images.0.contains_key(index))
            .map(|(index, (record, _))| (index, record.image.clone()))
            .collect();
        let preprocess = self.config.preprocess(self.tokenizer.image_side());
        let mut loader = Loader::new(requests, preprocess, self.config.data.workers, AHEAD)?;
        let mut origins = Origins::default();
        std::thread::scope(|scope| {
            let (mut waiting, mut chunk) = (Vec::new(), Vec::with_capacity(CHUNK));
            let mut delivery = Delivery { first: 0, under_way: None, give: &mut give };
            // The next chunk is assembled while this one is tokenized.
            let mut start = |waiting: &mut Vec<Waiting>, chunk: &mut Vec<SquareImage>| -> Result<()> {
                let images = if chunk.is_empty() { None } else { Some(stack(chunk)?) };
                chunk.clear();
                delivery.finish()?;
                let encode = |images| {
                    std::thread::Builder::new().spawn_scoped(scope, move || self.tokenizer.encode(&images))
                };
                let codes = images.map(encode).transpose().map_err(|error| {
                    Error::invalid(format!(
                        "cannot start a thread: {error}; allow more memory or processes (ulimit -v, -u)"
                    ))
                })?;
                delivery.under_way = Some((std::mem::take(waiting), codes));
                Ok(())
            };
            for (index, known) in known.into_iter().enumerate() {
                waiting.push(match (known, self.cache) {
                    (Cached::At(at), Some(cache)) => {
                        origins.cached += 1;
                        Waiting::Codes(cache.codes(at)?)
                    }
                    _ => {
                        let count =
                            if known == Cached::Changed { &mut origins.changed } else { &mut origins.absent };
                        *count += 1;
                        let image = match images.0.remove(&index) {
                            Some(image) => image,
                            None => records[index].check().and_then(|()| {
                                loader.next().map_or_else(
                                    || Err(Error::invalid("an image was not decoded")),
                                    |(_, image)| image,
                                )
                            }),
                        };
                        match image {
                            Ok(image) => {
                                chunk.push(image);
                                Waiting::Image
                            }
                            // This says nothing about the image: with more memory it could be decoded.
                            Err(error) if error.is_of_machine() => return Err(error),
                            Err(error) => Waiting::Failed(error),
                        }
                    }
                });
                if chunk.len() == CHUNK || waiting.len() == WAITING {
                    start(&mut waiting, &mut chunk)?;
                }
            }
            start(&mut waiting, &mut chunk)?;
            delivery.finish()
        })?;
        Ok(origins)
    }
}

/// The thread that computes the codes of a chunk.
type Tokenizing<'scope> = Option<ScopedJoinHandle<'scope, Result<Tensor>>>;

/// Delivers tokenized records, one chunk behind the decoder.
struct Delivery<'scope, 'a, G> {
    /// Index of the next record to deliver.
    first: usize,
    /// Records whose images are being tokenized, together with the records between them.
    under_way: Option<(Vec<Waiting>, Tokenizing<'scope>)>,
    give: &'a mut G,
}

impl<G: FnMut(usize, Result<Vec<u16>>) -> Result<()>> Delivery<'_, '_, G> {
    /// Waits for the chunk in progress and delivers it.
    fn finish(&mut self) -> Result<()> {
        let Some((waiting, tokenizing)) = self.under_way.take() else { return Ok(()) };
        let mut tokenized = Vec::new();
        if let Some(tokenizing) = tokenizing {
            let codes = tokenizing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for codes in codes.as_slice::<u32>()?.chunks(codes.dim(1)) {
                let narrow = |&code: &u32| {
                    u16::try_from(code).map_err(|_| Error::invalid("a code does not fit in 16 bits"))
                };
                tokenized.push(codes.iter().map(narrow).collect::<Result<Vec<u16>>>()?);
            }
        }
        let mut tokenized = tokenized.into_iter();
        for next in waiting {
            let codes = match next {
                Waiting::Codes(codes) => Ok(codes),
                Waiting::Image => {
                    tokenized.next().ok_or_else(|| Error::invalid("an image was not tokenized"))
                }
                Waiting::Failed(error) => Err(error),
            };
            (self.give)(self.first, codes)?;
            self.first += 1;
        }
        Ok(())
    }
}
