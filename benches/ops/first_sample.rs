//! The first sample of a batch, and its gradient with zeros for the others.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::first_sample::{
            cuda::{first_sample_backward, first_sample_forward},
            first_sample,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    bench.cpu("first_sample", &Parameters::default(), &[normal(&[2, 130, 256], 1)], &|tape, vars| {
        first_sample(tape, &vars[0])
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, share) = (measured.size(64, 3), measured.size(680 * 1024, 48));
    let device = measured.device.clone();
    let mut x = device.upload(&halves(batch * share))?;
    let mut first = device.zeros::<bf16>(share)?;
    let floor = Floor { bytes: 2 * first.bytes(), flop: 0 };
    bench.device("first_sample_forward", floor, || first_sample_forward(&mut first, &x));
    let floor = Floor { bytes: first.bytes() + x.bytes(), flop: 0 };
    bench.device("first_sample_backward", floor, || first_sample_backward(&mut x, &first));
    Ok(())
}
