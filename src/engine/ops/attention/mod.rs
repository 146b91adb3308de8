//! Attention as the proxy and the rater use it: over the token pyramid, and from the pyramid to the text.
//!
//! Rotary positions, l2-normalisation of queries and keys, the learned scale of each head and the scale-causal mask are
//! part of the op (upstream.md, B3 to B5), so that nothing of size `[L, L]` is ever kept: the backward recomputes the
//! probabilities from the logarithm of each row's sum.

pub mod cpu;
pub mod cuda;

use crate::{
    engine::{
        ParameterId, RowOwner, Tape, Tensor, Var,
        ops::{expect_shape, joint_owner, three_dims},
        tape::{Operation, Sink, Slot},
        visitors::Contribution,
    },
    error::{Error, Result},
    with_float,
};
use cpu::{Heads, Saved, Side};

/// Angles of the rotary positions, `[L, D/2]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    /// Cosines.
    pub cosine: Vec<f64>,
    /// Sines.
    pub sine: Vec<f64>,
}

impl RotaryTable {
    /// The axial table of the released code (upstream.md, B4): the first half of the pairs turns with the column, the
    /// second with the row, both stretched to `norm` within each scale.
    pub fn new(patch_nums: &[usize], head_dim: usize, theta: f64, norm: f64) -> Self {
        let quarter = head_dim / 4;
        let frequencies: Vec<f64> =
            (0..quarter).map(|j| theta.powf(-((4 * j) as f64) / head_dim as f64)).collect();
        let mut angles = Vec::new();
        for &side in patch_nums {
            let stretch = if side > 1 { norm / (side - 1) as f64 } else { 0.0 };
            for token in 0..side * side {
                let (column, row) = ((token % side) as f64 * stretch, (token / side) as f64 * stretch);
                angles.extend(frequencies.iter().map(|frequency| column * frequency));
                angles.extend(frequencies.iter().map(|frequency| row * frequency));
            }
        }
        Self {
            cosine: angles.iter().map(|angle| angle.cos()).collect(),
            sine: angles.iter().map(|angle| angle.sin()).collect(),
        }
    }
}

/// What a layer's attention looks like.
#[derive(Clone, Debug)]
pub struct AttentionSettings {
    /// Heads, `H`.
    pub heads: usize,
    /// The logarithm of each head's scale `[1, H, 1, 1]`: queries and keys are l2-normalised and the scale, clamped at
    /// 100, multiplies the queries. `None`: no normalisation, and the fixed scale `0.25/√D`.
    pub scale: Option<ParameterId>,
    /// Rotary positions, of the pyramid only.
    pub rotary: Option<std::sync::Arc<RotaryTable>>,
}

/// The number of keys that each query of a pyramid sees: all tokens of its own and coarser scales (upstream.md, B5).
pub fn visible_keys(patch_nums: &[usize]) -> Vec<usize> {
    let mut visible = Vec::new();
    let mut end = 0;
    for side in patch_nums {
        end += side * side;
        visible.extend(std::iter::repeat_n(end, side * side));
    }
    visible
}

struct Attention {
    heads: Heads,
    saved: Saved,
    output: Tensor,
    sources: [Tensor; 2],
    slots: [Slot; 2],
    owner: RowOwner,
    settings: AttentionSettings,
    packed: bool,
}

/// Self-attention over the pyramid: `qkv` `[B, L, 3C]` to `[B, L, C]`. Token `t` sees the first `visible[t]` tokens.
///
/// # Errors
/// If the sizes do not fit.
pub fn self_attention(
    tape: &mut Tape<'_>,
    qkv: &Var,
    settings: &AttentionSettings,
    visible: &std::sync::Arc<Vec<usize>>,
) -> Result<Var> {
    let [batch, tokens, packed] = three_dims("self_attention", "qkv", qkv.value())?;
    let channels = packed / 3;
    if packed % 3 != 0 || channels % settings.heads != 0 || visible.len() != tokens {
        let shape = qkv.value().shape();
        return Err(Error::shape(
            "self_attention",
            format!("qkv {shape:?} does not fit {} heads and {} tokens", settings.heads, visible.len()),
        ));
    }
    let heads = Heads {
        batch,
        heads: settings.heads,
        head_dim: channels / settings.heads,
        queries: Side { length: tokens, stride: packed, offset: 0 },
        keys: Side { length: tokens, stride: packed, offset: channels },
        values: Side { length: tokens, stride: packed, offset: 2 * channels },
        visible: std::sync::Arc::clone(visible),
        key_mask: None,
    };
    attend(tape, heads, [qkv, qkv], settings, true)
}

/// Cross-attention to the text: `q` `[B, L, C]`, `kv` `[B, T, 2C]`, `mask` `[B, T]` u32 (only a 1 is seen; a row without
/// any gives zeros) to `[B, L, C]`.
///
/// # Errors
/// If the sizes do not fit.
pub fn cross_attention(
    tape: &mut Tape<'_>,
    q: &Var,
    kv: &Var,
    mask: &Tensor,
    settings: &AttentionSettings,
) -> Result<Var> {
    let [batch, tokens, channels] = three_dims("cross_attention", "q", q.value())?;
    let length = kv.value().shape().get(1).copied().unwrap_or(0);
    expect_shape("cross_attention", "kv", kv.value(), &[batch, length, 2 * channels])?;
    expect_shape("cross_attention", "the mask", mask, &[batch, length])?;
    if channels % settings.heads != 0 {
        return Err(Error::shape(
            "cross_attention",
            format!("{channels} channels, {} heads", settings.heads),
        ));
    }
    let heads = Heads {
        batch,
        heads: settings.heads,
        head_dim: channels / settings.heads,
        queries: Side { length: tokens, stride: channels, offset: 0 },
        keys: Side { length, stride: 2 * channels, offset: 0 },
        values: Side { length, stride: 2 * channels, offset: channels },
        visible: std::sync::Arc::new(vec![length; tokens]),
        key_mask: Some(mask.as_slice::<u32>()?.iter().map(|&keep| keep == 1).collect()),
    };
    attend(tape, heads, [q, kv], settings, false)
}

fn attend(
    tape: &mut Tape<'_>,
    heads: Heads,
    sources: [&Var; 2],
    settings: &AttentionSettings,
    packed: bool,
) -> Result<Var> {
    let scale = settings.scale.map(|id| tape.parameters().value(id));
    let (output, saved) = with_float!(sources[0].value().dtype(), "attention", T => {
        cpu::forward::<T>(&heads, sources.map(Var::value), scale, settings.rotary.as_deref())
    })?;
    let slots = sources.map(|var| tape.slot(var));
    let owner = joint_owner(sources[0].owner(), sources[1].owner());
    let kept = sources.map(|var| var.value().clone());
    let value = output.clone();
    let settings = settings.clone();
    Ok(tape.push(value, owner, &slots, settings.scale.is_some(), || Attention {
        heads,
        saved,
        output,
        sources: kept,
        slots,
        owner,
        settings,
        packed,
    }))
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        if self.packed { "self_attention" } else { "cross_attention" }
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let scale = self.settings.scale.map(|id| sink.parameters().value(id));
        let sources = [&self.sources[0], &self.sources[1]];
        let gradients = with_float!(d_output.dtype(), "attention", T => {
            cpu::backward::<T>(
                &self.heads, sources, &self.output, &self.saved, &d_output, scale,
                self.settings.rotary.as_deref(), self.packed,
            )
        })?;
        if let (Some(id), Some(d_scale)) = (self.settings.scale, &gradients.d_scale) {
            sink.parameter(id, self.owner, &Contribution::PerSample { d_value: d_scale })?;
        }
        let [first, second] = gradients.d_sources;
        if let Some(gradient) = first {
            sink.input(self.slots[0], gradient)?;
        }
        if let Some(gradient) = second {
            sink.input(self.slots[1], gradient)?;
        }
        Ok(())
    }
}
