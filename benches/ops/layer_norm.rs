//! Layer norm without modulation, at the networks' sizes: alone, and fused with the residual.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::layer_norm::{
            cuda::{
                LayerNormInput, ResidualBranch, ResidualGradients, layer_norm_backward, layer_norm_forward,
                residual_layer_norm_backward, residual_layer_norm_forward,
            },
            layer_norm,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

const EPSILON: f32 = 1e-6;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let x = normal(&[2, 130, 256], 1);
    bench.cpu("layer_norm", &Parameters::default(), &[x], &|tape, vars| {
        layer_norm(tape, &vars[0], f64::from(EPSILON), None)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (rows, channels) = (measured.size(64 * 680, 9), measured.size(1024, 48));
    let device = measured.device.clone();
    let x = device.upload(&halves(rows * channels))?;
    let mut y = device.zeros::<bf16>(x.len())?;
    let mut statistics = device.zeros::<f32>(2 * rows)?;
    let input = LayerNormInput { x: &x, channels, modulation: None };
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    bench.device("layer_norm_forward", floor(2), || {
        layer_norm_forward(&mut y, &mut statistics, &input, EPSILON)
    });
    let mut dx = device.uninitialized::<bf16>(x.len())?;
    bench.device("layer_norm_backward", floor(3), || layer_norm_backward(&mut dx, &y, &input, &statistics));
    let branch = device.upload(&halves(rows * channels))?;
    let residual = ResidualBranch { before: &x, branch: &branch, keep: None };
    let mut sum = device.zeros::<bf16>(x.len())?;
    bench.device("residual_layer_norm_forward", floor(4), || {
        residual_layer_norm_forward(&mut sum, &mut y, &mut statistics, &residual, channels, None, EPSILON)
    });
    let input = LayerNormInput { x: &sum, channels, modulation: None };
    bench.device("residual_layer_norm_backward", floor(4), || {
        let gradients = ResidualGradients { dx: &mut dx, d_residual: Some(&branch), d_branch: None };
        residual_layer_norm_backward(gradients, &y, &input, &statistics, None)
    });
    Ok(())
}
