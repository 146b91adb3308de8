//! The VQ-VAE's layers on a device, for batches of images, in f32.

use half::{bf16, f16};

use super::{Attention, Decoder, Encoder, Head, Level, Middle, Residual, attention_scale};
use crate::{
    encode::{
        convolution::Convolution,
        vqvae::group_norm::{EPSILON, GROUPS, GroupNorm},
    },
    engine::{
        cuda::{Buffer, Device, Operand, Products, Target},
        ops::{
            convolution::cuda::{DeviceFilters, Maps, Window, convolve},
            group_norm::cuda as group_norm,
            softmax::cuda::{Scores, softmax},
        },
    },
    error::Result,
};

/// The maps of a batch.
struct Stream {
    samples: usize,
    side: usize,
    channels: usize,
    /// `[samples, side, side, channels]`, or with `planes` `[samples, channels, side, side]`.
    values: Buffer<f32>,
    planes: bool,
}

impl Stream {
    fn new(device: &Device, samples: usize, side: usize, channels: usize) -> Result<Self> {
        let values = device.uninitialized(samples * side * side * channels)?;
        Ok(Self { samples, side, channels, values, planes: false })
    }

    fn device(&self) -> &Device {
        self.values.device()
    }

    fn maps(&self) -> Maps<'_> {
        Maps { values: &self.values, side: self.side, channels: self.channels, planes: self.planes }
    }
}

/// The value range of a convolution's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputRange {
    /// Output of a norm: about 1; in a map with `n` values per group at most `√n` times the norm's scale.
    Normed,
    /// Unbounded: the residual stream of trained networks exceeds the range of f16.
    Any,
}

#[derive(Debug)]
enum Weight {
    Normed(DeviceFilters<f16>),
    Any(DeviceFilters<bf16>),
}

/// A convolution on a device.
#[derive(Debug)]
pub(in crate::encode::vqvae) struct PlacedConvolution {
    inputs: usize,
    outputs: usize,
    /// Whether the filters are 1×1, whatever the layer's window.
    point: bool,
    weight: Weight,
    bias: Buffer<f32>,
}

impl PlacedConvolution {
    fn new(convolution: &Convolution, device: &Device, takes: InputRange) -> Result<Self> {
        let (inputs, outputs) = (convolution.inputs(), convolution.outputs());
        let [rows, columns] = convolution.size();
        let (filters, order) = convolution.filters();
        let sizes = [rows * columns, inputs, outputs];
        let weight = match takes {
            InputRange::Normed => Weight::Normed(DeviceFilters::new(device, &filters, order, sizes)?),
            InputRange::Any => Weight::Any(DeviceFilters::new(device, &filters, order, sizes)?),
        };
        let bias = device.upload(convolution.bias())?;
        Ok(Self { inputs, outputs, point: rows * columns == 1, weight, bias })
    }

    /// `y = conv(x) + bias`, or `y += conv(x) + bias` with `add`.
    fn run(&self, y: &mut Buffer<f32>, x: &Stream, window: Window, add: bool) -> Result<()> {
        let window = if self.point { Window::POINT } else { window };
        match &self.weight {
            Weight::Normed(filters) => convolve(y, &x.maps(), filters, &self.bias, window, add),
            Weight::Any(filters) => convolve(y, &x.maps(), filters, &self.bias, window, add),
        }
    }

    fn apply(&self, x: &Stream, window: Window) -> Result<Stream> {
        let mut y = Stream::new(x.device(), x.samples, window.side(x.side), self.outputs)?;
        self.run(&mut y.values, x, window, false)?;
        Ok(y)
    }

    /// `y += conv(x) + bias`.
    fn add_to(&self, y: &mut Stream, x: &Stream) -> Result<()> {
        self.run(&mut y.values, x, Window::SAME, true)
    }
}

/// A group norm on a device.
#[derive(Debug)]
pub(in crate::encode::vqvae) struct PlacedNorm {
    scale: Buffer<f32>,
    shift: Buffer<f32>,
}

impl PlacedNorm {
    fn new(norm: &GroupNorm, device: &Device) -> Result<Self> {
        let [scale, shift] = norm.scale_and_shift();
        Ok(Self { scale: device.upload(scale)?, shift: device.upload(shift)? })
    }

    #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
    fn run(&self, x: &Stream, silu: bool) -> Result<Stream> {
        let mut y = Stream::new(x.device(), x.samples, x.side, x.channels)?;
        let norm = group_norm::DeviceGroupNorm {
            groups: GROUPS,
            scale: &self.scale,
            shift: &self.shift,
            epsilon: EPSILON as f32,
            silu,
        };
        group_norm::group_norm(&mut y.values, &x.values, x.samples, &norm)?;
        Ok(y)
    }
}

type Layer = PlacedConvolution;

impl Residual {
    fn placed(&self, device: &Device) -> Result<Residual<Layer, PlacedNorm>> {
        let Self { norms: [norm, second_norm], convolutions: [first, second], shortcut } = self;
        Ok(Residual {
            norms: [PlacedNorm::new(norm, device)?, PlacedNorm::new(second_norm, device)?],
            convolutions: [
                Layer::new(first, device, InputRange::Normed)?,
                Layer::new(second, device, InputRange::Normed)?,
            ],
            shortcut: shortcut
                .as_ref()
                .map(|shortcut| Layer::new(shortcut, device, InputRange::Any))
                .transpose()?,
        })
    }
}

impl Residual<Layer, PlacedNorm> {
    fn run(&self, x: Stream) -> Result<Stream> {
        let hidden = self.convolutions[0].apply(&self.norms[0].run(&x, true)?, Window::SAME)?;
        let hidden = self.norms[1].run(&hidden, true)?;
        let mut y = match &self.shortcut {
            Some(shortcut) => shortcut.apply(&x, Window::SAME)?,
            None => x,
        };
        self.convolutions[1].add_to(&mut y, &hidden)?;
        Ok(y)
    }
}

impl Attention {
    fn placed(&self, device: &Device) -> Result<Attention<Layer, PlacedNorm>> {
        Ok(Attention {
            norm: PlacedNorm::new(&self.norm, device)?,
            query_key_value: Layer::new(&self.query_key_value, device, InputRange::Normed)?,
            projection: Layer::new(&self.projection, device, InputRange::Any)?,
        })
    }
}

impl Attention<Layer, PlacedNorm> {
    fn run(&self, mut x: Stream) -> Result<Stream> {
        let (device, samples, channels) = (x.device().clone(), x.samples, x.channels);
        let (pixels, wide) = (x.side * x.side, 3 * channels);
        let parts = self.query_key_value.apply(&self.norm.run(&x, false)?, Window::SAME)?;
        let part = |at: usize| Operand {
            first: at * channels,
            step: pixels * wide,
            ..Operand::of(&parts.values, wide)
        };
        let mut scores = device.uninitialized::<f32>(samples * pixels * pixels)?;
        let products = Products {
            sizes: [pixels, pixels, channels],
            batch: samples,
            a: part(0),
            b: part(1).transposed(),
            bias: None,
            alpha: 1.0,
            beta: 0.0,
        };
        let target = Target { buffer: &mut scores, first: 0, row: pixels, step: pixels * pixels };
        device.products(target, &products)?;
        let mut weights = device.uninitialized::<f32>(scores.len())?;
        let scores = Scores {
            products: &scores,
            sizes: [samples, 1, pixels, pixels],
            row: pixels,
            scale: attention_scale(channels),
            bias: None,
            mask: None,
            causal: false,
        };
        softmax(&mut weights, &scores)?;
        let mut mixed = Stream::new(&device, samples, x.side, channels)?;
        let products = Products {
            sizes: [pixels, channels, pixels],
            batch: samples,
            a: Operand { step: pixels * pixels, ..Operand::of(&weights, pixels) },
            b: part(2),
            bias: None,
            alpha: 1.0,
            beta: 0.0,
        };
        let target = Target { buffer: &mut mixed.values, first: 0, row: channels, step: pixels * channels };
        device.products(target, &products)?;
        self.projection.add_to(&mut x, &mixed)?;
        Ok(x)
    }
}

impl Level {
    fn placed(&self, device: &Device) -> Result<Level<Layer, PlacedNorm>> {
        let blocks = self.blocks.iter().map(|(block, attention)| {
            let attention = attention.as_ref().map(|attention| attention.placed(device)).transpose()?;
            Ok((block.placed(device)?, attention))
        });
        Ok(Level {
            blocks: blocks.collect::<Result<_>>()?,
            resize: self
                .resize
                .as_ref()
                .map(|resize| Layer::new(resize, device, InputRange::Any))
                .transpose()?,
        })
    }
}

impl Level<Layer, PlacedNorm> {
    fn run(&self, mut x: Stream, resizing: Window) -> Result<Stream> {
        for (block, attention) in &self.blocks {
            x = block.run(x)?;
            if let Some(attention) = attention {
                x = attention.run(x)?;
            }
        }
        match &self.resize {
            Some(resize) => resize.apply(&x, resizing),
            None => Ok(x),
        }
    }
}

impl Middle {
    fn placed(&self, device: &Device) -> Result<Middle<Layer, PlacedNorm>> {
        Ok(Middle {
            before: self.before.placed(device)?,
            attention: self.attention.as_ref().map(|attention| attention.placed(device)).transpose()?,
            after: self.after.placed(device)?,
        })
    }
}

impl Middle<Layer, PlacedNorm> {
    fn run(&self, x: Stream) -> Result<Stream> {
        let mut x = self.before.run(x)?;
        if let Some(attention) = &self.attention {
            x = attention.run(x)?;
        }
        self.after.run(x)
    }
}

impl Head {
    fn placed(&self, device: &Device) -> Result<Head<Layer, PlacedNorm>> {
        Ok(Head {
            norm: PlacedNorm::new(&self.norm, device)?,
            convolution: Layer::new(&self.convolution, device, InputRange::Normed)?,
        })
    }
}

impl Encoder {
    /// Copies the encoder to a device.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(in crate::encode::vqvae) fn placed(
        &self,
        device: &Device,
    ) -> Result<Encoder<PlacedConvolution, PlacedNorm>> {
        Ok(Encoder {
            first: Layer::new(&self.first, device, InputRange::Any)?,
            levels: self.levels.iter().map(|level| level.placed(device)).collect::<Result<_>>()?,
            middle: self.middle.placed(device)?,
            head: self.head.placed(device)?,
            last: Layer::new(&self.last, device, InputRange::Any)?,
        })
    }
}

impl Encoder<PlacedConvolution, PlacedNorm> {
    /// Images `[B, 3, side, side]` to features `[B, H · H, Cvae]`, unchecked.
    ///
    /// # Errors
    /// If the sizes do not match, there is not enough memory, or the device fails.
    pub(in crate::encode::vqvae) fn run(&self, images: &Buffer<f32>, side: usize) -> Result<Buffer<f32>> {
        let samples = images.len() / (3 * side * side);
        let x = Stream { samples, side, channels: 3, values: images.try_clone()?, planes: true };
        let mut x = self.first.apply(&x, Window::SAME)?;
        for level in &self.levels {
            x = level.run(x, Window::HALVING)?;
        }
        let x = self.middle.run(x)?;
        let x = self.head.convolution.apply(&self.head.norm.run(&x, true)?, Window::SAME)?;
        Ok(self.last.apply(&x, Window::SAME)?.values)
    }
}

impl Decoder {
    /// Copies the decoder to a device.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(in crate::encode::vqvae) fn placed(
        &self,
        device: &Device,
    ) -> Result<Decoder<PlacedConvolution, PlacedNorm>> {
        Ok(Decoder {
            before: Layer::new(&self.before, device, InputRange::Any)?,
            first: Layer::new(&self.first, device, InputRange::Any)?,
            middle: self.middle.placed(device)?,
            levels: self.levels.iter().map(|level| level.placed(device)).collect::<Result<_>>()?,
            head: self.head.placed(device)?,
        })
    }
}

impl Decoder<PlacedConvolution, PlacedNorm> {
    /// Channels of the features, `Cvae`.
    pub(in crate::encode::vqvae) fn channels(&self) -> usize {
        self.before.inputs
    }

    /// Features `[B, side², Cvae]` to images `[B, R, R, 3]`, not clamped.
    ///
    /// # Errors
    /// If the sizes do not match, there is not enough memory, or the device fails.
    pub(in crate::encode::vqvae) fn run(&self, features: &Buffer<f32>, side: usize) -> Result<Buffer<f32>> {
        let channels = self.channels();
        let samples = features.len() / (side * side * channels);
        let x = Stream { samples, side, channels, values: features.try_clone()?, planes: false };
        let x = self.first.apply(&self.before.apply(&x, Window::SAME)?, Window::SAME)?;
        let mut x = self.middle.run(x)?;
        for level in &self.levels {
            x = level.run(x, Window::DOUBLING)?;
        }
        Ok(self.head.convolution.apply(&self.head.norm.run(&x, true)?, Window::SAME)?.values)
    }
}
