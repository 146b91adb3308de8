//! Additions: `x + keep·branch` with drop-path, and the broadcast that the released cross-attention amounts to.

pub mod cpu;

use crate::{
    engine::{
        RowOwner, Tape, Tensor, Var,
        ops::{expect_shape, joint_owner},
        tape::{Operation, Sink, Slot},
    },
    error::{Error, Result},
    with_float,
};

struct Residual {
    slots: [Slot; 2],
    keep: Option<Vec<f64>>,
}

/// `x + keep_i·branch` for sample `i`; both `[B, ..]`. Drop-path draws `keep_i` as 0 or `1/(1 − rate)`; `None` is 1.
///
/// # Errors
/// If the shapes differ.
pub fn residual(tape: &mut Tape<'_>, x: &Var, branch: &Var, keep: Option<Vec<f64>>) -> Result<Var> {
    expect_shape("residual", "the branch", branch.value(), x.value().shape())?;
    if let Some(keep) = &keep
        && keep.len() != x.value().dim(0)
    {
        return Err(Error::shape(
            "residual",
            format!("{} keeps for {} samples", keep.len(), x.value().dim(0)),
        ));
    }
    let value = with_float!(x.value().dtype(), "residual", T => cpu::residual::<T>(x.value(), branch.value(), keep.as_deref()))?;
    let slots = [tape.slot(x), tape.slot(branch)];
    Ok(tape.push(value, joint_owner(x.owner(), branch.owner()), &slots, false, || Residual { slots, keep }))
}

impl Operation for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let d_branch = match &self.keep {
            None => d_output.clone(),
            Some(keep) => {
                with_float!(d_output.dtype(), "residual", T => cpu::scale_samples::<T>(&d_output, keep))?
            }
        };
        sink.input(self.slots[0], d_output)?;
        sink.input(self.slots[1], d_branch)
    }
}

struct FirstSample {
    shape: Vec<usize>,
    slot: Slot,
}

/// The first sample of `x` `[B, ..]` as a batch of one that speaks for all of them: the input of the released
/// cross-attention (upstream.md, A1).
///
/// # Errors
/// If the batch is empty.
pub fn first_sample(tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
    let mut shape = x.value().shape().to_vec();
    match shape.first_mut() {
        Some(batch) if *batch > 0 => *batch = 1,
        _ => return Err(Error::shape("first_sample", "the batch is empty")),
    }
    let value =
        with_float!(x.value().dtype(), "first_sample", T => cpu::first_sample::<T>(x.value(), &shape))?;
    let (slot, shape) = (tape.slot(x), x.value().shape().to_vec());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || FirstSample { shape, slot }))
}

impl Operation for FirstSample {
    fn name(&self) -> &'static str {
        "first_sample"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = with_float!(d_output.dtype(), "first_sample", T => cpu::first_sample_backward::<T>(&d_output, &self.shape))?;
        sink.input(self.slot, dx)
    }
}

struct AddToAll {
    slots: [Slot; 2],
}

/// Adds `y` `[1, ..]` to every sample of `x` `[B, ..]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_to_all(tape: &mut Tape<'_>, x: &Var, y: &Var) -> Result<Var> {
    let mut shape = x.value().shape().to_vec();
    if let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    expect_shape("add_to_all", "the addend", y.value(), &shape)?;
    let value =
        with_float!(x.value().dtype(), "add_to_all", T => cpu::add_to_all::<T>(x.value(), y.value()))?;
    let slots = [tape.slot(x), tape.slot(y)];
    Ok(tape.push(value, x.owner(), &slots, false, || AddToAll { slots }))
}

impl Operation for AddToAll {
    fn name(&self) -> &'static str {
        "add_to_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let d_y = with_float!(d_output.dtype(), "add_to_all", T => cpu::sum_samples::<T>(&d_output))?;
        sink.input(self.slots[0], d_output)?;
        sink.input(self.slots[1], d_y)
    }
}
