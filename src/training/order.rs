//! The order of samples, and which captions are dropped for guidance; the seed determines both.

use crate::{
    config::Config,
    engine::{Purpose, Random},
    error::{Error, Result},
    training::sampler::{BatchSampler, ReleasedOrder, ReleasedSampler},
};

/// The order of samples: this project's or the released one.
pub(crate) enum Order {
    Default(BatchSampler),
    Released(ReleasedSampler),
}

impl Order {
    /// The order of a set of `samples`, named `what` in messages. Sets that are iterated together need different
    /// offsets.
    ///
    /// # Errors
    /// If there are fewer samples than one batch.
    pub(crate) fn new(config: &Config, samples: usize, what: &str, offset: u64) -> Result<Self> {
        let batch = config.training.batch;
        if samples < batch {
            return Err(Error::not_enough_data(format!(
                "the {what} set has {samples} usable records, fewer than one batch of {batch}; lower bs or add data"
            )));
        }
        let seed = config.training.sampler_seed;
        if config.compat.released_sampler {
            return Ok(Self::Released(ReleasedSampler::new(ReleasedOrder {
                dataset_len: samples,
                global_batch: batch,
                world_size: 1,
                rank: 0,
                seed,
                start_epoch: 0,
                fill_last: true,
                shuffle: true,
            })?));
        }
        // Two sets of equal size must not have the same order.
        Ok(Self::Default(BatchSampler::new(
            samples,
            batch,
            config.seed.wrapping_add(seed).wrapping_mul(2) + offset,
        )?))
    }

    /// The samples of a batch.
    ///
    /// # Errors
    /// If the released order is empty for this rank.
    pub(crate) fn batch(&mut self, step: u64) -> Result<Vec<usize>> {
        match self {
            Self::Default(sampler) => Ok(sampler.batch(step)),
            Self::Released(sampler) => sampler.batch(step),
        }
    }
}

/// Upstream never drops captions of at most this many characters (upstream.md, D3).
const SHORT_CAPTION: usize = 20;

/// Which captions of a batch of `count` are dropped, for guidance. Each batch has its own random stream.
pub(crate) fn dropped_captions(
    config: &Config,
    stream: u64,
    count: usize,
) -> impl Fn(usize, &str) -> bool + use<> {
    let mut random = Random::new(config.seed, Purpose::CaptionDrop, stream);
    let draws: Vec<f64> = (0..count).map(|_| random.uniform()).collect();
    let (rate, rule) = (config.training.caption_drop, config.compat.caption_drop_length_rule);
    move |at, caption| draws[at] < rate && (!rule || caption.chars().count() > SHORT_CAPTION)
}
