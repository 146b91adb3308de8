//! Elementwise products: the gate of T5's feed-forward layers.

use alchemist_engine::{Result, engine::ops::multiply::cuda::multiply};

use crate::{Bench, Floor, floats};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    // The hidden rows of Flan-T5-XL for 64 captions of 120 tokens.
    let (rows, channels) = (measured.size(64 * 120, 3), measured.size(5120, 48));
    let device = measured.device.clone();
    let [x, z] = [device.upload(&floats(rows * channels))?, device.upload(&floats(rows * channels))?];
    let mut y = device.uninitialized::<f32>(x.len())?;
    let floor = Floor { bytes: 3 * x.bytes(), flop: 0 };
    bench.device("multiply", floor, || multiply(&mut y, &x, &z));
    Ok(())
}
