//! The same layers on a device, of several pictures at once.

use super::{Attention, Decoder, Encoder, Head, Level, Middle, Residual, attention_scale};
use crate::{
    encode::{
        convolution::Convolution,
        vqvae::normalisation::{EPSILON, GROUPS, GroupNorm},
    },
    engine::{
        Tensor,
        cuda::{Buffer, Device, DeviceFloat, Operand, Products, Target},
        ops::{
            convolution::cuda::{Filters, Maps, Window, convolve},
            group_norm::cuda as group_norm,
            softmax::cuda::{Scores, softmax},
        },
    },
    error::Result,
};

/// Maps of all pictures that are worked on.
struct Stream<T: DeviceFloat> {
    samples: usize,
    side: usize,
    channels: usize,
    /// `[samples, side, side, channels]`, or with `planes` `[samples, channels, side, side]`.
    values: Buffer<T>,
    planes: bool,
}

impl<T: DeviceFloat> Stream<T> {
    fn new(device: &Device, samples: usize, side: usize, channels: usize) -> Result<Self> {
        let values = device.uninitialised(samples * side * side * channels)?;
        Ok(Self { samples, side, channels, values, planes: false })
    }

    fn device(&self) -> &Device {
        self.values.device()
    }

    fn maps(&self) -> Maps<'_, T> {
        Maps { values: &self.values, side: self.side, channels: self.channels, planes: self.planes }
    }
}

#[derive(Debug)]
enum Weight<T: DeviceFloat> {
    /// Of 3×3.
    Square(Filters<T>),
    /// Of one pixel, `[O, I]`.
    Point(Buffer<T>),
}

/// A convolution on a device, computed in `T` with sums in f32.
#[derive(Debug)]
pub(in crate::encode::vqvae) struct PlacedConvolution<T: DeviceFloat> {
    inputs: usize,
    outputs: usize,
    weight: Weight<T>,
    bias: Buffer<T>,
    /// The same for results in f32.
    wide_bias: Buffer<f32>,
}

impl<T: DeviceFloat> PlacedConvolution<T> {
    fn new(convolution: &Convolution, device: &Device) -> Result<Self> {
        let (inputs, outputs) = (convolution.inputs(), convolution.outputs());
        let [weight, bias] = [convolution.weight(), convolution.bias()].map(|values| -> Result<Tensor> {
            Tensor::new(&[values.len()], values.to_vec())?.cast(T::DTYPE)
        });
        let (weight, bias) = (weight?, bias?);
        let weight = match convolution.size() {
            [1, 1] => Weight::Point(device.upload(weight.as_slice::<T>()?)?),
            _ => Weight::Square(Filters::new(device, weight.as_slice::<T>()?, inputs, outputs)?),
        };
        let bias = device.upload(bias.as_slice::<T>()?)?;
        Ok(Self { inputs, outputs, weight, bias, wide_bias: device.upload(convolution.bias())? })
    }

    /// `y = conv(x) + bias`, or `y += conv(x) + bias` with `add`.
    fn run<O: DeviceFloat>(
        &self,
        y: &mut Buffer<O>,
        x: &Stream<T>,
        window: Window,
        bias: &Buffer<O>,
        add: bool,
    ) -> Result<()> {
        match &self.weight {
            Weight::Square(filters) => convolve(y, &x.maps(), filters, bias, window, add),
            Weight::Point(weight) => {
                let products = Products {
                    sizes: [x.samples * x.side * x.side, self.outputs, self.inputs],
                    batch: 1,
                    a: Operand::of(&x.values, self.inputs),
                    b: Operand::of(weight, self.inputs).transposed(),
                    bias: Some(bias),
                    alpha: 1.0,
                    beta: if add { 1.0 } else { 0.0 },
                };
                let target = Target { buffer: y, first: 0, row: self.outputs, step: 0 };
                x.device().products(target, &products)
            }
        }
    }

    fn apply(&self, x: &Stream<T>, window: Window) -> Result<Stream<T>> {
        let mut y = Stream::new(x.device(), x.samples, window.side(x.side), self.outputs)?;
        self.run(&mut y.values, x, window, &self.bias, false)?;
        Ok(y)
    }

    /// `y += conv(x) + bias`.
    fn add_to(&self, y: &mut Stream<T>, x: &Stream<T>) -> Result<()> {
        self.run(&mut y.values, x, Window::SAME, &self.bias, true)
    }

    /// The result in f32, for what leaves the networks.
    fn apply_wide(&self, x: &Stream<T>) -> Result<Buffer<f32>> {
        let mut y = x.device().uninitialised(x.samples * x.side * x.side * self.outputs)?;
        self.run(&mut y, x, Window::SAME, &self.wide_bias, false)?;
        Ok(y)
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
    fn run<T: DeviceFloat>(&self, x: &Stream<T>, silu: bool) -> Result<Stream<T>> {
        let mut y = Stream::new(x.device(), x.samples, x.side, x.channels)?;
        let norm = group_norm::GroupNorm {
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

type Layer<T> = PlacedConvolution<T>;

impl Residual {
    fn placed<T: DeviceFloat>(&self, device: &Device) -> Result<Residual<Layer<T>, PlacedNorm>> {
        let Self { norms: [norm, second_norm], convolutions: [first, second], shortcut } = self;
        Ok(Residual {
            norms: [PlacedNorm::new(norm, device)?, PlacedNorm::new(second_norm, device)?],
            convolutions: [Layer::new(first, device)?, Layer::new(second, device)?],
            shortcut: shortcut.as_ref().map(|shortcut| Layer::new(shortcut, device)).transpose()?,
        })
    }
}

impl<T: DeviceFloat> Residual<Layer<T>, PlacedNorm> {
    fn run(&self, x: Stream<T>) -> Result<Stream<T>> {
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
    fn placed<T: DeviceFloat>(&self, device: &Device) -> Result<Attention<Layer<T>, PlacedNorm>> {
        Ok(Attention {
            norm: PlacedNorm::new(&self.norm, device)?,
            query_key_value: Layer::new(&self.query_key_value, device)?,
            projection: Layer::new(&self.projection, device)?,
        })
    }
}

impl<T: DeviceFloat> Attention<Layer<T>, PlacedNorm> {
    fn run(&self, mut x: Stream<T>) -> Result<Stream<T>> {
        let (device, samples, channels) = (x.device().clone(), x.samples, x.channels);
        let (pixels, wide) = (x.side * x.side, 3 * channels);
        let parts = self.query_key_value.apply(&self.norm.run(&x, false)?, Window::SAME)?;
        let part = |at: usize| Operand {
            first: at * channels,
            step: pixels * wide,
            ..Operand::of(&parts.values, wide)
        };
        let mut scores = device.uninitialised::<f32>(samples * pixels * pixels)?;
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
        let mut weights = device.uninitialised::<T>(scores.len())?;
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
    fn placed<T: DeviceFloat>(&self, device: &Device) -> Result<Level<Layer<T>, PlacedNorm>> {
        let blocks = self.blocks.iter().map(|(block, attention)| {
            let attention = attention.as_ref().map(|attention| attention.placed(device)).transpose()?;
            Ok((block.placed(device)?, attention))
        });
        Ok(Level {
            blocks: blocks.collect::<Result<_>>()?,
            resize: self.resize.as_ref().map(|resize| Layer::new(resize, device)).transpose()?,
        })
    }
}

impl<T: DeviceFloat> Level<Layer<T>, PlacedNorm> {
    fn run(&self, mut x: Stream<T>, resizing: Window) -> Result<Stream<T>> {
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
    fn placed<T: DeviceFloat>(&self, device: &Device) -> Result<Middle<Layer<T>, PlacedNorm>> {
        Ok(Middle {
            before: self.before.placed(device)?,
            attention: self.attention.as_ref().map(|attention| attention.placed(device)).transpose()?,
            after: self.after.placed(device)?,
        })
    }
}

impl<T: DeviceFloat> Middle<Layer<T>, PlacedNorm> {
    fn run(&self, x: Stream<T>) -> Result<Stream<T>> {
        let mut x = self.before.run(x)?;
        if let Some(attention) = &self.attention {
            x = attention.run(x)?;
        }
        self.after.run(x)
    }
}

impl Head {
    fn placed<T: DeviceFloat>(&self, device: &Device) -> Result<Head<Layer<T>, PlacedNorm>> {
        Ok(Head {
            norm: PlacedNorm::new(&self.norm, device)?,
            convolution: Layer::new(&self.convolution, device)?,
        })
    }
}

impl Encoder {
    /// The same network on a device, activations in `T`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(in crate::encode::vqvae) fn placed<T: DeviceFloat>(
        &self,
        device: &Device,
    ) -> Result<Encoder<PlacedConvolution<T>, PlacedNorm>> {
        Ok(Encoder {
            first: Layer::new(&self.first, device)?,
            levels: self.levels.iter().map(|level| level.placed(device)).collect::<Result<_>>()?,
            middle: self.middle.placed(device)?,
            head: self.head.placed(device)?,
            last: Layer::new(&self.last, device)?,
        })
    }
}

impl<T: DeviceFloat> Encoder<PlacedConvolution<T>, PlacedNorm> {
    /// Pictures `[B, 3, side, side]` to features `[B, H · H, Cvae]`, not checked.
    ///
    /// # Errors
    /// If the sizes do not fit, there is not enough memory, or the device fails.
    pub(in crate::encode::vqvae) fn run(&self, pictures: &Buffer<T>, side: usize) -> Result<Buffer<f32>> {
        let samples = pictures.len() / (3 * side * side);
        let x = Stream { samples, side, channels: 3, values: pictures.try_clone()?, planes: true };
        let mut x = self.first.apply(&x, Window::SAME)?;
        for level in &self.levels {
            x = level.run(x, Window::HALVING)?;
        }
        let x = self.middle.run(x)?;
        let x = self.head.convolution.apply(&self.head.norm.run(&x, true)?, Window::SAME)?;
        self.last.apply_wide(&x)
    }
}

impl Decoder {
    /// The same network on a device, activations in `T`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(in crate::encode::vqvae) fn placed<T: DeviceFloat>(
        &self,
        device: &Device,
    ) -> Result<Decoder<PlacedConvolution<T>, PlacedNorm>> {
        Ok(Decoder {
            before: Layer::new(&self.before, device)?,
            first: Layer::new(&self.first, device)?,
            middle: self.middle.placed(device)?,
            levels: self.levels.iter().map(|level| level.placed(device)).collect::<Result<_>>()?,
            head: self.head.placed(device)?,
        })
    }
}

impl<T: DeviceFloat> Decoder<PlacedConvolution<T>, PlacedNorm> {
    /// Channels of the features, `Cvae`.
    pub(in crate::encode::vqvae) fn channels(&self) -> usize {
        self.before.inputs
    }

    /// Features `[B, side², Cvae]` to pictures `[B, R, R, 3]`, not clamped.
    ///
    /// # Errors
    /// If the sizes do not fit, there is not enough memory, or the device fails.
    pub(in crate::encode::vqvae) fn run(&self, features: &Buffer<T>, side: usize) -> Result<Buffer<f32>> {
        let channels = self.channels();
        let samples = features.len() / (side * side * channels);
        let x = Stream { samples, side, channels, values: features.try_clone()?, planes: false };
        let x = self.first.apply(&self.before.apply(&x, Window::SAME)?, Window::SAME)?;
        let mut x = self.middle.run(x)?;
        for level in &self.levels {
            x = level.run(x, Window::DOUBLING)?;
        }
        self.head.convolution.apply_wide(&self.head.norm.run(&x, true)?)
    }
}
