//! Additions: `x + keep·branch` with drop-path, and the broadcast that the released cross-attention amounts to.

pub mod cuda;

use rayon::prelude::*;

use crate::{
    engine::{
        Float, RowOwner, Tape, Tensor, Var,
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
    fn run<T: Float>(x: &Tensor, branch: &Tensor, keep: Option<&[f64]>) -> Result<Tensor> {
        let share = x.len() / x.dim(0).max(1);
        let mut y = x.as_slice::<T>()?.to_vec();
        y.par_chunks_mut(share.max(1))
            .zip(branch.as_slice::<T>()?.par_chunks(share.max(1)))
            .enumerate()
            .for_each(|(sample, (y, branch))| {
                let keep = T::of(keep.map_or(1.0, |keep| keep[sample]));
                for (y, branch) in y.iter_mut().zip(branch) {
                    *y += keep * *branch;
                }
            });
        Tensor::new(x.shape(), y)
    }
    expect_shape("residual", "the branch", branch.value(), x.value().shape())?;
    if let Some(keep) = &keep
        && keep.len() != x.value().dim(0)
    {
        return Err(Error::shape(
            "residual",
            format!("{} keeps for {} samples", keep.len(), x.value().dim(0)),
        ));
    }
    let value = with_float!(x.value().dtype(), "residual", T => run::<T>(x.value(), branch.value(), keep.as_deref()))?;
    let slots = [tape.slot(x), tape.slot(branch)];
    Ok(tape.push(value, joint_owner(x.owner(), branch.owner()), &slots, false, || Residual { slots, keep }))
}

impl Operation for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(d_output: &Tensor, keep: &[f64]) -> Result<Tensor> {
            let share = (d_output.len() / keep.len().max(1)).max(1);
            let mut scaled = d_output.clone();
            scaled.as_mut_slice::<T>()?.par_chunks_mut(share).zip(keep).for_each(|(values, &keep)| {
                let keep = T::of(keep);
                for value in values {
                    *value *= keep;
                }
            });
            Ok(scaled)
        }
        let d_branch = match &self.keep {
            None => d_output.clone(),
            Some(keep) => with_float!(d_output.dtype(), "residual", T => run::<T>(&d_output, keep))?,
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
    fn run<T: Float>(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        Tensor::new(shape, x.as_slice::<T>()?[..shape.iter().product()].to_vec())
    }
    let mut shape = x.value().shape().to_vec();
    match shape.first_mut() {
        Some(batch) if *batch > 0 => *batch = 1,
        _ => return Err(Error::shape("first_sample", "the batch is empty")),
    }
    let value = with_float!(x.value().dtype(), "first_sample", T => run::<T>(x.value(), &shape))?;
    let (slot, shape) = (tape.slot(x), x.value().shape().to_vec());
    Ok(tape.push(value, RowOwner::Batch, &[slot], false, || FirstSample { shape, slot }))
}

impl Operation for FirstSample {
    fn name(&self) -> &'static str {
        "first_sample"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(d_output: &Tensor, shape: &[usize]) -> Result<Tensor> {
            let mut dx = vec![T::ZERO; shape.iter().product()];
            dx[..d_output.len()].copy_from_slice(d_output.as_slice::<T>()?);
            Tensor::new(shape, dx)
        }
        let dx = with_float!(d_output.dtype(), "first_sample", T => run::<T>(&d_output, &self.shape))?;
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
    fn run<T: Float>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let y = y.as_slice::<T>()?;
        let mut sum = x.as_slice::<T>()?.to_vec();
        sum.par_chunks_mut(y.len().max(1)).for_each(|sum| {
            for (sum, y) in sum.iter_mut().zip(y) {
                *sum += *y;
            }
        });
        Tensor::new(x.shape(), sum)
    }
    let mut shape = x.value().shape().to_vec();
    if let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    expect_shape("add_to_all", "the addend", y.value(), &shape)?;
    let value = with_float!(x.value().dtype(), "add_to_all", T => run::<T>(x.value(), y.value()))?;
    let slots = [tape.slot(x), tape.slot(y)];
    Ok(tape.push(value, x.owner(), &slots, false, || AddToAll { slots }))
}

impl Operation for AddToAll {
    fn name(&self) -> &'static str {
        "add_to_all"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(d_output: &Tensor) -> Result<Tensor> {
            let mut shape = d_output.shape().to_vec();
            shape[0] = 1;
            let mut sum = vec![T::ZERO; shape.iter().product()];
            for sample in d_output.as_slice::<T>()?.chunks(sum.len().max(1)) {
                for (sum, value) in sum.iter_mut().zip(sample) {
                    *sum += *value;
                }
            }
            Tensor::new(&shape, sum)
        }
        let d_y = with_float!(d_output.dtype(), "add_to_all", T => run::<T>(&d_output))?;
        sink.input(self.slots[0], d_output)?;
        sink.input(self.slots[1], d_y)
    }
}
