//! Attention over the pyramid and to the text.

use std::sync::Arc;

use alchemist_engine::{
    Result,
    engine::{
        Parameters, Tensor,
        ops::attention::{AttentionSettings, RotaryTable, cross_attention, self_attention, visible_keys},
    },
};

use crate::{Bench, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (patch_nums, heads, batch, text) = ([1, 2, 3, 4, 6, 8], 4, 2, 16);
    let visible = Arc::new(visible_keys(&patch_nums));
    let (tokens, width) = (visible.len(), 64 * heads);
    let mut parameters = Parameters::default();
    let scale = parameters.push("scale", Tensor::new(&[1, heads, 1, 1], vec![4f32.ln(); heads])?)?;
    let rotary = Arc::new(RotaryTable::new(&patch_nums, 64, 10_000.0, 64.0));
    let own = AttentionSettings { heads, scale: Some(scale), rotary: Some(rotary) };
    bench.cpu("self_attention", &parameters, &[normal(&[batch, tokens, 3 * width], 1)], &|tape, vars| {
        self_attention(tape, &vars[0], &own, &visible)
    });
    let cross = AttentionSettings { heads, scale: Some(scale), rotary: None };
    let mask = Tensor::new(&[batch, text], vec![1u32; batch * text])?;
    let leaves = [normal(&[batch, tokens, width], 2), normal(&[batch, text, 2 * width], 3)];
    bench.cpu("cross_attention", &parameters, &leaves, &|tape, vars| {
        cross_attention(tape, &vars[0], &vars[1], &mask, &cross)
    });
    Ok(())
}
