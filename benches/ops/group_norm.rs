//! The VQ-VAE's group norm, with and without SiLU: a layer in the middle of the released encoder.

use alchemist_engine::{
    Result,
    engine::ops::group_norm::cuda::{DeviceGroupNorm, group_norm},
};

use crate::{Bench, Floor, floats};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, pixels) = (measured.size(16, 2), measured.size(64 * 64, 9));
    let (channels, groups) = (measured.size(320, 16), measured.size(32, 4));
    let device = measured.device.clone();
    let x = device.upload(&floats(batch * pixels * channels))?;
    let [scale, shift] = [device.upload(&floats(channels))?, device.upload(&floats(channels))?];
    let mut y = device.uninitialized::<f32>(x.len())?;
    // The map is read for its statistics, and again for the normalization.
    let floor = Floor { bytes: 3 * x.bytes(), flop: 0 };
    for (name, silu) in [("group_norm_plain", false), ("group_norm_silu", true)] {
        let norm = DeviceGroupNorm { groups, scale: &scale, shift: &shift, epsilon: 1e-6, silu };
        bench.device(name, floor, || group_norm(&mut y, &x, batch, &norm));
    }
    Ok(())
}
