//! Images to codes: from the token cache where it has them, else decoded ahead of use and tokenized some at a time.

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

/// Images tokenized at once.
const CHUNK: usize = 64;
/// Records that may wait for a chunk to be full.
const WAITING: usize = 4096;
/// Images decoded ahead of their use.
const AHEAD: usize = 128;

/// Images that were read already, by the record's place; or why they could not be, which is not tried again: an image that the
/// tokenizer could not be fitted to is left out and counted.
#[derive(Default)]
pub struct FitImages(pub(super) HashMap<usize, Result<SquareImage>>);

impl FitImages {
    /// Those that could not be read, and why.
    pub(super) fn failed(&self) -> impl Iterator<Item = (usize, String)> {
        self.0.iter().filter_map(|(place, image)| Some((*place, image.as_ref().err()?.to_string())))
    }

    /// None but such ones.
    pub(super) fn of_failed(failed: impl Iterator<Item = (usize, String)>) -> Self {
        Self(failed.map(|(place, reason)| (place, Err(Error::invalid(reason)))).collect())
    }
}

/// How many records' codes came from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    /// From the cache.
    pub(crate) cached: usize,
    /// From an image that was changed since it was encoded.
    pub(crate) changed: usize,
    /// From an image that the cache does not hold.
    pub(crate) absent: usize,
}

/// How records become codes.
#[derive(Clone, Copy)]
pub(crate) struct Tokenize<'a> {
    /// Decoding and threads.
    pub(crate) config: &'a Config,
    pub(crate) tokenizer: &'a dyn ImageTokenizer,
    /// Made by this tokenizer.
    pub(crate) cache: Option<&'a TokenCache>,
}

/// A record whose turn has not come.
enum Waiting {
    Codes(Vec<u16>),
    /// The next of the images that wait to be tokenized.
    Image,
    Failed(Error),
}

impl Tokenize<'_> {
    /// Gives the codes of every record, or why there are none, in order.
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
            .filter(|(place, (_, known))| !matches!(known, Cached::At(_)) && !images.0.contains_key(place))
            .map(|(place, (record, _))| (place, record.image.clone()))
            .collect();
        let preprocess = self.config.preprocess(self.tokenizer.image_side());
        let mut loader = Loader::new(requests, preprocess, self.config.data.workers, AHEAD)?;
        let mut origins = Origins::default();
        std::thread::scope(|scope| {
            let (mut waiting, mut chunk) = (Vec::new(), Vec::with_capacity(CHUNK));
            let mut delivery = Delivery { first: 0, under_way: None, give: &mut give };
            // Images are put together while those before them are tokenized.
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
            for (place, known) in known.into_iter().enumerate() {
                waiting.push(match (known, self.cache) {
                    (Cached::At(at), Some(cache)) => {
                        origins.cached += 1;
                        Waiting::Codes(cache.codes(at)?)
                    }
                    _ => {
                        let count =
                            if known == Cached::Changed { &mut origins.changed } else { &mut origins.absent };
                        *count += 1;
                        let image = match images.0.remove(&place) {
                            Some(image) => image,
                            None => records[place].check().and_then(|()| {
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
                            // No property of the image: with more memory the result would be another.
                            Err(error @ Error::Memory { .. }) => return Err(error),
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

/// Codes that are being made on a thread of their own.
type Tokenizing<'scope> = Option<ScopedJoinHandle<'scope, Result<Tensor>>>;

/// Gives what is tokenized, a chunk behind what is decoded.
struct Delivery<'scope, 'a, G> {
    /// The place of the next record to be given.
    first: usize,
    /// Records whose images are being tokenized, and those between them.
    under_way: Option<(Vec<Waiting>, Tokenizing<'scope>)>,
    give: &'a mut G,
}

impl<G: FnMut(usize, Result<Vec<u16>>) -> Result<()>> Delivery<'_, '_, G> {
    /// Waits for what is under way and gives it.
    fn finish(&mut self) -> Result<()> {
        let Some((waiting, tokenizing)) = self.under_way.take() else { return Ok(()) };
        let mut tokenized = Vec::new();
        if let Some(tokenizing) = tokenizing {
            let codes = tokenizing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for codes in codes.as_slice::<u32>()?.chunks(codes.dim(1)) {
                let narrow = |&code: &u32| {
                    u16::try_from(code).map_err(|_| Error::invalid("a code does not fit 16 bits"))
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
