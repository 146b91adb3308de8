//! A text encoder's norm on the rows of a batch of texts, in f32.

use alchemist_engine::{Result, engine::ops::affine_norm::cuda::affine_norm};

use crate::{Bench, Floor, floats};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (rows, channels) = (measured.size(64 * 77, 9), measured.size(1024, 48));
    let device = measured.device.clone();
    let x = device.upload(&floats(rows * channels))?;
    let [weight, bias] = [device.upload(&floats(channels))?, device.upload(&floats(channels))?];
    let mut y = device.uninitialized::<f32>(x.len())?;
    let floor = Floor { bytes: 2 * x.bytes(), flop: 0 };
    bench.device("affine_norm", floor, || affine_norm(&mut y, &x, &weight, Some(&bias), 1e-5));
    Ok(())
}
