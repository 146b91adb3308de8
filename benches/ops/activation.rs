//! GELU on the MLP's hidden rows.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::activation::{
            Activation, activate,
            cuda::{activation_backward, activation_forward},
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let x = normal(&[2, 130, 1024], 1);
    bench.cpu("gelu", &Parameters::default(), &[x], &|tape, vars| {
        activate(tape, &vars[0], Activation::GeluTanh)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (rows, channels) = (measured.size(64 * 680, 9), measured.size(4096, 48));
    let device = measured.device.clone();
    let x = device.upload(&halves(rows * channels))?;
    let mut y = device.zeros::<bf16>(x.len())?;
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    let kind = Activation::GeluTanh;
    bench.device("gelu_forward", floor(2), || activation_forward(kind, &mut y, &x, None, channels));
    let mut dx = device.uninitialized::<bf16>(x.len())?;
    bench.device("gelu_backward", floor(3), || activation_backward(kind, &mut dx, &y, &x, None, channels));
    Ok(())
}
