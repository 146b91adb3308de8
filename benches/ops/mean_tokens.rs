//! The mean over the rater's tokens, from 16-bit values to f32.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::mean_tokens::{
            cuda::{mean_tokens_backward, mean_tokens_forward},
            mean_tokens,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    bench.cpu("mean_tokens", &Parameters::default(), &[normal(&[2, 130, 256], 1)], &|tape, vars| {
        mean_tokens(tape, &vars[0])
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let sizes @ [batch, tokens, channels] =
        [measured.size(64, 2), measured.size(680, 14), measured.size(512, 48)];
    let device = measured.device.clone();
    let x = device.upload(&halves(batch * tokens * channels))?;
    let mut y = device.zeros::<f32>(batch * channels)?;
    let floor = Floor { bytes: x.bytes() + y.bytes(), flop: 0 };
    bench.device("mean_tokens_forward", floor, || mean_tokens_forward(&mut y, &x, sizes));
    let mut dx = device.uninitialized::<bf16>(x.len())?;
    bench.device("mean_tokens_backward", floor, || mean_tokens_backward(&mut dx, &y, sizes));
    Ok(())
}
