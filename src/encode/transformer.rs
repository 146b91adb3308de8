//! Layers of the pretrained text encoders and of CLIP's image tower, which are never trained. They run on the CPU, or
//! on the device of their input. Rows are tokens, `[B·T, channels]`, in f32.

use rayon::prelude::*;

use crate::{
    engine::{
        Tensor,
        cuda::Device,
        ops::{activation::Activation, affine_norm::affine_norm, linear::linear_rows},
    },
    error::Result,
};

/// `y = x · wᵀ`, with or without a bias.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[O, I]`.
    pub(crate) weight: Tensor,
    /// `[O]`.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// Maps rows `[R, I]` to rows `[R, O]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        linear_rows(x, &self.weight, self.bias.as_ref())
    }

    /// Copies the layer to a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?;
        Ok(Self { weight: self.weight.to_device(device)?, bias })
    }
}

/// A normalization over the channels of a row, with a weight and, in CLIP, a bias.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// `[C]`.
    pub(crate) weight: Tensor,
    /// `[C]`: layer norm. `None`: root-mean-square norm without mean subtraction (T5).
    pub(crate) bias: Option<Tensor>,
    pub(crate) epsilon: f32,
}

impl Norm {
    /// Normalizes rows.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        affine_norm(x, &self.weight, self.bias.as_ref(), self.epsilon)
    }

    /// Copies the norm to a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?;
        Ok(Self { weight: self.weight.to_device(device)?, bias, epsilon: self.epsilon })
    }
}

/// The activation that a text encoder's configuration names.
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

/// The names that [`activation_named`] supports.
pub(crate) const ACTIVATION_NAMES: &str = "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu";

/// The first row, of `channels` values, that has a value that is not finite.
pub(in crate::encode) fn first_not_finite(x: &[f32], channels: usize) -> Option<usize> {
    x.par_iter().position_first(|value| !value.is_finite()).map(|at| at / channels)
}
