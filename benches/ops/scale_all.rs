//! The logits of a batch times a scalar. With few values, the cost is that of the launch.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::scale_all::{
            cuda::{scale_all_backward, scale_all_forward},
            scale_all,
        },
    },
};

use crate::{Bench, Floor, floats, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let leaves = [normal(&[64, 1], 1), normal(&[1, 1], 2)];
    bench
        .cpu("scale_all", &Parameters::default(), &leaves, &|tape, vars| scale_all(tape, &vars[0], &vars[1]));
    let Some(measured) = &bench.measured else { return Ok(()) };
    let device = measured.device.clone();
    let x = device.upload(&floats(measured.size(64, 7)))?;
    let factor = device.upload(&[0.5f32])?;
    let mut y = device.zeros::<f32>(x.len())?;
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    bench.device("scale_all_forward", floor(2), || scale_all_forward(&mut y, &x, &factor));
    let (mut dx, mut d_factor) = (device.uninitialized::<f32>(x.len())?, device.uninitialized::<f32>(1)?);
    bench.device("scale_all_backward", floor(3), || {
        scale_all_backward(&mut dx, &mut d_factor, &y, &x, &factor)
    });
    Ok(())
}
