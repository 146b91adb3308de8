//! `x + keep·branch`: a residual connection with drop-path.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use crate::{
    engine::{
        Tape, Tensor, Var,
        autograd::{
            contributions::{cuda::residual_forward, scale_samples},
            tape::{Operation, Sink, Slot},
        },
        dispatch::dispatch,
        ops::expect_shape,
    },
    error::{Error, Result},
};

/// `x += branch` without a tape, for inference-only networks, in f32.
///
/// # Errors
/// If a tensor is not f32 or the device fails.
pub(crate) fn add_in_place(x: &mut Tensor, branch: &Tensor) -> Result<()> {
    match x.device() {
        None => {
            cpu::add_in_place(x.as_mut_slice()?, branch.as_slice()?);
            Ok(())
        }
        Some(_) => residual_forward::<f32>(x.buffer_mut()?, None, branch.buffer()?, None),
    }
}

struct Residual {
    slots: [Slot; 2],
    keep: Option<Tensor>,
}

/// `x + keep_i·branch` for sample `i`; both `[B, ..]`. Drop-path samples `keep_i` as 0 or `1/(1 − rate)`, `[B]`: in f64
/// on the host, in f32 on a device; `None` is 1.
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
