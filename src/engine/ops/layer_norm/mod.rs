//! Layer norm without learned scale or shift: `n = (x − mean) / √(variance + ε)` over the channels; with shared
//! modulation (`saln`), `n·(1 + scale) + shift` with the parts of each token's level.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::sync::Arc;

use crate::{
    engine::{
        Tape, Tensor, Var,
        autograd::tape::{Operation, Sink, Slot},
        cuda::DeviceFloat,
        dispatch::{dispatch, with_float, with_number},
        ops::{
            last_dim,
            levels::Levels,
            modulation::{self, cuda::add_modulation, expect_parts, own_samples},
            three_dims,
        },
    },
    error::Result,
};
use cuda::{LayerNormInput, ModulationRows};

/// Scale and shift applied after a norm, from a block's modulation.
#[derive(Clone, Copy, Debug)]
pub struct ScaleShift<'a> {
    /// The six parts per level, `[S, 6C]`, or per sample and level, `[B, S, 6C]`: see [`modulation::parts`].
    pub parts: &'a Var,
    /// Index of the scale among the parts.
    pub scale: usize,
    /// Index of the shift among the parts.
    pub shift: usize,
    /// The level of each token.
    pub levels: &'a Arc<Levels>,
}

/// A [`ScaleShift`] saved for the backward pass.
struct Kept {
    parts: Tensor,
    slot: Slot,
    scale: usize,
    shift: usize,
    levels: Arc<Levels>,
}

struct LayerNorm {
    saved: Saved,
    modulation: Option<Kept>,
    slot: Slot,
}

/// Values that the backward pass needs in addition to the modulation.
enum Saved {
    /// On the host: the normalized rows, and `1 / √(variance + ε)` per row.
    Normalized { output: Tensor, inverse_deviation: Tensor },
    /// On a device: the input, and mean and inverse deviation of each row, `[R, 2]`.
    Input { input: Tensor, statistics: Tensor },
}

/// Normalizes each row of `x` `[.., C]`, with the biased variance. Upstream ε: 1e-6. With a modulation, `x` is
/// `[B, L, C]`.
///
/// # Errors
/// If the sizes do not match.
pub fn layer_norm(
    tape: &mut Tape<'_>,
    x: &Var,
    epsilon: f64,
    modulation: Option<ScaleShift<'_>>,
) -> Result<Var> {
    let channels = last_dim("layer_norm", x.value())?;
    if let Some(ScaleShift { parts, levels, .. }) = modulation {
        let [batch, tokens, _] = three_dims("layer_norm", "x", x.value())?;
        levels.expect("layer_norm", tokens)?;
        expect_parts("layer_norm", parts.value(), levels, [batch, channels])?;
    }
    let (slot, kept) = (
        tape.slot(x),
        modulation.map(|ScaleShift { parts, scale, shift, levels }| Kept {
            parts: parts.value().clone(),
            slot: tape.slot(parts),
            scale,
            shift,
            levels: Arc::clone(levels),
        }),
    );
    let (value, saved) = dispatch!("layer_norm", x.value(),
        cpu T => {
            let (output, inverse_deviation) = cpu::forward::<T>(x.value(), epsilon)?;
            let value = match &kept {
                None => output.clone(),
                Some(Kept { parts, scale, shift, levels, .. }) => {
                    modulation::cpu::scale_shift::<T>(&output, parts, [*scale, *shift], levels.host())?
                }
            };
            Ok((value, Saved::Normalized { output, inverse_deviation }))
        },
        cuda T => forward_on_device::<T>(x.value(), epsilon, kept.as_ref()),
    )?;
    let parts = kept.as_ref().map_or(slot, |kept| kept.slot);
    Ok(tape.push(value, x.owner(), &[slot, parts], false, || LayerNorm { saved, modulation: kept, slot }))
}

fn input<'a, T: DeviceFloat>(x: &'a Tensor, modulation: Option<&'a Kept>) -> Result<LayerNormInput<'a, T>> {
    let channels = last_dim("layer_norm", x)?;
    let x = x.buffer::<T>()?;
    let rows = |Kept { parts, scale, shift, levels, .. }: &'a Kept| -> Result<ModulationRows<'a>> {
        Ok(ModulationRows {
            parts: parts.buffer::<f32>()?,
            samples: own_samples(parts),
            stride: 6 * channels,
            scale: scale * channels,
            shift: shift * channels,
            levels: levels.on(x.device())?.levels(),
        })
    };
    Ok(LayerNormInput { x, channels, modulation: modulation.map(rows).transpose()? })
}

fn forward_on_device<T: DeviceFloat>(
    x: &Tensor,
    epsilon: f64,
    modulation: Option<&Kept>,
) -> Result<(Tensor, Saved)> {
    let input = input::<T>(x, modulation)?;
    let rows = x.len() / input.channels;
    let mut statistics = input.x.device().uninitialized(2 * rows)?;
    #[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
    let y = Tensor::written(input.x.device(), x.shape(), |y| {
        cuda::layer_norm_forward(y, &mut statistics, &input, epsilon as f32)
    })?;
    let statistics = Tensor::from_buffer(&[rows, 2], statistics)?;
    Ok((y, Saved::Input { input: x.clone(), statistics }))
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let Self { saved, modulation, slot } = *self;
        let (dx, d_parts) = match saved {
            Saved::Normalized { output, inverse_deviation } => {
                with_float!(d_output.dtype(), "layer_norm", T => {
                    let (d_normalized, d_parts) = match &modulation {
                        None => (d_output, None),
                        Some(Kept { parts, scale, shift, levels, .. }) => {
                            let at = [*scale, *shift];
                            let (d, d_parts) = modulation::cpu::scale_shift_backward::<T>(
                                &output, parts, at, levels.host(), d_output,
                            )?;
                            (d, Some(d_parts))
                        }
                    };
                    Ok((cpu::backward::<T>(&output, &inverse_deviation, d_normalized)?, d_parts))
                })?
            }
            Saved::Input { input, statistics } => with_number!(d_output.dtype(), "layer_norm", T => {
                backward_on_device::<T>(&input, &statistics, modulation.as_ref(), &d_output)
            })?,
        };
        if let (Some(modulation), Some(d_parts)) = (modulation, d_parts) {
            sink.input(modulation.slot, d_parts)?;
        }
        sink.input(slot, dx)
    }
}

fn backward_on_device<T: DeviceFloat>(
    x: &Tensor,
    statistics: &Tensor,
    modulation: Option<&Kept>,
    d_output: &Tensor,
) -> Result<(Tensor, Option<Tensor>)> {
    let input = input::<T>(x, modulation)?;
    let (dy, statistics) = (d_output.buffer::<T>()?, statistics.buffer::<f32>()?);
    let device = dy.device();
    let dx = Tensor::written(device, x.shape(), |dx| cuda::layer_norm_backward(dx, dy, &input, statistics))?;
    let Some(Kept { parts, scale, shift, levels, .. }) = modulation else { return Ok((dx, None)) };
    let [batch, tokens, channels] = three_dims("layer_norm", "x", x)?;
    let mut by_sample = device.uninitialized::<f32>(batch * levels.count() * 2 * channels)?;
    let starts = levels.on(device)?.starts();
    modulation::cuda::modulation_backward(
        &mut by_sample,
        dy,
        input.x,
        statistics,
        starts,
        [batch, tokens, channels],
    )?;
    let mut d_parts = device.zeros::<f32>(parts.len())?;
    // Per-sample parts are not summed over samples.
    let summed = own_samples(parts).map_or(batch, |_| 1);
    add_modulation(&mut d_parts, &by_sample, [summed, channels], *scale, Some(*shift))?;
    Ok((dx, Some(Tensor::from_buffer(parts.shape(), d_parts)?)))
}
