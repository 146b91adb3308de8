//! Residuals with drop-path.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        autograd::contributions::cuda::residual_forward,
        ops::residual::{cuda::residual_backward, residual},
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let leaves = [normal(&[2, 130, 256], 1), normal(&[2, 130, 256], 2)];
    bench.cpu("residual", &Parameters::default(), &leaves, &|tape, vars| {
        residual(tape, &vars[0], &vars[1], None)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, share) = (measured.size(64, 3), measured.size(680 * 1024, 48));
    let device = measured.device.clone();
    let [x, branch] = [device.upload(&halves(batch * share))?, device.upload(&halves(batch * share))?];
    let keep = device.upload(&vec![1.25f32; batch])?;
    let mut y = device.uninitialized::<bf16>(x.len())?;
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    bench.device("residual_forward", floor(3), || residual_forward(&mut y, Some(&x), &branch, Some(&keep)));
    bench.device("residual_backward", floor(2), || residual_backward(&mut y, Some(&x), &keep));
    Ok(())
}
