//! A step on a device: done once as it is written, then recorded as a graph, then replayed for as long as it is the same.

use super::{
    Bilevel, BilevelSettings, QueuedStep, Updates,
    inputs::{Form, OnDevice, Prepared},
};
use crate::{
    engine::{
        Tensor,
        cuda::{Device, Graph},
    },
    error::Result,
};

/// The step that a device does again and again. A copy has none, and makes its own.
///
/// Only the last form of a step is kept, because a graph keeps the memory of all its activations. The form changes when a
/// loss begins or ceases to count, or a batch has another size; weights and moments that are put elsewhere (read from a
/// checkpoint, or shared with a copy) make it another step as well.
#[derive(Debug, Default)]
pub struct RecordedStep(Option<UploadedStep>);

impl Clone for RecordedStep {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl RecordedStep {
    /// Whether a graph is kept now.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.graph.is_some())
    }
}

#[derive(Debug)]
struct UploadedStep {
    key: Key,
    inputs: Vec<OnDevice>,
    /// Nothing until the step comes a second time: the first loads what it needs.
    graph: Option<(Graph, QueuedStep)>,
}

/// What must not have changed since a step was recorded.
#[derive(Debug, PartialEq)]
struct Key {
    settings: BilevelSettings,
    forms: Vec<Form>,
    /// Where weights and moments are.
    addresses: Vec<u64>,
}

impl Bilevel {
    /// Asks a device for a step.
    pub(super) fn ask_device(
        &mut self,
        device: &Device,
        mut prepared: Vec<Prepared>,
        updates: Updates,
    ) -> Result<QueuedStep> {
        let key = Key {
            settings: self.settings.clone(),
            forms: prepared.iter_mut().map(Prepared::form).collect(),
            addresses: self.addresses()?,
        };
        match self.recorded.0.take() {
            Some(mut held) if held.key == key => {
                for (inputs, prepared) in held.inputs.iter_mut().zip(prepared) {
                    inputs.overwrite(prepared)?;
                }
                let (graph, asked) = match held.graph {
                    Some(recorded) => recorded,
                    None => self.record(device, &held.inputs, updates)?,
                };
                graph.replay()?;
                self.recorded =
                    RecordedStep(Some(UploadedStep { graph: Some((graph, asked.clone())), ..held }));
                Ok(asked)
            }
            // What was held is dropped first, and its memory with it.
            other => {
                drop(other);
                let to_device = |prepared| OnDevice::new(prepared, device);
                let inputs: Vec<OnDevice> = prepared.into_iter().map(to_device).collect::<Result<_>>()?;
                let asked = self.ask_unpacked(device, &inputs, updates)?;
                if self.settings.cuda_graph {
                    self.recorded = RecordedStep(Some(UploadedStep { key, inputs, graph: None }));
                }
                Ok(asked)
            }
        }
    }

    fn ask_unpacked(&mut self, device: &Device, inputs: &[OnDevice], updates: Updates) -> Result<QueuedStep> {
        let (reader, dtype) = (self.reader.clone(), self.proxy_parameters.compute_dtype());
        let reach = self.settings.rater_reach;
        self.ask(inputs.iter().map(|inputs| inputs.unpacked(device, reader.as_ref(), reach, dtype)), updates)
    }

    fn record(
        &mut self,
        device: &Device,
        inputs: &[OnDevice],
        updates: Updates,
    ) -> Result<(Graph, QueuedStep)> {
        device.consolidate_memory()?;
        let recorded = device.capture(|| self.ask_unpacked(device, inputs, updates))?;
        let reference = self.reference.as_mut().map(|reference| &mut reference.optimizer);
        for optimizer in [&mut self.proxy_optimizer, &mut self.rater_optimizer].into_iter().chain(reference) {
            optimizer.recorded()?;
        }
        Ok(recorded)
    }

    /// Where the weights, their copies and the moments are, each the network's own: what a graph writes in place.
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
