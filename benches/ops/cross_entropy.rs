//! Per-token loss and the gradient of the logits.

use alchemist_engine::{
    Result,
    engine::{
        Parameters, Tensor,
        ops::cross_entropy::{
            cross_entropy,
            cuda::{self, CrossEntropyOutput},
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

fn targets(rows: usize, codes: usize) -> Vec<u32> {
    (0..rows).map(|row| u32::try_from(row * 7919 % codes).unwrap_or(0)).collect()
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (batch, tokens, codes) = (2, 130, 512);
    let logits = normal(&[batch, tokens, codes], 1);
    let wanted = Tensor::new(&[batch, tokens], targets(batch * tokens, codes))?;
    bench.cpu("cross_entropy", &Parameters::default(), &[logits], &|tape, vars| {
        Ok(cross_entropy(tape, &vars[0], &wanted, 0.0, None)?.sample_loss)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, tokens, codes) = (measured.size(64, 2), measured.size(680, 5), measured.size(4096, 100));
    let device = measured.device.clone();
    let rows = batch * tokens;
    let logits = device.upload(&halves(rows * codes))?;
    let wanted = device.upload(&targets(rows, codes))?;
    let seeds = device.upload(&vec![1.0f32; batch])?;
    let mut d_logits = device.uninitialized::<bf16>(logits.len())?;
    let (mut losses, mut correct) = (device.uninitialized(rows)?, device.uninitialized(rows)?);
    let floor = Floor { bytes: 2 * logits.bytes(), flop: 0 };
    bench.device("cross_entropy", floor, || {
        let output = CrossEntropyOutput {
            losses: &mut losses,
            correct: &mut correct,
            d_logits: Some((&mut d_logits, &seeds)),
        };
        cuda::cross_entropy(output, &logits, &wanted, [batch, tokens, codes], 0.0)
    });
    Ok(())
}
