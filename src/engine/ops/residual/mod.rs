//! Additions: `x + keep·branch` with drop-path, and the broadcast that the released cross-attention amounts to.

pub mod cpu;
pub mod cuda;

use crate::{
    dispatch,
    engine::{
        RowOwner, Tape, Tensor, Var,
        autograd::{
            contributions::{cuda::residual_forward, scale_samples},
            tape::{Operation, Sink, Slot},
        },
        ops::expect_shape,
    },
    error::{Error, Result},
};

struct Residual {
    slots: [Slot; 2],
    keep: Option<Tensor>,
}

/// `x + keep_i·branch` for sample `i`; both `[B, ..]`. Drop-path draws `keep_i` as 0 or `1/(1 − rate)`, `[B]`: in f64 on the
/// host, in f32 on a device; `None` is 1.
///
/// # Errors
/// If the shapes differ.
pub fn residual(tape: &mut Tape<'_>, x: &Var, branch: &Var, keep: Option<Tensor>) -> Result<Var> {
    expect_shape("residual", "the branch", branch.value(), x.value().shape())?;
    if let Some(keep) = &keep
        && keep.len() != x.value().dim(0)
    {
        return Err(Error::shape(
            "residual",
            format!("{} keeps for {} samples", keep.len(), x.value().dim(0)),
        ));
    }
    let (input, keeps) = (x.value(), keep.as_ref());
    let value = dispatch!("residual", input,
        cpu T => cpu::residual::<T>(input, branch.value(), keeps.map(Tensor::as_slice::<f64>).transpose()?),
        cuda T => {
            let (from, branch) = (input.buffer::<T>()?, branch.value().buffer::<T>()?);
            let keep = keeps.map(Tensor::buffer::<f32>).transpose()?;
            Tensor::written(from.device(), input.shape(), |y| residual_forward(y, Some(from), branch, keep))
        },
    )?;
    let slots = [tape.slot(x), tape.slot(branch)];
    Ok(tape.push(value, x.owner().joint(branch.owner()), &slots, false, || Residual { slots, keep }))
}

impl Operation for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let d_branch = match &self.keep {
            None => d_output.clone(),
            Some(keep) => scale_samples(&d_output, keep)?,
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
    let input = x.value();
    let mut shape = input.shape().to_vec();
    match shape.first_mut() {
        Some(batch) if *batch > 0 => *batch = 1,
        _ => return Err(Error::shape("first_sample", "the batch is empty")),
    }
    let value = dispatch!("first_sample", input,
        cpu T => cpu::first_sample::<T>(input, &shape),
        cuda T => {
            let from = input.buffer::<T>()?;
            Tensor::written(from.device(), &shape, |first| cuda::first_sample_forward(first, from))
        },
    )?;
    let (slot, shape) = (tape.slot(x), input.shape().to_vec());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || FirstSample { shape, slot }))
}

impl Operation for FirstSample {
    fn name(&self) -> &'static str {
        "first_sample"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let dx = dispatch!("first_sample", d_output,
            cpu T => cpu::first_sample_backward::<T>(&d_output, &self.shape),
            cuda T => {
                let d_first = d_output.buffer::<T>()?;
                Tensor::written(d_first.device(), &self.shape, |dx| cuda::first_sample_backward(dx, d_first))
            },
        )?;
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
    let (input, addend) = (x.value(), y.value());
    let mut shape = input.shape().to_vec();
    if let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    expect_shape("add_to_all", "the addend", addend, &shape)?;
    let value = dispatch!("add_to_all", input,
        cpu T => cpu::add_to_all::<T>(input, addend),
        cuda T => {
            let (from, addend) = (input.buffer::<T>()?, addend.buffer::<T>()?);
            Tensor::written(from.device(), input.shape(), |sum| cuda::add_to_all(sum, Some(from), addend))
        },
    )?;
    let slots = [tape.slot(x), tape.slot(y)];
    Ok(tape.push(value, x.owner(), &slots, false, || AddToAll { slots }))
}

impl Operation for AddToAll {
    fn name(&self) -> &'static str {
        "add_to_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let mut shape = d_output.shape().to_vec();
        shape[0] = 1;
        let d_y = dispatch!("add_to_all", d_output,
            cpu T => cpu::sum_samples::<T>(&d_output),
            cuda T => {
                let d = d_output.buffer::<T>()?;
                Tensor::written(d.device(), &shape, |d_y| cuda::add_to_all_backward(d_y, d))
            },
        )?;
        sink.input(self.slots[0], d_output)?;
        sink.input(self.slots[1], d_y)
    }
}
