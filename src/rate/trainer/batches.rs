//! The batches of each step.

use super::Run;
use crate::{
    error::Result,
    rate::bilevel::{Bilevel, MicroBatch},
    train::{
        batch::Batch,
        corpus::EncodedCorpus,
        order::{Order, dropped_captions},
    },
};

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
            train: Order::new(run.config, run.data.train.len(), "training", 0)?,
            validation: Order::new(run.config, run.data.validation.len(), "validation", 1)?,
        })
    }

    /// Those of a step, on their way to where the networks are.
    pub(super) fn of(&mut self, run: &Run<'_>, step: u64, bilevel: &Bilevel) -> Result<StepBatches> {
        let mut batches = StepBatches::default();
        for iteration in run.plan.iterations(step) {
            let (train, validation) = (self.train.batch(iteration)?, self.validation.batch(iteration)?);
            batches.micro.push(bilevel.ahead(MicroBatch {
                train: run.batch(&run.data.train, &train, 2 * iteration)?,
                validation: run.batch(&run.data.validation, &validation, 2 * iteration + 1)?,
                prior: None,
            })?);
            batches.places.push(train);
        }
        Ok(batches)
    }
}

impl Run<'_> {
    fn batch(&self, from: &EncodedCorpus, places: &[usize], stream: u64) -> Result<Batch> {
        let drop = dropped_captions(self.config, stream, places.len());
        let batch = from.batch(places, drop, self.data.tokenizer.as_ref(), self.data.text.as_ref())?;
        // A device makes the input itself: then there is less to upload.
        if self.on_device { Ok(batch) } else { batch.with_input(self.data.tokenizer.quantizer()) }
    }
}
