//! Encoder and decoder of the upstream VQ-VAE (`models/basic_vae.py`), one image at a time, channels last.
//!
//! Every size comes from the weights: channels and levels from the shapes, attention from whether its tensors exist.
//! The layers are generic over convolutions `C` and norms `N`: those of this module, or those of `device`.

mod device;

use std::collections::BTreeSet;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::group_norm::GroupNorm;
use crate::{
    encode::{convolution::Convolution, saved::damaged},
    engine::{
        Tensor,
        matmul::{Matrix, product},
        ops::{
            convolution::cpu::{Border, Bordered, Into, Map},
            softmax::cpu::softmax_of_row,
        },
    },
    error::{Error, Result},
    files::hexadecimal,
    weights::{StoredFloats, Weights},
};

pub(super) use device::{PlacedConvolution, PlacedNorm};

/// Values that one task checks.
const CHECKED: usize = 1 << 16;

/// Workspace of one image, reused from image to image.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// The residual stream.
    stream: Map,
    /// A block's hidden map, and the next stream where the number of channels changes.
    hidden: Map,
    normed: Map,
    bordered: Bordered,
}

/// Reads layers by name, and records which tensors were read.
pub(super) struct Reader<'a> {
    weights: &'a Weights,
    read: BTreeSet<String>,
    hash: Sha256,
}

impl<'a> Reader<'a> {
    /// `settings` is hashed into the fingerprint.
    pub(super) fn new(weights: &'a Weights, settings: &str) -> Self {
        Self { weights, read: BTreeSet::new(), hash: Sha256::new_with_prefix(settings) }
    }

    /// The names read, and the SHA-256 over settings, names, shapes and values in reading order, which does not depend
    /// on the file format.
    pub(super) fn into_account(self) -> (BTreeSet<String>, String) {
        (self.read, hexadecimal(&self.hash.finalize()))
    }

    /// Reads a tensor as f32.
    pub(super) fn tensor(&mut self, name: String) -> Result<Tensor> {
        let floats = self.floats(name)?;
        Tensor::new(floats.shape(), floats.values().into_owned())
    }

    /// Checks a tensor without keeping its values.
    fn floats(&mut self, name: String) -> Result<StoredFloats> {
        let floats = self.weights.floats(&name)?;
        let values = floats.values();
        self.hash.update(format!("{name}{:?}", floats.shape()));
        // The digest is one sequential chain, the slowest part of opening the weights.
        let (hash, looked_at) = (&mut self.hash, values.par_chunks(CHECKED));
        let (finite, ()) = rayon::join(
            || looked_at.all(|values| values.iter().fold(true, |finite, value| finite & value.is_finite())),
            || hash.update(bytemuck::cast_slice::<f32, u8>(&values)),
        );
        if !finite {
            return Err(damaged(self.weights.path(), format!("{name} is not finite (NaN or Inf)")));
        }
        drop(values);
        self.read.insert(name);
        Ok(floats)
    }

    fn has(&self, name: &str) -> bool {
        self.weights.contains(&format!("{name}.weight"))
    }

    pub(super) fn convolution(&mut self, name: &str) -> Result<Convolution> {
        let weight = self.floats(format!("{name}.weight"))?;
        let bias = self.tensor(format!("{name}.bias"))?;
        if !matches!(*weight.shape(), [_, _, 3, 3] | [_, _, 1, 1]) {
            return Err(Error::shape(
                "convolution",
                format!(
                    "{name} should have filters [O, I, 3, 3] or [O, I, 1, 1], but has {:?}",
                    weight.shape()
                ),
            ));
        }
        Convolution::in_file(name, weight, &bias)
    }

    fn norm(&mut self, name: &str) -> Result<GroupNorm> {
        let scale = self.tensor(format!("{name}.weight"))?;
        let shift = self.tensor(format!("{name}.bias"))?;
        GroupNorm::new(name, &scale, &shift)
    }

    /// Counts the consecutive `name.0`, `name.1`, … that have a tensor `name.N.probe.weight`.
    fn count(&self, name: &str, probe: &str) -> usize {
        (0..).take_while(|at| self.has(&format!("{name}.{at}.{probe}"))).count()
    }
}

/// Rejects a layer whose input channels do not match.
fn expect(name: &str, takes: usize, given: usize) -> Result<()> {
    if takes == given {
        return Ok(());
    }
    Err(Error::shape("VQ-VAE", format!("{name} takes {takes} channels, but its input has {given}")))
}

/// Two convolutions with a shortcut (upstream: `ResnetBlock`).
#[derive(Debug)]
struct Residual<C = Convolution, N = GroupNorm> {
    norms: [N; 2],
    convolutions: [C; 2],
    shortcut: Option<C>,
}

impl Residual {
    fn read(reader: &mut Reader<'_>, name: &str, channels: &mut usize) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let block = Self {
            norms: [reader.norm(&part("norm1"))?, reader.norm(&part("norm2"))?],
            convolutions: [reader.convolution(&part("conv1"))?, reader.convolution(&part("conv2"))?],
            shortcut: if reader.has(&part("nin_shortcut")) {
                Some(reader.convolution(&part("nin_shortcut"))?)
            } else {
                None
            },
        };
        let [first, second] = &block.convolutions;
        expect(&part("norm1"), block.norms[0].channels(), *channels)?;
        expect(&part("conv1"), first.inputs(), *channels)?;
        expect(&part("norm2"), block.norms[1].channels(), first.outputs())?;
        expect(&part("conv2"), second.inputs(), first.outputs())?;
        let around = match &block.shortcut {
            Some(shortcut) => {
                expect(&part("nin_shortcut"), shortcut.inputs(), *channels)?;
                shortcut.outputs()
            }
            None => *channels,
        };
        expect("the sum after the block", second.outputs(), around)?;
        let squares = [first, second].iter().all(|convolution| convolution.size() == [3, 3]);
        if !squares || block.shortcut.as_ref().is_some_and(|shortcut| shortcut.size() != [1, 1]) {
            return Err(Error::shape("VQ-VAE", format!("{name} has filters that are not 3×3")));
        }
        *channels = second.outputs();
        Ok(block)
    }

    fn apply(&self, work: &mut Workspace) {
        let Workspace { stream, hidden, normed, bordered } = work;
        self.norms[0].apply_silu(stream, bordered);
        self.convolutions[0].apply(bordered, hidden, Into::Overwrite);
        self.norms[1].apply_silu(hidden, bordered);
        if let Some(shortcut) = &self.shortcut {
            normed.resize(stream.side, shortcut.outputs());
            shortcut.pointwise(&stream.values, &mut normed.values);
            std::mem::swap(stream, normed);
        }
        self.convolutions[1].apply(bordered, stream, Into::Add);
    }
}

/// Single-head self-attention over pixels (upstream: `AttnBlock`).
#[derive(Debug)]
struct Attention<C = Convolution, N = GroupNorm> {
    norm: N,
    query_key_value: C,
    projection: C,
}

impl Attention {
    fn read(reader: &mut Reader<'_>, name: &str, channels: usize) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let attention = Self {
            norm: reader.norm(&part("norm"))?,
            query_key_value: reader.convolution(&part("qkv"))?,
            projection: reader.convolution(&part("proj_out"))?,
        };
        let Self { norm, query_key_value, projection } = &attention;
        expect(&part("norm"), norm.channels(), channels)?;
        expect(&part("qkv"), query_key_value.inputs(), channels)?;
        expect(&part("proj_out"), projection.inputs(), channels)?;
        expect("the sum after the attention", projection.outputs(), channels)?;
        if query_key_value.outputs() != 3 * channels
            || query_key_value.size() != [1, 1]
            || projection.size() != [1, 1]
        {
            return Err(Error::shape(
                "VQ-VAE",
                format!("{name}.qkv should have filters [{}, {channels}, 1, 1]", 3 * channels),
            ));
        }
        Ok(attention)
    }

    fn apply(&self, work: &mut Workspace) {
        let Workspace { stream, hidden, normed, .. } = work;
        let (pixels, channels) = (stream.side * stream.side, stream.channels);
        self.norm.apply(stream, normed);
        hidden.resize(stream.side, 3 * channels);
        self.query_key_value.pointwise(&normed.values, &mut hidden.values);
        let part =
            |at: usize| Matrix::strided(&hidden.values[at * channels..], pixels, channels, 3 * channels);
        let mut scores = vec![0.0; pixels * pixels];
        product(&mut scores, pixels, part(0), part(1).transposed(), false);
        let scale = attention_scale(channels);
        scores.chunks_exact_mut(pixels).for_each(|row| softmax_of_row(row, scale));
        product(&mut normed.values, channels, Matrix::new(&scores, pixels, pixels), part(2), false);
        let mut projected = vec![0.0; stream.values.len()];
        self.projection.pointwise(&normed.values, &mut projected);
        stream.values.iter_mut().zip(&projected).for_each(|(stream, value)| *stream += value);
    }
}

/// The attention scale for this many channels.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a scale below 1")]
fn attention_scale(channels: usize) -> f32 {
    (channels as f64).powf(-0.5) as f32
}

/// A block, and the optional attention after it.
type Block<C, N> = (Residual<C, N>, Option<Attention<C, N>>);

/// The blocks of one resolution.
#[derive(Debug)]
struct Level<C = Convolution, N = GroupNorm> {
    blocks: Vec<Block<C, N>>,
    /// Downsamples in the encoder, upsamples in the decoder.
    resize: Option<C>,
}

impl Level {
    fn read(reader: &mut Reader<'_>, name: &str, resize: &str, channels: &mut usize) -> Result<Self> {
        let mut blocks = Vec::new();
        for at in 0..reader.count(&format!("{name}.block"), "norm1") {
            let block = Residual::read(reader, &format!("{name}.block.{at}"), channels)?;
            let attention = format!("{name}.attn.{at}");
            let attention = if reader.has(&format!("{attention}.norm")) {
                Some(Attention::read(reader, &attention, *channels)?)
            } else {
                None
            };
            blocks.push((block, attention));
        }
        let resize = format!("{name}.{resize}.conv");
        let resize = if reader.has(&resize) { Some(square(reader, &resize, channels)?) } else { None };
        Ok(Self { blocks, resize })
    }

    fn apply(&self, work: &mut Workspace) {
        for (block, attention) in &self.blocks {
            block.apply(work);
            if let Some(attention) = attention {
                attention.apply(work);
            }
        }
    }
}

/// A 3×3 convolution; updates `channels` from its input to its output channels.
fn square(reader: &mut Reader<'_>, name: &str, channels: &mut usize) -> Result<Convolution> {
    let convolution = reader.convolution(name)?;
    expect(name, convolution.inputs(), *channels)?;
    if convolution.size() != [3, 3] {
        return Err(Error::shape("VQ-VAE", format!("{name} should have filters of 3×3")));
    }
    *channels = convolution.outputs();
    Ok(convolution)
}

/// The blocks at the lowest resolution of either network.
#[derive(Debug)]
struct Middle<C = Convolution, N = GroupNorm> {
    before: Residual<C, N>,
    attention: Option<Attention<C, N>>,
    after: Residual<C, N>,
}

impl Middle {
    fn read(reader: &mut Reader<'_>, name: &str, channels: &mut usize) -> Result<Self> {
        let before = Residual::read(reader, &format!("{name}.block_1"), channels)?;
        let attention = format!("{name}.attn_1");
        let attention = if reader.has(&format!("{attention}.norm")) {
            Some(Attention::read(reader, &attention, *channels)?)
        } else {
            None
        };
        let after = Residual::read(reader, &format!("{name}.block_2"), channels)?;
        Ok(Self { before, attention, after })
    }

    fn apply(&self, work: &mut Workspace) {
        self.before.apply(work);
        if let Some(attention) = &self.attention {
            attention.apply(work);
        }
        self.after.apply(work);
    }
}

/// The output layers of either network: norm, SiLU, convolution.
#[derive(Debug)]
struct Head<C = Convolution, N = GroupNorm> {
    norm: N,
    convolution: C,
}

impl Head {
    fn read(reader: &mut Reader<'_>, name: &str, channels: &mut usize) -> Result<Self> {
        let norm = reader.norm(&format!("{name}.norm_out"))?;
        expect("norm_out", norm.channels(), *channels)?;
        Ok(Self { norm, convolution: square(reader, &format!("{name}.conv_out"), channels)? })
    }

    fn apply(&self, work: &mut Workspace) {
        self.norm.apply_silu(&work.stream, &mut work.bordered);
        self.convolution.apply(&work.bordered, &mut work.hidden, Into::Overwrite);
        std::mem::swap(&mut work.stream, &mut work.hidden);
    }
}

/// The network from images to features.
#[derive(Debug)]
pub(super) struct Encoder<C = Convolution, N = GroupNorm> {
    first: C,
    levels: Vec<Level<C, N>>,
    middle: Middle<C, N>,
    head: Head<C, N>,
    /// Upstream: `quant_conv`, 3×3 or 1×1.
    last: C,
}

impl Encoder {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let mut channels = 3;
        let first = square(reader, "encoder.conv_in", &mut channels)?;
        let levels = (0..reader.count("encoder.down", "block.0.norm1"))
            .map(|level| Level::read(reader, &format!("encoder.down.{level}"), "downsample", &mut channels))
            .collect::<Result<Vec<_>>>()?;
        if levels.is_empty() {
            return Err(Error::invalid(
                "there are no tensors encoder.down.0.block.0.… among the weights; these are not the weights of a VQ-VAE",
            ));
        }
        let middle = Middle::read(reader, "encoder.mid", &mut channels)?;
        let head = Head::read(reader, "encoder", &mut channels)?;
        let last = reader.convolution("quant_conv")?;
        expect("quant_conv", last.inputs(), channels)?;
        Ok(Self { first, levels, middle, head, last })
    }

    /// Downsampling factor of the side.
    pub(super) fn reduction(&self) -> usize {
        1 << self.levels.iter().filter(|level| level.resize.is_some()).count()
    }

    /// Channels of the features, `Cvae`.
    pub(super) fn channels(&self) -> usize {
        self.last.outputs()
    }

    /// An image `[3, R, R]` to features `[H · H, Cvae]`, where `H` is `R` over [`reduction`](Self::reduction).
    pub(super) fn apply(&self, image: &[f32], side: usize, work: &mut Workspace, features: &mut [f32]) {
        work.stream.resize(side, 3);
        for (pixel, values) in work.stream.values.chunks_exact_mut(3).enumerate() {
            for (channel, value) in values.iter_mut().enumerate() {
                *value = image[channel * side * side + pixel];
            }
        }
        start(&self.first, work);
        for level in &self.levels {
            level.apply(work);
            if let Some(resize) = &level.resize {
                work.bordered.copy_of(&work.stream, Border::ONE);
                resize.apply_halving(&work.bordered, &mut work.hidden);
                std::mem::swap(&mut work.stream, &mut work.hidden);
            }
        }
        self.middle.apply(work);
        self.head.apply(work);
        finish(&self.last, work);
        features.copy_from_slice(&work.stream.values);
    }
}

/// The network from features to images.
#[derive(Debug)]
pub(super) struct Decoder<C = Convolution, N = GroupNorm> {
    /// Upstream: `post_quant_conv`, 3×3 or 1×1.
    before: C,
    first: C,
    middle: Middle<C, N>,
    /// The lowest resolution first.
    levels: Vec<Level<C, N>>,
    head: Head<C, N>,
}

impl Decoder {
    pub(super) fn read(reader: &mut Reader<'_>, channels: usize) -> Result<Self> {
        let before = reader.convolution("post_quant_conv")?;
        expect("post_quant_conv", before.inputs(), channels)?;
        let mut channels = before.outputs();
        let first = square(reader, "decoder.conv_in", &mut channels)?;
        let middle = Middle::read(reader, "decoder.mid", &mut channels)?;
        let levels = (0..reader.count("decoder.up", "block.0.norm1"))
            .rev()
            .map(|level| Level::read(reader, &format!("decoder.up.{level}"), "upsample", &mut channels))
            .collect::<Result<Vec<_>>>()?;
        let head = Head::read(reader, "decoder", &mut channels)?;
        expect("an image", 3, channels)?;
        Ok(Self { before, first, middle, levels, head })
    }

    /// Upsampling factor of the side.
    pub(super) fn growth(&self) -> usize {
        1 << self.levels.iter().filter(|level| level.resize.is_some()).count()
    }

    /// Features `[side², Cvae]` to an image `[3, R, R]`, not clamped.
    pub(super) fn apply(&self, features: &[f32], side: usize, work: &mut Workspace, image: &mut [f32]) {
        work.stream.resize(side, self.before.inputs());
        work.stream.values.copy_from_slice(features);
        finish(&self.before, work);
        start(&self.first, work);
        self.middle.apply(work);
        for level in &self.levels {
            level.apply(work);
            if let Some(resize) = &level.resize {
                work.bordered.copy_of_doubled(&work.stream);
                resize.apply(&work.bordered, &mut work.hidden, Into::Overwrite);
                std::mem::swap(&mut work.stream, &mut work.hidden);
            }
        }
        self.head.apply(work);
        let plane = work.stream.side * work.stream.side;
        for (pixel, values) in work.stream.values.chunks_exact(3).enumerate() {
            for (channel, &value) in values.iter().enumerate() {
                image[channel * plane + pixel] = value;
            }
        }
    }
}

/// Applies the first convolution of a network; its output replaces the stream.
fn start(convolution: &Convolution, work: &mut Workspace) {
    work.bordered.copy_of(&work.stream, Border::ONE);
    convolution.apply(&work.bordered, &mut work.hidden, Into::Overwrite);
    std::mem::swap(&mut work.stream, &mut work.hidden);
}

/// Applies a convolution of either size; its output replaces the stream.
fn finish(convolution: &Convolution, work: &mut Workspace) {
    if convolution.size() == [3, 3] {
        return start(convolution, work);
    }
    work.hidden.resize(work.stream.side, convolution.outputs());
    convolution.pointwise(&work.stream.values, &mut work.hidden.values);
    std::mem::swap(&mut work.stream, &mut work.hidden);
}
