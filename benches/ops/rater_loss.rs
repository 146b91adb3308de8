//! The exchange between the two networks of a bilevel step: one value per sample, so the cost is that of a launch.

use alchemist_engine::{
    Result,
    engine::ops::rater_loss::cuda::{
        rater_loss_backward, rater_loss_regression, rater_loss_seeds, rater_loss_standardize,
    },
};

use crate::{Bench, Floor, floats};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let samples = measured.size(64, 7);
    let device = measured.device.clone();
    let constants = device.upload(&floats(samples))?;
    let weights = device.upload(&vec![0.5f32; samples])?;
    let averages = device.upload(&vec![0.5f32; 2 * samples])?;
    let factors = device.upload(&[0.5f32; 3])?;
    let [mut to, mut targets] =
        [device.uninitialized::<f32>(samples)?, device.uninitialized::<f32>(samples)?];
    let floor = |passes: usize| Floor { bytes: passes * constants.bytes(), flop: 0 };
    bench.device("rater_loss_seeds", floor(2), || rater_loss_seeds(&mut to, &weights, &factors));
    bench.device("rater_loss_backward", floor(3), || {
        rater_loss_backward(&mut to, &constants, &weights, &factors)
    });
    bench.device("rater_loss_standardize", floor(2), || rater_loss_standardize(&mut to, &constants, true));
    bench.device("rater_loss_regression", floor(6), || {
        rater_loss_regression([&mut to, &mut targets], &weights, &constants, &averages, &factors)
    });
    Ok(())
}
