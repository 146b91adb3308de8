//! One sample added to every sample of a batch, as in the upstream cross-attention.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::add_to_all::{
            add_to_all,
            cuda::{self, add_to_all_backward},
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let leaves = [normal(&[2, 130, 256], 1), normal(&[1, 130, 256], 2)];
    bench.cpu("add_to_all", &Parameters::default(), &leaves, &|tape, vars| {
        add_to_all(tape, &vars[0], &vars[1])
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, share) = (measured.size(64, 3), measured.size(680 * 1024, 48));
    let device = measured.device.clone();
    let x = device.upload(&halves(batch * share))?;
    let addend = device.upload(&halves(share))?;
    let mut y = device.uninitialized::<bf16>(x.len())?;
    let floor = Floor { bytes: 2 * x.bytes() + addend.bytes(), flop: 0 };
    bench.device("add_to_all_forward", floor, || cuda::add_to_all(&mut y, Some(&x), &addend));
    let mut d_addend = device.uninitialized::<bf16>(share)?;
    let floor = Floor { bytes: x.bytes() + d_addend.bytes(), flop: 0 };
    bench.device("add_to_all_backward", floor, || add_to_all_backward(&mut d_addend, &x));
    Ok(())
}
