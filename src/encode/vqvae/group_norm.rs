//! The group norms of the VQ-VAE, with the upstream settings.

use crate::{
    engine::{
        Tensor,
        ops::{
            convolution::cpu::{Bordered, Map},
            group_norm::cpu,
        },
    },
    error::{Error, Result},
};

/// Groups of every norm, as in the upstream code.
pub(super) const GROUPS: usize = 32;
/// ε of every norm, as in the upstream code.
pub(super) const EPSILON: f64 = 1e-6;

/// A group norm with a scale and a shift per channel.
#[derive(Clone, Debug)]
pub(super) struct GroupNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl GroupNorm {
    /// Takes a scale and a shift `[C]`, both f32.
    ///
    /// # Errors
    /// If the shapes differ or `C` is not a multiple of 32.
    pub(super) fn new(name: &str, scale: &Tensor, shift: &Tensor) -> Result<Self> {
        let channels = scale.len();
        if scale.shape() != [channels] || shift.shape() != [channels] || !channels.is_multiple_of(GROUPS) {
            return Err(Error::shape(
                "group norm",
                format!(
                    "{name} should have a scale and a shift [C] with C a multiple of {GROUPS}, but has {:?} and {:?}",
                    scale.shape(),
                    shift.shape()
                ),
            ));
        }
        Ok(Self { scale: scale.as_slice::<f32>()?.to_vec(), shift: shift.as_slice::<f32>()?.to_vec() })
    }

    pub(super) fn channels(&self) -> usize {
        self.scale.len()
    }

    /// Scale and shift per channel.
    pub(super) fn scale_and_shift(&self) -> [&[f32]; 2] {
        [&self.scale, &self.shift]
    }

    fn on_host(&self) -> cpu::GroupNorm<'_> {
        cpu::GroupNorm { groups: GROUPS, scale: &self.scale, shift: &self.shift, epsilon: EPSILON }
    }

    /// See [`cpu::GroupNorm::apply`].
    pub(super) fn apply(&self, map: &Map, output: &mut Map) {
        self.on_host().apply(map, output);
    }

    /// See [`cpu::GroupNorm::apply_silu`].
    pub(super) fn apply_silu(&self, map: &Map, output: &mut Bordered) {
        self.on_host().apply_silu(map, output);
    }
}
