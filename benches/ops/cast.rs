//! Casts between f32 and bf16, once for each parameter and step.

use alchemist_engine::{
    Result,
    engine::ops::cast::cuda::{narrow, widen},
};
use half::bf16;

use crate::{Bench, Floor, halves};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let count = measured.size(64 << 20, 1000);
    let device = measured.device.clone();
    let mut halves = device.upload(&halves(count))?;
    let mut floats = device.zeros::<f32>(count)?;
    let floor = Floor { bytes: count * (size_of::<f32>() + size_of::<bf16>()), flop: 0 };
    bench.device("widen", floor, || widen(&mut floats, &halves));
    bench.device("narrow", floor, || narrow(&mut halves, &floats));
    Ok(())
}
