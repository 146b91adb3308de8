//! The input embedding: the pyramid's rows projected, the text before them, level embeddings added.

use alchemist_engine::{
    Result,
    engine::ops::{
        levels::SequenceLevels,
        patch_embed::cuda::{
            DevicePatchEmbedParameters, patch_embed_backward, patch_embed_backward_bias,
            patch_embed_backward_weight, patch_embed_forward,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let patch_nums: &[usize] =
        if measured.rehearsal { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    let (batch, channels, codes) = (measured.size(64, 2), measured.size(1024, 64), measured.size(32, 8));
    let device = measured.device.clone();
    let counts: Vec<usize> = patch_nums.iter().map(|side| side * side).collect();
    let sequence = SequenceLevels::new(&device, &counts)?;
    let tokens = sequence.tokens();
    // Rows of the first token too, as in training: the weight's gradient is then one product.
    let [text, rows, weight] = [batch * channels, batch * tokens * codes, channels * codes]
        .map(|count| device.upload(&halves(count)));
    let (text, rows, weight) = (text?, rows?, weight?);
    let (bias, start) = (device.zeros::<f32>(channels)?, device.zeros::<f32>(channels)?);
    let level = device.zeros::<f32>(counts.len() * channels)?;
    let parameters = DevicePatchEmbedParameters {
        weight: &weight,
        bias: &bias,
        start: &start,
        level: Some(&level),
        position: None,
    };
    let mut x = device.zeros::<bf16>(batch * tokens * channels)?;
    let floor = Floor { bytes: x.bytes() + rows.bytes() + text.bytes(), flop: 0 };
    bench.device("patch_embed_forward", floor, || {
        patch_embed_forward(&mut x, &text, &rows, &parameters, &sequence)
    });
    let mut sums = device.zeros::<f32>(batch * counts.len() * channels)?;
    let mut d_text = device.uninitialized::<bf16>(text.len())?;
    let floor = Floor { bytes: x.bytes() + sums.bytes() + d_text.bytes(), flop: 0 };
    bench.device("patch_embed_backward", floor, || {
        patch_embed_backward(&mut sums, Some(&mut d_text), &x, &sequence, [batch, channels])
    });
    let mut d_bias = device.uninitialized::<f32>(batch * channels)?;
    let floor = Floor { bytes: sums.bytes() + d_bias.bytes(), flop: 0 };
    bench.device("patch_embed_backward_bias", floor, || {
        patch_embed_backward_bias(&mut d_bias, &sums, &sequence, [batch, channels])
    });
    let mut d_weight = device.uninitialized::<f32>(weight.len())?;
    let floor = Floor {
        bytes: x.bytes() + rows.bytes() + d_weight.bytes(),
        flop: 2 * batch * tokens * channels * codes,
    };
    bench.device("patch_embed_backward_weight", floor, || {
        patch_embed_backward_weight(&mut d_weight, &x, &rows, channels, false)
    });
    Ok(())
}
