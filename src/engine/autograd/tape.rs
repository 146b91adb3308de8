//! The tape records operations so that gradients can be propagated back through them.
//!
//! A [`Var`] owns its value and refers to the node that produced it. Nodes keep only what their backward needs, and
//! each is consumed as soon as it has run. What a parameter's gradient is used *for* is decided at backward time by a
//! [`GradientVisitor`].

use crate::{
    engine::{
        autograd::{
            contributions::{Contribution, add},
            parameters::{ParameterId, Parameters},
            visitor::{GradientVisitor, RowOwner},
        },
        storage::DType,
        tensor::Tensor,
    },
    error::{Error, Result},
};

/// A value on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
    owner: RowOwner,
}

impl Var {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The sample that each row of the value belongs to.
    pub fn owner(&self) -> RowOwner {
        self.owner
    }

    /// Takes the value out.
    pub fn into_value(self) -> Tensor {
        self.value
    }
}

/// An operation that has run and can be run backward once.
pub trait Operation: Send {
    /// The op's name, for messages.
    fn name(&self) -> &'static str;

    /// Maps the gradient of the output to gradients of the inputs and contributions to parameters.
    ///
    /// # Errors
    /// If the visitor rejects a contribution.
    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()>;
}

struct Node {
    operation: Option<Box<dyn Operation>>,
}

/// Receives the gradient of an input: refers to its node, if the input needs a gradient.
#[derive(Clone, Copy, Debug)]
pub struct Slot(Option<usize>);

impl Slot {
    /// Whether the gradient is needed; ops skip the work otherwise.
    pub fn wanted(self) -> bool {
        self.0.is_some()
    }
}

/// Collects the gradients that an op's backward computes.
pub struct Sink<'a> {
    gradients: Vec<Option<Tensor>>,
    parameters: &'a Parameters,
    visitor: &'a mut dyn GradientVisitor,
}

impl Sink<'_> {
    /// Accumulates a gradient into an input.
    ///
    /// # Errors
    /// If its shape differs from the gradient accumulated so far.
    pub fn input(&mut self, slot: Slot, gradient: Tensor) -> Result<()> {
        let Some(node) = slot.0 else { return Ok(()) };
        let held = &mut self.gradients[node];
        *held = Some(match held.take() {
            None => gradient,
            Some(mut sum) => {
                add(&mut sum, &gradient)?;
                sum
            }
        });
        Ok(())
    }

    /// Passes a parameter's contribution to the visitor.
    ///
    /// # Errors
    /// If the visitor rejects it.
    pub fn parameter(
        &mut self,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        self.visitor.visit(self.parameters, id, owner, contribution)
    }

    /// The parameters' values.
    pub fn parameters(&self) -> &Parameters {
        self.parameters
    }
}

type Body = dyn Fn(&mut Tape<'_>, &[Var]) -> Result<Var> + Send;

/// A checkpointed part of a network, of which only the inputs are kept.
struct Segment {
    inputs: Vec<Var>,
    slots: Vec<Slot>,
    per_sample_parts: bool,
    body: Box<Body>,
}

impl Operation for Segment {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut tape = Tape::new(sink.parameters).with_per_sample_parts(self.per_sample_parts);
        let again = |(input, slot): (&Var, &Slot)| {
            let node = slot.wanted().then(|| tape.new_leaf());
            Var { value: input.value.clone(), node, owner: input.owner }
        };
        let inputs: Vec<Var> = self.inputs.iter().zip(&self.slots).map(again).collect();
        let output = (self.body)(&mut tape, &inputs)?;
        let leaves: Vec<&Var> = inputs.iter().collect();
        let gradients = tape.backward(vec![(&output, d_output)], &leaves, &mut *sink.visitor)?;
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            if let Some(gradient) = gradient {
                sink.input(*slot, gradient)?;
            }
        }
        Ok(())
    }
}

/// Records operations over one set of parameters.
pub struct Tape<'p> {
    parameters: &'p Parameters,
    nodes: Vec<Node>,
    recording: bool,
    recomputing: bool,
    per_sample_parts: bool,
}

impl<'p> Tape<'p> {
    /// A tape that records, for training.
    pub fn new(parameters: &'p Parameters) -> Self {
        Self { parameters, nodes: Vec::new(), recording: true, recomputing: false, per_sample_parts: false }
    }

    /// A tape that keeps nothing, for inference: values are freed when their `Var` is dropped.
    pub fn inference(parameters: &'p Parameters) -> Self {
        Self { parameters, nodes: Vec::new(), recording: false, recomputing: false, per_sample_parts: false }
    }

    /// With `recomputing`, keeps only the inputs of each [`segment`](Self::segment) and runs it forward again in the
    /// backward pass (activation checkpointing): bit-identical, less memory, more time.
    #[must_use]
    pub fn with_recomputing(self, recomputing: bool) -> Self {
        Self { recomputing, ..self }
    }

    /// With `per_sample_parts`, shares nothing between the samples of a batch: values that depend on no sample are
    /// recomputed for each of them, so that the gradient of every parameter has per-sample parts
    /// ([`RowOwner::Samples`]). An op that inherently mixes samples still reports [`RowOwner::Batch`].
    #[must_use]
    pub fn with_per_sample_parts(self, per_sample_parts: bool) -> Self {
        Self { per_sample_parts, ..self }
    }

    /// Whether nothing is shared between samples: see [`with_per_sample_parts`](Self::with_per_sample_parts).
    pub fn per_sample_parts(&self) -> bool {
        self.per_sample_parts
    }

    /// Runs a part of the network that can be recomputed from its inputs.
    ///
    /// # Errors
    /// If `body` fails.
    pub fn segment(
        &mut self,
        inputs: &[Var],
        body: impl Fn(&mut Tape<'_>, &[Var]) -> Result<Var> + Send + 'static,
    ) -> Result<Var> {
        if !(self.recording && self.recomputing) {
            return body(self, inputs);
        }
        let per_sample_parts = self.per_sample_parts;
        let output =
            body(&mut Tape::inference(self.parameters).with_per_sample_parts(per_sample_parts), inputs)?;
        let slots: Vec<Slot> = inputs.iter().map(|input| self.slot(input)).collect();
        let kept = slots.clone();
        Ok(self.push(output.value, output.owner, &slots, true, || Segment {
            inputs: inputs.to_vec(),
            slots: kept,
            per_sample_parts,
            body: Box::new(body),
        }))
    }

    /// The parameters that the tape reads.
    pub fn parameters(&self) -> &'p Parameters {
        self.parameters
    }

    /// The float dtype of the network's activations.
    pub fn dtype(&self) -> DType {
        self.parameters.compute_dtype()
    }

    /// A value that needs no gradient, its first dimension being the batch.
    pub fn constant(&self, value: Tensor) -> Var {
        let owner = RowOwner::Samples { rows_per_sample: rows_per_sample(&value) };
        Var { value, node: None, owner }
    }

    /// A value whose gradient [`backward`](Self::backward) can return.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        let owner = RowOwner::Samples { rows_per_sample: rows_per_sample(&value) };
        Var { value, node: Some(self.new_leaf()), owner }
    }

    fn new_leaf(&mut self) -> usize {
        self.nodes.push(Node { operation: None });
        self.nodes.len() - 1
    }

    /// The slot that receives an input's gradient.
    pub fn slot(&self, var: &Var) -> Slot {
        Slot(if self.recording { var.node } else { None })
    }

    /// Adds an op's output. The op is kept only while recording and if a gradient can flow: through an input, or into
    /// a parameter (`has_parameters`).
    pub fn push<O: Operation + 'static>(
        &mut self,
        value: Tensor,
        owner: RowOwner,
        inputs: &[Slot],
        has_parameters: bool,
        operation: impl FnOnce() -> O,
    ) -> Var {
        let needed = self.recording && (has_parameters || inputs.iter().any(|slot| slot.wanted()));
        let node = needed.then(|| {
            self.nodes.push(Node { operation: Some(Box::new(operation())) });
            self.nodes.len() - 1
        });
        Var { value, node, owner }
    }

    /// Runs backward from `outputs`, each paired with its gradient, and returns the gradients of `leaves` in order
    /// (`None` where none arrived).
    ///
    /// # Errors
    /// If a shape does not match, or the visitor rejects a contribution.
    pub fn backward(
        mut self,
        outputs: Vec<(&Var, Tensor)>,
        leaves: &[&Var],
        visitor: &mut dyn GradientVisitor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut sink = Sink { gradients: vec![None; self.nodes.len()], parameters: self.parameters, visitor };
        for (output, gradient) in outputs {
            if output.value.shape() != gradient.shape() {
                return Err(Error::shape(
                    "tape",
                    format!("a gradient of {:?} for a value of {:?}", gradient.shape(), output.value.shape()),
                ));
            }
            sink.input(Slot(output.node), gradient)?;
        }
        while let Some(node) = self.nodes.pop() {
            let at = self.nodes.len();
            if let Some(operation) = node.operation
                && let Some(gradient) = sink.gradients[at].take()
            {
                operation.backward(gradient, &mut sink)?;
            }
        }
        Ok(leaves.iter().map(|leaf| leaf.node.and_then(|node| sink.gradients[node].take())).collect())
    }
}

/// Rows (all dimensions but the last) divided by the batch size (the first).
fn rows_per_sample(value: &Tensor) -> usize {
    let shape = value.shape();
    if shape.len() < 2 { 1 } else { shape[1..shape.len() - 1].iter().product() }
}
