//! The batches of each step.

use super::Run;
use crate::{
    engine::ops::pyramid::Reach,
    error::Result,
    rater::{
        bilevel::{Bilevel, MicroBatch, Prior},
        samples::SampleRecords,
    },
    tokens::{batch::Batch, encoded::EncodedCorpus},
    training::{
        order::{Order, dropped_captions},
        schedule::Plan,
    },
};

/// The batches of a step, with the indices of their training samples.
#[derive(Default)]
pub(super) struct StepBatches {
    pub(super) micro: Vec<MicroBatch>,
    pub(super) indices: Vec<Vec<usize>>,
}

/// Builds the batches of any step.
pub(super) struct Batches {
    train: Order,
    /// `None` if the proxy is not trained.
    validation: Option<Order>,
}

impl Batches {
    /// The batches of a run's two sets.
    pub(super) fn new(run: &Run<'_>) -> Result<Self> {
        Ok(Self {
            train: Order::new(run.config, run.data.train.len(), "training", 0)?,
            validation: match run.proxy_updates() {
                0 => None,
                _ => Some(Order::new(run.config, run.data.validation.len(), "validation", 1)?),
            },
        })
    }

    /// The batches of a step, whose copies to the networks' device are queued.
    pub(super) fn of(&mut self, run: &Run<'_>, step: u64, bilevel: &Bilevel) -> Result<StepBatches> {
        let mut batches = StepBatches::default();
        for iteration in run.plan.iterations(step) {
            let train = self.train.batch(iteration)?;
            let validation =
                self.validation.as_mut().map(|order| order.batch(iteration)).transpose()?.unwrap_or_default();
            batches.micro.push(bilevel.ahead(MicroBatch {
                train: run.with_inputs(
                    run.batch(&run.data.train, &train, 2 * iteration)?,
                    &[Reach::Before, bilevel.settings.rater_reach],
                )?,
                validation: run.with_inputs(
                    run.batch(&run.data.validation, &validation, 2 * iteration + 1)?,
                    &[Reach::Before],
                )?,
                prior: None,
            })?);
            batches.indices.push(train);
        }
        Ok(batches)
    }
}

impl Batches {
    /// The batches of a step of the rater alone, which has its own `plan`. Their order continues that of the proxy's
    /// iterations.
    pub(super) fn of_rater(
        &mut self,
        run: &Run<'_>,
        plan: &Plan,
        step: u64,
        samples: &SampleRecords,
        bilevel: &Bilevel,
    ) -> Result<Vec<(Batch, Prior)>> {
        let begun = run.plan.iterations(run.proxy_updates()).start;
        let of = |iteration: u64| {
            let iteration = begun + iteration;
            let indices = self.train.batch(iteration)?;
            let batch = run.batch(&run.data.train, &indices, 2 * iteration)?;
            let batch = run.with_inputs(batch, &[bilevel.settings.rater_reach])?;
            Ok((batch, samples.settled(&indices)))
        };
        plan.iterations(step).map(of).collect()
    }
}

impl Run<'_> {
    fn batch(&self, from: &EncodedCorpus, indices: &[usize], stream: u64) -> Result<Batch> {
        let drop = dropped_captions(self.config, stream, indices.len());
        from.batch(indices, drop, self.data.tokenizer.as_ref(), self.data.text.as_ref())
    }

    fn with_inputs(&self, mut batch: Batch, reaches: &[Reach]) -> Result<Batch> {
        // A device computes the input itself, so there is less to upload.
        for &reach in reaches.iter().filter(|_| !self.on_device) {
            batch = batch.with_reach(self.data.tokenizer.quantizer(), reach)?;
        }
        Ok(batch)
    }
}
