//! What the released text encoders and CLIP's tower of pictures are made of, forward only and in f32: linear layers, norms, activations and attention, on
//! the host or, where the rows are on a device, there. Rows are tokens, `[B·T, channels]`.

mod device;
mod host;

use crate::{
    engine::{
        Tensor,
        cuda::Device,
        ops::{activation::Activation, last_dim},
    },
    error::Result,
};

/// `y = x · wᵀ`, with a bias or without.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[O, I]`.
    pub(crate) weight: Tensor,
    /// `[O]`.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// Rows `[R, I]` to rows `[R, O]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let [outputs, inputs] = [self.weight.dim(0), self.weight.dim(1)];
        let shape = [x.len() / inputs.max(1), outputs];
        match x.device() {
            None => Tensor::new(&shape, host::linear(self, x.as_slice()?, inputs, outputs)?),
            Some(device) => Tensor::written(device, &shape, |y| device::linear(self, y, x.buffer()?)),
        }
    }

    /// The same layer on a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?;
        Ok(Self { weight: self.weight.to_device(device)?, bias })
    }
}

/// A norm over a row's channels, with what it is multiplied with and, in CLIP, what is added.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// `[C]`.
    pub(crate) weight: Tensor,
    /// `[C]`: the mean is taken off first (layer norm). `None`: it is not (T5's root-mean-square norm).
    pub(crate) bias: Option<Tensor>,
    pub(crate) epsilon: f32,
}

impl Norm {
    /// Rows to rows.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match x.device() {
            None => Tensor::new(x.shape(), host::norm(self, x.as_slice()?)?),
            Some(device) => Tensor::written(device, x.shape(), |y| device::norm(self, y, x.buffer()?)),
        }
    }

    /// The same norm on a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?;
        Ok(Self { weight: self.weight.to_device(device)?, bias, epsilon: self.epsilon })
    }
}

/// The non-linearity that a text encoder's configuration names.
pub(crate) fn activation_named(name: &str) -> Option<Activation> {
    Some(match name {
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        _ => return None,
    })
}

/// The names that [`activation_named`] understands.
pub(crate) const ACTIVATION_NAMES: &str = "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu";

/// The activation of every number.
pub(crate) fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match x.device() {
        None => crate::engine::ops::activation::cpu::forward::<f32>(x, kind),
        Some(device) => {
            let from = x.buffer()?;
            Tensor::written(device, x.shape(), |y| device::activate(kind, y, from))
        }
    }
}

/// Which tokens a token sees, and how queries and keys meet. Mask and bias are where the rows are.
pub(crate) struct Attention<'a> {
    /// Tokens a sample, `T`.
    pub(crate) tokens: usize,
    /// Heads, `H`.
    pub(crate) heads: usize,
    /// Multiplies the products of queries and keys.
    pub(crate) scale: f32,
    /// Tokens see only themselves and those before them.
    pub(crate) causal: bool,
    /// Keys that are seen at all, 1 or 0, `[B·T]` u32.
    pub(crate) mask: &'a Tensor,
    /// Added to the products, `[H, T, T]`.
    pub(crate) bias: Option<&'a Tensor>,
}

impl Attention<'_> {
    /// Queries, keys and values `[B·T, H·D]` to rows of the same shape.
    ///
    /// A key that is not seen has the weight 0 exactly, which is what the released code's most negative number comes to
    /// after a softmax; a token that sees no key at all gets zeros.
    pub(crate) fn apply(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let channels = last_dim("attention", queries)?;
        match queries.device() {
            None => {
                let rows = [queries.as_slice()?, keys.as_slice()?, values.as_slice()?];
                Tensor::new(queries.shape(), host::attention(self, rows, channels)?)
            }
            Some(device) => Tensor::written(device, queries.shape(), |y| {
                device::attention(self, y, [queries.buffer()?, keys.buffer()?, values.buffer()?], channels)
            }),
        }
    }
}

/// `x += y`.
pub(crate) fn add(x: &mut Tensor, y: &Tensor) -> Result<()> {
    match x.device() {
        None => host::add(x.as_mut_slice()?, y.as_slice()?),
        Some(_) => return device::add(x.buffer_mut()?, y.buffer()?),
    }
    Ok(())
}

/// `x · y`, number by number.
pub(crate) fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match x.device() {
        None => Tensor::new(x.shape(), host::multiply(x.as_slice()?, y.as_slice()?)),
        Some(device) => {
            let (x_buffer, y_buffer) = (x.buffer()?, y.buffer()?);
            Tensor::written(device, x.shape(), |to| device::multiply(to, x_buffer, y_buffer))
        }
    }
}

/// The first row, of `channels` numbers, that holds one that is not finite.
pub(in crate::encode) use host::first_not_finite;
