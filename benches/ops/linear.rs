//! Linear layers: on the CPU through the tape, on a device as cuBLASLt products with a bias.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::linear::{Bias, linear},
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (inputs, outputs) = (256, 768);
    let mut parameters = Parameters::default();
    let weight = parameters.push("weight", normal(&[outputs, inputs], 1))?;
    let bias = Bias { parameter: parameters.push("bias", normal(&[outputs], 2))?, column: 0 };
    bench.cpu("linear", &parameters, &[normal(&[2, 130, inputs], 3)], &|tape, vars| {
        linear(tape, &vars[0], weight, std::slice::from_ref(&bias))
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let rows = measured.size(64 * 680, 32);
    let (inputs, outputs) = (measured.size(1024, 16), measured.size(3072, 48));
    let device = measured.device.clone();
    let x = device.upload(&halves(rows * inputs))?;
    let weight = device.upload(&halves(outputs * inputs))?;
    let bias = device.upload(&halves(outputs))?;
    let mut y = device.zeros::<bf16>(rows * outputs)?;
    let floor = Floor { bytes: x.bytes() + weight.bytes() + y.bytes(), flop: 2 * rows * inputs * outputs };
    bench.device("linear_forward", floor, || {
        device.product(&mut y, [rows, outputs, inputs], (&x, false), (&weight, true), Some(&bias), 1.0, 0.0)
    });
    let mut dx = device.uninitialized::<bf16>(x.len())?;
    bench.device("linear_backward_input", floor, || {
        device.product(&mut dx, [rows, inputs, outputs], (&y, false), (&weight, false), None, 1.0, 0.0)
    });
    let mut d_weight = device.zeros::<f32>(weight.len())?;
    bench.device("linear_backward_weight", floor, || {
        device.product(&mut d_weight, [outputs, inputs, rows], (&y, true), (&x, false), None, 1.0, 1.0)
    });
    Ok(())
}
