//! The start of the sequence: the pyramid's rows projected, the text before them, levels added.

use alchemist_engine::{
    Result,
    engine::ops::{
        attention::visible_keys,
        patch_embed::cuda::{PatchEmbedInput, patch_embed_backward, patch_embed_forward},
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
    let tokens = visible_keys(patch_nums).len();
    let number = |value: usize| u32::try_from(value).unwrap_or(0);
    let levels: Vec<u32> = patch_nums
        .iter()
        .enumerate()
        .flat_map(|(level, side)| std::iter::repeat_n(number(level), side * side))
        .collect();
    let mut starts = vec![0];
    for side in patch_nums {
        starts.push(starts[starts.len() - 1] + number(side * side));
    }
    let (levels, starts) = (device.upload(&levels)?, device.upload(&starts)?);
    let [text, rows, weight] = [batch * channels, batch * (tokens - 1) * codes, channels * codes]
        .map(|count| device.upload(&halves(count)));
    let (text, rows, weight) = (text?, rows?, weight?);
    let (bias, start) = (device.zeros::<f32>(channels)?, device.zeros::<f32>(channels)?);
    let level = device.zeros::<f32>(patch_nums.len() * channels)?;
    let input = PatchEmbedInput {
        text: &text,
        rows: &rows,
        weight: &weight,
        bias: &bias,
        start: &start,
        level: Some(&level),
        position: None,
        levels: &levels,
    };
    let mut x = device.uninitialised::<bf16>(batch * tokens * channels)?;
    let floor = Floor { bytes: x.bytes() + rows.bytes(), flop: 0 };
    bench.device("patch_embed_forward", floor, || patch_embed_forward(&mut x, &input));
    let mut sums = device.uninitialised::<f32>(batch * patch_nums.len() * channels)?;
    let mut d_text = device.uninitialised::<bf16>(text.len())?;
    let floor = Floor { bytes: x.bytes() + sums.bytes(), flop: 0 };
    bench.device("patch_embed_backward", floor, || {
        patch_embed_backward(&mut sums, Some(&mut d_text), &x, &starts, [batch, tokens, channels])
    });
    Ok(())
}
