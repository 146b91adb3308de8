//! Attention over the pyramid and to the text.

use std::sync::Arc;

use alchemist_engine::{
    Result,
    engine::{
        Parameters, Tensor,
        cuda::Buffer,
        ops::attention::{
            AttentionSettings, RotaryTable, Visible, cross_attention,
            cuda::{DeviceAttention, SourceGradients, backward, forward},
            self_attention, visible_keys,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (patch_nums, heads, batch, text) = ([1, 2, 3, 4, 6, 8], 4, 2, 16);
    let tokens = visible_keys(&patch_nums).len();
    let visible: Arc<Visible> = Arc::new(visible_keys(&patch_nums).into());
    let width = 64 * heads;
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
    own_on_device(bench)?;
    cross_on_device(bench)
}

/// Over the pyramid of the upstream configuration, the size that `benches/pytorch/attention.py` measures.
fn own_on_device(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let patch_nums: &[usize] =
        if measured.rehearsal { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    let (batch, heads) = (measured.size(64, 2), measured.size(16, 3));
    let device = measured.device.clone();
    let visible = visible_keys(patch_nums);
    let (tokens, channels) = (visible.len(), 64 * heads);
    let allowed: usize = visible.iter().sum();
    let visible =
        device.upload(&visible.iter().map(|&keys| u32::try_from(keys).unwrap_or(0)).collect::<Vec<_>>())?;
    let table = RotaryTable::new(patch_nums, 64, 10_000.0, 64.0);
    let narrow =
        |values: &[f64]| device.upload(&values.iter().map(|&value| value as f32).collect::<Vec<_>>());
    let (cosine, sine) = (narrow(&table.cosine)?, narrow(&table.sine)?);
    let log_scale = device.upload(&vec![4f32.ln(); heads])?;
    let shape = DeviceAttention {
        batch,
        heads,
        head_dim: 64,
        queries: tokens,
        keys: tokens,
        packed: true,
        visible: Some(&visible),
        mask: None,
        log_scale: Some(&log_scale),
        rotary: Some((&cosine, &sine)),
    };
    let qkv = device.upload(&halves(batch * tokens * 3 * channels))?;
    let d_out = device.upload(&halves(batch * tokens * channels))?;
    let mut out = device.uninitialized::<bf16>(d_out.len())?;
    let mut rows: Buffer<f32> = device.uninitialized(shape.rows_len::<bf16>())?;
    // Two products forward, five backward, over the unmasked pairs.
    let pair = 2 * 64 * batch * heads * allowed;
    let floor = Floor { bytes: qkv.bytes() + out.bytes(), flop: 2 * pair };
    bench.device("self_attention_forward", floor, || forward(&mut out, &mut rows, &shape, &qkv, &qkv));
    let mut d_qkv = device.uninitialized::<bf16>(qkv.len())?;
    let mut d_log_scale = device.uninitialized::<f32>(batch * heads)?;
    let floor = Floor { bytes: 3 * qkv.bytes() + 4 * out.bytes(), flop: 7 * pair };
    bench.device("self_attention_forward_backward", floor, || {
        forward(&mut out, &mut rows, &shape, &qkv, &qkv)?;
        let gradients = SourceGradients::Packed(&mut d_qkv);
        backward(gradients, Some(&mut d_log_scale), &mut rows, &shape, &qkv, &qkv, &out, &d_out)
    });
    Ok(())
}

/// Cross-attention to a text of 77 tokens.
fn cross_on_device(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, heads) = (measured.size(64, 2), measured.size(16, 3));
    let (tokens, text) = (measured.size(680, 14), measured.size(77, 5));
    let device = measured.device.clone();
    let channels = 64 * heads;
    let mask = device.upload(&vec![1u32; batch * text])?;
    let log_scale = device.upload(&vec![4f32.ln(); heads])?;
    let shape = DeviceAttention {
        batch,
        heads,
        head_dim: 64,
        queries: tokens,
        keys: text,
        packed: false,
        visible: None,
        mask: Some(&mask),
        log_scale: Some(&log_scale),
        rotary: None,
    };
    let q = device.upload(&halves(batch * tokens * channels))?;
    let kv = device.upload(&halves(batch * text * 2 * channels))?;
    let d_out = device.upload(&halves(q.len()))?;
    let mut out = device.uninitialized::<bf16>(q.len())?;
    let mut rows: Buffer<f32> = device.uninitialized(shape.rows_len::<bf16>())?;
    let (mut d_q, mut d_kv) =
        (device.uninitialized::<bf16>(q.len())?, device.uninitialized::<bf16>(kv.len())?);
    let mut d_log_scale = device.uninitialized::<f32>(batch * heads)?;
    let pair = 2 * 64 * batch * heads * tokens * text;
    let floor = Floor { bytes: 7 * q.bytes() + 3 * kv.bytes(), flop: 7 * pair };
    bench.device("cross_attention_forward_backward", floor, || {
        forward(&mut out, &mut rows, &shape, &q, &kv)?;
        let gradients = SourceGradients::Separate { d_q: &mut d_q, d_kv: &mut d_kv };
        backward(gradients, Some(&mut d_log_scale), &mut rows, &shape, &q, &kv, &out, &d_out)
    });
    Ok(())
}
