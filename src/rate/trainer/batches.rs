//! The batches of each step, in an order that the seed fixes.

use super::Run;
use crate::{
    config::Config,
    data::{ReleasedOrder, ReleasedSampler, Sampler},
    engine::{Purpose, Random},
    error::{Error, Result},
    rate::{
        bilevel::{Batch, Bilevel, MicroBatch},
        corpus::EncodedCorpus,
    },
};

/// Order of the samples: ours or the released one.
enum Order {
    Default(Sampler),
    Released(ReleasedSampler),
}

impl Order {
    fn new(config: &Config, samples: usize, what: &str, offset: u64) -> Result<Self> {
        let batch = config.training.batch;
        if samples < batch {
            return Err(Error::invalid(format!(
                "the {what} set has {samples} usable records, fewer than one batch of {batch}; lower bs or give more data"
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
        // Two sets of one size must not be visited in one order.
        Ok(Self::Default(Sampler::new(
            samples,
            batch,
            config.seed.wrapping_add(seed).wrapping_mul(2) + offset,
        )?))
    }

    fn batch(&mut self, step: u64) -> Result<Vec<usize>> {
        match self {
            Self::Default(sampler) => Ok(sampler.batch(step)),
            Self::Released(sampler) => sampler.batch(step),
        }
    }
}

/// Released: captions of at most so many characters are never dropped (upstream.md, D3).
const SHORT_CAPTION: usize = 20;

/// The batches of a step, and which training samples are in them.
#[derive(Default)]
pub(super) struct StepBatches {
    pub(super) micro: Vec<MicroBatch>,
    pub(super) places: Vec<Vec<usize>>,
}

/// Makes the batches of any step.
pub(super) struct Batches {
    train: Order,
    validation: Order,
}

impl Batches {
    /// For a run's two sets.
    pub(super) fn new(run: &Run<'_>) -> Result<Self> {
        Ok(Self {
            train: Order::new(run.config, run.train.len(), "training", 0)?,
            validation: Order::new(run.config, run.validation.len(), "validation", 1)?,
        })
    }

    /// Those of a step, on their way to where the networks are.
    pub(super) fn of(&mut self, run: &Run<'_>, step: u64, bilevel: &Bilevel) -> Result<StepBatches> {
        let mut batches = StepBatches::default();
        for iteration in run.plan.iterations(step) {
            let (train, validation) = (self.train.batch(iteration)?, self.validation.batch(iteration)?);
            batches.micro.push(bilevel.ahead(MicroBatch {
                train: run.batch(&run.train, &train, 2 * iteration)?,
                validation: run.batch(&run.validation, &validation, 2 * iteration + 1)?,
                prior: None,
            })?);
            batches.places.push(train);
        }
        Ok(batches)
    }
}

impl Run<'_> {
    fn batch(&self, from: &EncodedCorpus, places: &[usize], stream: u64) -> Result<Batch> {
        let mut random = Random::new(self.config.seed, Purpose::CaptionDrop, stream);
        let draws: Vec<f64> = places.iter().map(|_| random.uniform()).collect();
        let (rate, rule) = (self.config.training.caption_drop, self.config.compat.caption_drop_length_rule);
        let drop =
            |at: usize, caption: &str| draws[at] < rate && (!rule || caption.chars().count() > SHORT_CAPTION);
        let batch = from.batch(places, drop, self.tokenizer.as_ref(), self.text.as_ref())?;
        // A device makes the input itself: then there is less to upload.
        if self.on_device { Ok(batch) } else { batch.with_input(self.tokenizer.quantizer()) }
    }
}
