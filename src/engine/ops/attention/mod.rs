//! Attention for the proxy and the rater: over the token pyramid, and from the pyramid to the text.
//!
//! Rotary position embedding, l2-normalization of queries and keys, the learned scale of each head and the scale-causal
//! mask are part of the op (upstream.md, B3 to B5), so that nothing of size `[L, L]` is ever stored: the backward
//! recomputes the probabilities from each row's log-sum-exp.

#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::sync::Arc;

use crate::{
    engine::{
        Constant, DType, Float, ParameterId, RowOwner, Tape, Tensor, Var,
        autograd::{
            contributions::Contribution,
            tape::{Operation, Sink, Slot},
        },
        cuda::{Device, DeviceFloat},
        dispatch::{dispatch, with_float, with_number},
        ops::{expect_shape, three_dims},
    },
    error::{Error, Result},
};
use cpu::{AttentionGradients, Heads, Saved, Side};
use cuda::{DeviceAttention, SourceGradients};

/// Angles of the rotary position embedding, `[L, D/2]` each.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// Cosines.
    pub cosine: Vec<f64>,
    /// Sines.
    pub sine: Vec<f64>,
    /// Both in f32, for devices.
    constants: Arc<[Constant<f32>; 2]>,
}

impl RotaryTable {
    /// The axial table of the upstream code (upstream.md, B4): the first half of the pairs rotates with the column, the
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
        let cosine = angles.iter().map(|angle| angle.cos()).collect();
        let sine = angles.iter().map(|angle| angle.sin()).collect();
        Self::of(cosine, sine)
    }

    /// The rows of some tokens of the table, for heads of `head_dim` channels.
    ///
    /// # Panics
    /// If a token is out of range.
    #[must_use]
    pub(crate) fn rows(&self, tokens: &[usize], head_dim: usize) -> Self {
        let half = head_dim / 2;
        let rows = |table: &[f64]| {
            tokens.iter().flat_map(|token| &table[token * half..(token + 1) * half]).copied().collect()
        };
        Self::of(rows(&self.cosine), rows(&self.sine))
    }

    fn of(cosine: Vec<f64>, sine: Vec<f64>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
        let constants =
            [&cosine, &sine].map(|wide| wide.iter().map(|&value| value as f32).collect::<Vec<_>>().into());
        Self { cosine, sine, constants: Arc::new(constants) }
    }
}

/// Settings of a layer's attention.
#[derive(Clone, Debug)]
pub struct AttentionSettings {
    /// Heads, `H`.
    pub heads: usize,
    /// The logarithm of each head's scale `[1, H, 1, 1]`: queries and keys are l2-normalized and the scale, clamped at
    /// 100, multiplies the queries. `None`: no normalization, and the fixed scale `0.25/√D`.
    pub scale: Option<ParameterId>,
    /// Rotary position embedding, for the pyramid only.
    pub rotary: Option<Arc<RotaryTable>>,
}

/// The number of keys that each query of a pyramid attends to: its own and coarser scales (upstream.md, B5).
pub fn visible_keys(patch_nums: &[usize]) -> Vec<usize> {
    visible_of_levels(&patch_nums.iter().map(|side| side * side).collect::<Vec<_>>())
}

/// As [`visible_keys`], where level `s` has `counts[s]` tokens.
pub(crate) fn visible_of_levels(counts: &[usize]) -> Vec<usize> {
    let mut visible = Vec::new();
    let mut end = 0;
    for &count in counts {
        end += count;
        visible.extend(std::iter::repeat_n(end, count));
    }
    visible
}

/// The number of keys that each query attends to, from the first on; non-decreasing.
#[derive(Debug)]
pub struct Visible {
    keys: Arc<Vec<usize>>,
    constants: Constant<u32>,
}

impl From<Vec<usize>> for Visible {
    fn from(keys: Vec<usize>) -> Self {
        let constants = keys.iter().map(|&keys| u32::try_from(keys).unwrap_or(u32::MAX)).collect::<Vec<_>>();
        Self { keys: Arc::new(keys), constants: constants.into() }
    }
}

/// Which keys a query attends to.
#[derive(Clone)]
enum Mask {
    /// Those of its own and coarser scales.
    Pyramid(Arc<Visible>),
    /// Those that are 1 in a mask `[B, T]`.
    Text(Tensor),
}

/// Values that the backward pass needs in addition to sources and result.
enum Kept {
    Host(Saved),
    /// Statistics of the rows of logits: see [`cuda::DeviceAttention::rows_len`].
    Device(Tensor),
}

struct Attention {
    heads: Heads,
    mask: Mask,
    saved: Kept,
    output: Tensor,
    sources: [Tensor; 2],
    slots: [Slot; 2],
    owner: RowOwner,
    settings: AttentionSettings,
}

/// Self-attention over the pyramid: `qkv` `[B, L, 3C]` to `[B, L, C]`.
///
/// # Errors
/// If the sizes do not match.
pub fn self_attention(
    tape: &mut Tape<'_>,
    qkv: &Var,
    settings: &AttentionSettings,
    visible: &Arc<Visible>,
) -> Result<Var> {
    let [batch, tokens, packed] = three_dims("self_attention", "qkv", qkv.value())?;
    let channels = packed / 3;
    if packed % 3 != 0 || channels % settings.heads != 0 || visible.keys.len() != tokens {
        let shape = qkv.value().shape();
        return Err(Error::shape(
            "self_attention",
            format!("qkv {shape:?} does not fit {} heads and {} tokens", settings.heads, visible.keys.len()),
        ));
    }
    let heads = Heads {
        batch,
        heads: settings.heads,
        head_dim: channels / settings.heads,
        queries: Side { length: tokens, stride: packed, offset: 0 },
        keys: Side { length: tokens, stride: packed, offset: channels },
        values: Side { length: tokens, stride: packed, offset: 2 * channels },
        visible: Arc::clone(&visible.keys),
        key_mask: None,
    };
    attend(tape, heads, Mask::Pyramid(Arc::clone(visible)), [qkv, qkv], settings)
}

/// Self-attention of the tokens of the next scale, `qkv` `[B, n, 3C]`, to themselves and to `cache` `[B, m, 3C]`, the
/// packed rows of the previous scales, to which theirs are appended: `[B, n, C]`. For inference; positions are those of
/// all `m + n` tokens, and the queries are the last `n`.
///
/// # Errors
/// If the sizes do not match or the tape is recording.
pub(crate) fn cached_attention(
    tape: &mut Tape<'_>,
    qkv: &Var,
    settings: &AttentionSettings,
    cache: &mut Option<Tensor>,
) -> Result<Var> {
    let [batch, tokens, packed] = three_dims("cached_attention", "qkv", qkv.value())?;
    let channels = packed / 3;
    if packed % 3 != 0 || channels % settings.heads != 0 {
        return Err(Error::shape(
            "cached_attention",
            format!("qkv {:?} does not fit {} heads", qkv.value().shape(), settings.heads),
        ));
    }
    if tape.slot(qkv).wanted() {
        return Err(Error::invalid("a pass with a cache has no backward pass: use a tape for inference"));
    }
    let rows = match cache.take() {
        None => qkv.value().clone(),
        Some(before) => append_tokens(&before, qkv.value())?,
    };
    let length = rows.dim(1);
    let all = tape.constant(rows.clone());
    *cache = Some(rows);
    let side = |offset| Side { length, stride: packed, offset };
    let visible = Arc::new(Visible::from(vec![length; tokens]));
    let heads = Heads {
        batch,
        heads: settings.heads,
        head_dim: channels / settings.heads,
        queries: Side { length: tokens, stride: packed, offset: 0 },
        keys: side(channels),
        values: side(2 * channels),
        visible: Arc::clone(&visible.keys),
        key_mask: None,
    };
    attend(tape, heads, Mask::Pyramid(visible), [qkv, &all], settings)
}

/// Concatenates `[B, m, N]` and `[B, n, N]` to `[B, m + n, N]`.
fn append_tokens(before: &Tensor, after: &Tensor) -> Result<Tensor> {
    let [batch, m, width] = three_dims("append_tokens", "before", before)?;
    let [_, n, _] = three_dims("append_tokens", "after", after)?;
    expect_shape("append_tokens", "after", after, &[batch, n, width])?;
    dispatch!("append_tokens", before,
        cpu T => {
            let (before, after) = (before.as_slice::<T>()?, after.as_slice::<T>()?);
            let mut rows = T::numbers(batch * (m + n) * width);
            for ((rows, before), after) in rows
                .chunks_exact_mut((m + n) * width)
                .zip(before.chunks_exact(m * width))
                .zip(after.chunks_exact(n * width))
            {
                rows[..m * width].copy_from_slice(before);
                rows[m * width..].copy_from_slice(after);
            }
            Tensor::new(&[batch, m + n, width], rows)
        },
        cuda T => {
            let (before, after) = (before.buffer::<T>()?, after.buffer::<T>()?);
            Tensor::written::<T>(before.device(), &[batch, m + n, width], |rows| {
                for sample in 0..batch {
                    let at = sample * (m + n) * width;
                    rows.copy_range(at, before, sample * m * width..(sample + 1) * m * width)?;
                    rows.copy_range(at + m * width, after, sample * n * width..(sample + 1) * n * width)?;
                }
                Ok(())
            })
        },
    )
}

/// Cross-attention to the text: `q` `[B, L, C]` and `kv` `[B, T, 2C]` to `[B, L, C]`. Queries attend to the keys whose
/// entry in `mask`, `[B, T]` u32, is 1. The result is zero for a sample without such keys.
///
/// # Errors
/// If the sizes do not match.
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
    let key_mask = match q.value().device() {
        None => Some(mask.as_slice::<u32>()?.iter().map(|&keep| keep == 1).collect()),
        Some(_) => None,
    };
    let heads = Heads {
        batch,
        heads: settings.heads,
        head_dim: channels / settings.heads,
        queries: Side { length: tokens, stride: channels, offset: 0 },
        keys: Side { length, stride: 2 * channels, offset: 0 },
        values: Side { length, stride: 2 * channels, offset: channels },
        visible: Arc::new(vec![length; tokens]),
        key_mask,
    };
    attend(tape, heads, Mask::Text(mask.clone()), [q, kv], settings)
}

fn attend(
    tape: &mut Tape<'_>,
    heads: Heads,
    mask: Mask,
    sources: [&Var; 2],
    settings: &AttentionSettings,
) -> Result<Var> {
    let scale = settings.scale.map(|id| tape.parameters().value(id));
    let values = sources.map(Var::value);
    let (output, saved) = dispatch!("attention", values[0],
        cpu T => {
            let (output, saved) = cpu::forward::<T>(&heads, values, scale, settings.rotary.as_deref())?;
            Ok((output, Kept::Host(saved)))
        },
        cuda T => forward_on_device::<T>(&heads, &mask, values, scale, settings),
    )?;
    let slots = sources.map(|var| tape.slot(var));
    let owner = sources[0].owner().joint(sources[1].owner());
    let kept = values.map(Clone::clone);
    let value = output.clone();
    let settings = settings.clone();
    Ok(tape.push(value, owner, &slots, settings.scale.is_some(), || Attention {
        heads,
        mask,
        saved,
        output,
        sources: kept,
        slots,
        owner,
        settings,
    }))
}

/// The attention's settings for its kernels.
fn on_device<'a>(
    heads: &Heads,
    mask: &'a Mask,
    scale: Option<&'a Tensor>,
    settings: &'a AttentionSettings,
    device: &Device,
) -> Result<DeviceAttention<'a>> {
    let (packed, visible, text) = match mask {
        Mask::Pyramid(visible) => (true, Some(visible.constants.on(device)?), None),
        Mask::Text(mask) => (false, None, Some(mask.buffer::<u32>()?)),
    };
    let rotary = |table: &'a Arc<RotaryTable>| {
        let [cosine, sine] = &*table.constants;
        Ok::<_, Error>((cosine.on(device)?, sine.on(device)?))
    };
    Ok(DeviceAttention {
        batch: heads.batch,
        heads: heads.heads,
        head_dim: heads.head_dim,
        queries: heads.queries.length,
        keys: heads.keys.length,
        packed,
        visible,
        mask: text,
        log_scale: scale.map(Tensor::buffer::<f32>).transpose()?,
        rotary: settings.rotary.as_ref().map(rotary).transpose()?,
    })
}

fn forward_on_device<T: DeviceFloat>(
    heads: &Heads,
    mask: &Mask,
    sources: [&Tensor; 2],
    scale: Option<&Tensor>,
    settings: &AttentionSettings,
) -> Result<(Tensor, Kept)> {
    let [q, kv] = [sources[0].buffer::<T>()?, sources[1].buffer::<T>()?];
    let device = q.device();
    let shape = on_device(heads, mask, scale, settings, device)?;
    let length = shape.rows_len::<T>();
    let mut rows = device.uninitialized(length)?;
    let sizes = [heads.batch, heads.queries.length, heads.heads * heads.head_dim];
    let output = Tensor::written(device, &sizes, |out| cuda::forward(out, &mut rows, &shape, q, kv))?;
    Ok((output, Kept::Device(Tensor::from_buffer(&[length], rows)?)))
}

fn backward_on_device<T: DeviceFloat>(
    op: &Attention,
    rows: &mut Tensor,
    scale: Option<&Tensor>,
    d_output: &Tensor,
) -> Result<AttentionGradients> {
    let [q, kv] = [op.sources[0].buffer::<T>()?, op.sources[1].buffer::<T>()?];
    let (out, d_out, device) = (op.output.buffer::<T>()?, d_output.buffer::<T>()?, q.device());
    let shape = on_device(&op.heads, &op.mask, scale, &op.settings, device)?;
    let rows = rows.buffer_mut::<f32>()?;
    let mut d_scale =
        scale.map(|_| device.uninitialized::<f32>(op.heads.batch * op.heads.heads)).transpose()?;
    let mut d_first = device.uninitialized::<T>(q.len())?;
    let d_sources = if shape.packed {
        let gradients = SourceGradients::Packed(&mut d_first);
        cuda::backward(gradients, d_scale.as_mut(), rows, &shape, q, kv, out, d_out)?;
        [Some(Tensor::from_buffer(op.sources[0].shape(), d_first)?), None]
    } else {
        let mut d_kv = device.uninitialized::<T>(kv.len())?;
        let gradients = SourceGradients::Separate { d_q: &mut d_first, d_kv: &mut d_kv };
        cuda::backward(gradients, d_scale.as_mut(), rows, &shape, q, kv, out, d_out)?;
        let d_q = Tensor::from_buffer(op.sources[0].shape(), d_first)?;
        [Some(d_q), Some(Tensor::from_buffer(op.sources[1].shape(), d_kv)?)]
    };
    let sizes = [op.heads.batch, op.heads.heads];
    let d_scale = d_scale.map(|gradient| Tensor::from_buffer(&sizes, gradient)).transpose()?;
    Ok(AttentionGradients { d_sources, d_scale })
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        if matches!(self.mask, Mask::Pyramid(_)) { "self_attention" } else { "cross_attention" }
    }

    fn backward(mut self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let scale = self.settings.scale.map(|id| sink.parameters().value(id));
        let sources = [&self.sources[0], &self.sources[1]];
        let packed = matches!(self.mask, Mask::Pyramid(_));
        let gradients = match &mut self.saved {
            Kept::Host(saved) => with_float!(d_output.dtype(), "attention", T => {
                cpu::backward::<T>(
                    &self.heads, sources, &self.output, saved, &d_output, scale,
                    self.settings.rotary.as_deref(), packed,
                )
            })?,
            Kept::Device(rows) => {
                let mut rows = std::mem::replace(rows, Tensor::zeros(&[0], DType::F32));
                with_number!(d_output.dtype(), "attention", T => {
                    backward_on_device::<T>(&self, &mut rows, scale, &d_output)
                })?
            }
        };
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
