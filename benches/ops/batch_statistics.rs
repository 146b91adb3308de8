//! Mean and variance over the batch of the rater's pooled features. With few values, the cost is that of a launch.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::batch_statistics::{
            batch_statistics,
            cuda::{batch_statistics_backward, batch_statistics_forward},
        },
    },
};

use crate::{Bench, Floor, floats, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    bench.cpu("batch_statistics", &Parameters::default(), &[normal(&[64, 512], 1)], &|tape, vars| {
        batch_statistics(tape, &vars[0])
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let sizes @ [batch, channels] = [measured.size(64, 5), measured.size(512, 48)];
    let device = measured.device.clone();
    let x = device.upload(&floats(batch * channels))?;
    let mut y = device.zeros::<f32>(2 * channels)?;
    let floor = Floor { bytes: x.bytes() + y.bytes(), flop: 0 };
    bench.device("batch_statistics_forward", floor, || batch_statistics_forward(&mut y, &x, sizes));
    let mut dx = device.uninitialized::<f32>(x.len())?;
    let floor = Floor { bytes: 2 * x.bytes() + y.bytes(), flop: 0 };
    bench.device("batch_statistics_backward", floor, || batch_statistics_backward(&mut dx, &y, &x, sizes));
    Ok(())
}
