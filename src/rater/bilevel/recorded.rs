//! A step on a device: run directly once, then recorded as a graph, then replayed while its key stays the same.

use super::{
    Bilevel, BilevelSettings, QueuedStep, Updates,
    inputs::{DeviceInputs, Form, StepInputs},
};
use crate::{
    engine::{
        Tensor,
        cuda::{Device, Graph},
    },
    error::Result,
};

/// The recorded step. A clone starts empty and records its own.
///
/// Only the most recent form of a step is kept, because a graph holds the memory of all its activations. The form
/// changes when a loss starts or stops contributing, or the batch size changes. A step is also recorded again when
/// weights or moments move to other buffers (read from a checkpoint, or shared with a clone).
#[derive(Debug, Default)]
pub struct RecordedStep(Option<UploadedStep>);

impl Clone for RecordedStep {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl RecordedStep {
    /// Whether a step has been recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|uploaded| uploaded.graph.is_some())
    }
}

#[derive(Debug)]
struct UploadedStep {
    key: Key,
    inputs: Vec<DeviceInputs>,
    /// `None` until the step repeats: the first run loads the kernels.
    graph: Option<(Graph, QueuedStep)>,
}

/// The properties of a step that must be unchanged for a recorded one to be replayed.
#[derive(Debug, PartialEq)]
struct Key {
    settings: BilevelSettings,
    forms: Vec<Form>,
    /// The addresses of weights and moments.
    addresses: Vec<u64>,
}

impl Bilevel {
    /// Queues a step on a device.
    pub(super) fn queue_on_device(
        &mut self,
        device: &Device,
        mut prepared: Vec<StepInputs>,
        updates: Updates,
    ) -> Result<QueuedStep> {
        let key = Key {
            settings: self.settings.clone(),
            forms: prepared.iter_mut().map(StepInputs::form).collect(),
            addresses: self.addresses()?,
        };
        match self.recorded.0.take() {
            Some(mut uploaded) if uploaded.key == key => {
                for (inputs, prepared) in uploaded.inputs.iter_mut().zip(prepared) {
                    inputs.overwrite(prepared)?;
                }
                let (graph, queued) = match uploaded.graph {
                    Some(recorded) => recorded,
                    None => self.record(device, &uploaded.inputs, updates)?,
                };
                graph.replay()?;
                self.recorded =
                    RecordedStep(Some(UploadedStep { graph: Some((graph, queued.clone())), ..uploaded }));
                Ok(queued)
            }
            // The previous step is dropped first, to free its memory.
            other => {
                drop(other);
                let to_device = |prepared| DeviceInputs::new(prepared, device);
                let inputs: Vec<DeviceInputs> = prepared.into_iter().map(to_device).collect::<Result<_>>()?;
                let queued = self.queue_unpacked(device, &inputs, updates)?;
                if self.settings.cuda_graph {
                    self.recorded = RecordedStep(Some(UploadedStep { key, inputs, graph: None }));
                }
                Ok(queued)
            }
        }
    }

    fn queue_unpacked(
        &mut self,
        device: &Device,
        inputs: &[DeviceInputs],
        updates: Updates,
    ) -> Result<QueuedStep> {
        let (reader, dtype) = (self.reader.clone(), self.proxy_parameters.compute_dtype());
        let reach = self.settings.rater_reach;
        self.queue(
            inputs.iter().map(|inputs| inputs.unpacked(device, reader.as_ref(), reach, dtype)),
            updates,
        )
    }

    fn record(
        &mut self,
        device: &Device,
        inputs: &[DeviceInputs],
        updates: Updates,
    ) -> Result<(Graph, QueuedStep)> {
        device.consolidate_memory()?;
        let recorded = device.capture(|| self.queue_unpacked(device, inputs, updates))?;
        let reference = self.reference.as_mut().map(|reference| &mut reference.optimizer);
        for optimizer in [&mut self.proxy_optimizer, &mut self.rater_optimizer].into_iter().chain(reference) {
            optimizer.recorded()?;
        }
        Ok(recorded)
    }

    /// The addresses of the weights, their copies and the moments. Buffers shared with a clone are copied first,
    /// because a graph writes them in place.
    fn addresses(&mut self) -> Result<Vec<u64>> {
        let mut tensors: Vec<&mut Tensor> = Vec::new();
        let reference =
            self.reference.as_mut().map(|reference| (&mut reference.parameters, &mut reference.optimizer));
        let networks = [
            (&mut self.proxy_parameters, &mut self.proxy_optimizer),
            (&mut self.rater_parameters, &mut self.rater_optimizer),
        ];
        for (parameters, optimizer) in networks.into_iter().chain(reference) {
            tensors.extend(parameters.values_mut().flat_map(|(value, copy)| [Some(value), copy]).flatten());
            tensors.extend(optimizer.moments_mut());
        }
        tensors.into_iter().map(Tensor::own_address).collect()
    }
}
