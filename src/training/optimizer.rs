//! AdamW with decoupled weight decay and clipping by the global norm, as PyTorch computes them (upstream.md, C1 to
//! C3), and the upstream loss scaling for fp16.

use crate::{
    engine::{
        Gradients, ParameterId, Parameters, Tensor,
        cuda::{Device, DeviceFloat},
        dispatch::{with_float, with_number},
        ops::{
            adamw::{
                Factors, cpu,
                cuda::{AdamWTables, AdamWTensor, adamw},
            },
            expect_shape,
        },
    },
    error::{Error, Result},
    training::loss_scale::LossScale,
};

/// Settings that are constant during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment; released: 0.9.
    pub beta1: f64,
    /// Decay of the second moment; released: 0.95.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// The largest global gradient norm; `None` does not clip.
    pub clip: Option<f64>,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, clip: Some(2.0) }
    }
}

/// The optimizer's state for one network, on the network's device.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    decays: Vec<bool>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
    scale: Option<LossScale>,
    next: Next,
    tables: Tables,
}

/// The update in progress.
#[derive(Clone, Debug, Default)]
struct Next {
    factors: Option<Factors>,
    /// The norm, if the host has computed it.
    norm: Option<f64>,
}

/// Device memory for an update, allocated by the first one. A clone of an optimizer creates its own.
#[derive(Debug, Default)]
struct Tables(Option<AdamWTables>);

impl Clone for Tables {
    fn clone(&self) -> Self {
        Self(None)
    }
}

/// The result of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// The global norm of the gradients before clipping.
    pub norm: f64,
    /// Whether the update was applied; `false` if the norm is not finite.
    pub applied: bool,
}

impl AdamW {
    /// A new state; `decays` says for each parameter whether weight decay applies.
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
            scale: None,
            next: Next::default(),
            tables: Tables::default(),
        }
    }

    /// Moves the state to a device, in f32. With `scaled`, the losses are multiplied by a [`LossScale`], for fp16.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub(crate) fn move_to(&mut self, device: &Device, scaled: bool) -> Result<()> {
        for moment in self.first.iter_mut().chain(&mut self.second) {
            *moment = moment.cast(crate::engine::DType::F32)?.to_device(device)?;
        }
        self.scale = scaled.then(LossScale::default);
        self.tables = Tables::default();
        Ok(())
    }

    /// First and second moments of a parameter.
    pub fn moments(&self, id: ParameterId) -> (&Tensor, &Tensor) {
        (&self.first[id.0], &self.second[id.0])
    }

    /// The second moments of all parameters.
    pub fn second_moments(&self) -> &[Tensor] {
        &self.second
    }

    /// The bias correction of the second moments, and ε: `[1 / (1 − β₂ᵗ), ε]` after `t` updates; the first is 0
    /// before any update.
    pub fn second_moment_factors(&self) -> [f64; 2] {
        let AdamWSettings { beta2, epsilon, .. } = self.settings;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let inverse = if self.steps == 0 { 0.0 } else { 1.0 / (1.0 - beta2.powi(exponent)) };
        [inverse, epsilon]
    }

    /// Mutable access to all moments.
    pub(crate) fn moments_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.first.iter_mut().chain(&mut self.second)
    }

    /// Restores saved moments; their shapes must be the parameter's.
    ///
    /// # Errors
    /// If a shape differs or a device fails.
    pub fn restore(&mut self, id: ParameterId, first: &Tensor, second: &Tensor) -> Result<()> {
        expect_shape("optimizer", "the first moment", first, self.first[id.0].shape())?;
        expect_shape("optimizer", "the second moment", second, self.second[id.0].shape())?;
        for (current, saved) in [(&mut self.first[id.0], first), (&mut self.second[id.0], second)] {
            let saved = saved.cast(current.dtype())?;
            *current = match current.device() {
                None => saved,
                Some(device) => saved.to_device(&device.clone())?,
            };
        }
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

    /// The loss scaling, if enabled.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    /// Restores a saved loss scaling, if enabled.
    pub fn set_loss_scale(&mut self, saved: Option<LossScale>) {
        if let (Some(current), Some(saved)) = (&mut self.scale, saved) {
            *current = saved;
        }
    }

    /// The factor of the losses of the next update.
    pub(crate) fn loss_factor(&self) -> f64 {
        self.scale.map_or(1.0, |scale| scale.factor())
    }

    /// Begins an update. Call it before the forward pass: all values that a device needs are uploaded here.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prepare(&mut self, learning_rate: f64, weight_decay: f64) -> Result<()> {
        let AdamWSettings { beta1, beta2, epsilon, clip } = self.settings;
        let exponent = i32::try_from(self.steps + 1).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(exponent);
        let correction2 = 1.0 - beta2.powi(exponent);
        let factors = Factors {
            inverse_scale: 1.0 / self.loss_factor(),
            most: clip,
            keep: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / correction1,
            rest1: 1.0 - beta1,
            beta2,
            root2: correction2.sqrt(),
            epsilon,
        };
        self.next = Next { factors: Some(factors), norm: None };
        if let Tables(Some(tables)) = &mut self.tables {
            tables.set(&factors)?;
        }
        Ok(())
    }

    /// Applies the update, unless the gradients' norm is not finite; parameters without a gradient are unchanged.
    /// Does not wait for a device.
    ///
    /// # Errors
    /// If no update has begun, or a gradient does not fit its parameter.
    pub fn update(&mut self, parameters: &mut Parameters, gradients: &Gradients) -> Result<()> {
        let factors = self.next.factors.ok_or_else(|| Error::invalid("no update has begun"))?;
        for (id, _, value) in parameters.iter() {
            if let Some(Some(gradient)) = gradients.get(id.0) {
                expect_shape("optimizer", "the gradient", gradient, value.shape())?;
            }
        }
        if let Some(device) = parameters.device().cloned() {
            return with_number!(parameters.compute_dtype(), "optimizer", T => {
                self.update_on_device::<T>(&device, parameters, gradients, &factors)
            });
        }
        let norm = global_norm(gradients)?;
        self.next.norm = Some(norm * factors.inverse_scale);
        if !norm.is_finite() {
            return Ok(());
        }
        let clip = factors.clip(norm);
        for (at, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let (first, second, decays) = (&mut self.first[at], &mut self.second[at], self.decays[at]);
            let (value, _) = parameters.value_mut(ParameterId(at));
            with_float!(value.dtype(), "optimizer", T => {
                cpu::update::<T>(&factors, clip, decays, value, first, second, gradient)
            })?;
        }
        Ok(())
    }

    fn update_on_device<T: DeviceFloat>(
        &mut self,
        device: &Device,
        parameters: &mut Parameters,
        gradients: &Gradients,
        factors: &Factors,
    ) -> Result<()> {
        let mut tensors = Vec::with_capacity(parameters.len());
        let moments = self.first.iter_mut().zip(&mut self.second);
        let all = parameters.values_mut().zip(gradients.iter()).zip(moments).zip(&self.decays);
        for ((((value, copy), gradient), (first, second)), &decays) in all {
            let Some(gradient) = gradient else { continue };
            tensors.push(AdamWTensor::<'_, T> {
                value: value.buffer_mut()?,
                gradient: gradient.buffer()?,
                first: first.buffer_mut()?,
                second: second.buffer_mut()?,
                copy: copy.map(Tensor::buffer_mut).transpose()?,
                decays,
            });
        }
        let tables = match &mut self.tables.0 {
            Some(tables) if tables.fit(&tensors) => tables,
            current => {
                let tables = current.insert(AdamWTables::new(device, &tensors)?);
                tables.set(factors)?;
                tables
            }
        };
        adamw(tables, &mut tensors)
    }

    /// Call between the recording of an update in a graph and the graph's first replay.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn recorded(&mut self) -> Result<()> {
        match &mut self.tables {
            Tables(Some(tables)) => tables.settle(),
            Tables(None) => Ok(()),
        }
    }

    /// Ends an update: waits for the device, and counts the update if it was applied.
    ///
    /// # Errors
    /// If no update has begun, or a device fails.
    pub fn finish(&mut self) -> Result<Updated> {
        let next = std::mem::take(&mut self.next);
        let norm = match (next.norm, &self.tables.0) {
            (Some(norm), _) => norm,
            (None, Some(tables)) => f64::from(tables.global_norm()?),
            (None, None) => return Err(Error::invalid("no update has begun")),
        };
        let applied = norm.is_finite();
        if applied {
            self.steps += 1;
        }
        if let Some(scale) = &mut self.scale {
            scale.record(applied);
        }
        Ok(Updated { norm, applied })
    }
}

/// The Euclidean norm over all gradients, summed in f64 in a fixed order.
///
/// # Errors
/// If a gradient is not a float tensor on the host.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients.iter().flatten() {
        total += with_float!(gradient.dtype(), "optimizer", T => cpu::squares::<T>(gradient))?;
    }
    Ok(total.sqrt())
}
