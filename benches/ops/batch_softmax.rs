//! Softmax over the logits of a batch. With few values, the cost is that of the launch.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::batch_softmax::{
            batch_softmax,
            cuda::{batch_softmax_backward, batch_softmax_forward},
        },
    },
};

use crate::{Bench, Floor, floats, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    bench.cpu("batch_softmax", &Parameters::default(), &[normal(&[64, 1], 1)], &|tape, vars| {
        batch_softmax(tape, &vars[0], 1.0)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let device = measured.device.clone();
    let x = device.upload(&floats(measured.size(64, 7)))?;
    let mut y = device.zeros::<f32>(x.len())?;
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    bench.device("batch_softmax_forward", floor(2), || batch_softmax_forward(&mut y, &x, 1.0));
    let mut dx = device.uninitialized::<f32>(x.len())?;
    bench.device("batch_softmax_backward", floor(3), || batch_softmax_backward(&mut dx, &x, &y, 1.0));
    Ok(())
}
