//! AdamW with decoupled weight decay and clipping by the global norm, as PyTorch computes them (upstream.md, C1 to C3).

use crate::{
    engine::{
        Gradients, ParameterId, Parameters, Tensor,
        ops::adamw::{Factors, cpu},
    },
    error::Result,
    with_float,
};

/// Settings that do not change during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment; released: 0.9.
    pub beta1: f64,
    /// Decay of the second moment; released: 0.95.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The largest global gradient norm; `None` does not clip.
    pub clip: Option<f64>,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, clip: Some(2.0) }
    }
}

/// The optimiser's state over one network.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    decays: Vec<bool>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl AdamW {
    /// A fresh state; `decays` says for each parameter whether weight decay applies.
    pub fn new(
        parameters: &Parameters,
        decays: impl Fn(&str, &[usize]) -> bool,
        settings: AdamWSettings,
    ) -> Self {
        let zeros =
            || parameters.iter().map(|(_, _, value)| Tensor::zeros(value.shape(), value.dtype())).collect();
        Self {
            settings,
            decays: parameters.iter().map(|(_, name, value)| decays(name, value.shape())).collect(),
            first: zeros(),
            second: zeros(),
            steps: 0,
        }
    }

    /// First and second moment of a parameter.
    pub fn moments(&self, id: ParameterId) -> (&Tensor, &Tensor) {
        (&self.first[id.0], &self.second[id.0])
    }

    /// Puts saved moments back; shapes must be the parameter's.
    ///
    /// # Errors
    /// If a shape differs.
    pub fn restore(&mut self, id: ParameterId, first: &Tensor, second: &Tensor) -> Result<()> {
        crate::engine::ops::expect_shape("optimizer", "the first moment", first, self.first[id.0].shape())?;
        crate::engine::ops::expect_shape(
            "optimizer",
            "the second moment",
            second,
            self.second[id.0].shape(),
        )?;
        self.first[id.0] = first.cast(self.first[id.0].dtype());
        self.second[id.0] = second.cast(self.second[id.0].dtype());
        Ok(())
    }

    /// Updates done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of updates done, on resume.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// One update; parameters without a gradient stay as they are. Gives the global norm before clipping.
    ///
    /// # Errors
    /// If a gradient does not fit its parameter.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        weight_decay: f64,
    ) -> Result<f64> {
        let norm = global_norm(gradients)?;
        self.steps += 1;
        let clip = self.settings.clip.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let correction1 = 1.0 - self.settings.beta1.powi(exponent);
        let correction2 = 1.0 - self.settings.beta2.powi(exponent);
        for (at, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let factors = Factors {
                clip,
                keep: 1.0 - learning_rate * if self.decays[at] { weight_decay } else { 0.0 },
                rest1: 1.0 - self.settings.beta1,
                beta2: self.settings.beta2,
                root2: correction2.sqrt(),
                epsilon: self.settings.epsilon,
                rate: learning_rate / correction1,
            };
            let (first, second) = (&mut self.first[at], &mut self.second[at]);
            let value = parameters.value_mut(ParameterId(at));
            crate::engine::ops::expect_shape("optimizer", "the gradient", gradient, value.shape())?;
            with_float!(value.dtype(), "optimizer", T => {
                cpu::update::<T>(&factors, value, first, second, gradient)
            })?;
        }
        Ok(norm)
    }
}

/// The Euclidean norm over all gradients, summed in f64 in a fixed order.
///
/// # Errors
/// If a gradient is not a float.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients.iter().flatten() {
        total += with_float!(gradient.dtype(), "optimizer", T => cpu::squares::<T>(gradient))?;
    }
    Ok(total.sqrt())
}
