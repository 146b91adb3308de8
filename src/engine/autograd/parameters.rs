//! The named parameters of a network, in a fixed order.

use std::collections::HashMap;

use crate::{
    engine::{cuda::Device, storage::DType, tensor::Tensor},
    error::{Error, Result},
};

/// Index of a parameter in its [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(pub usize);

/// Named tensors in declaration order. Names are those of the upstream PyTorch code.
///
/// On a device values are stored in f32, along with a 16-bit copy of each where the network computes in a 16-bit dtype.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    names: Vec<String>,
    values: Vec<Tensor>,
    /// Empty where the network computes with the values themselves.
    copies: Vec<Tensor>,
    index: HashMap<String, ParameterId>,
}

impl Parameters {
    /// Adds a parameter at the end.
    ///
    /// # Errors
    /// If the name is already declared.
    pub fn push(&mut self, name: impl Into<String>, value: Tensor) -> Result<ParameterId> {
        let name = name.into();
        let id = ParameterId(self.values.len());
        if self.index.insert(name.clone(), id).is_some() {
            return Err(Error::invalid(format!("parameter {name} is already declared")));
        }
        if let Some(copy) = self.copies.first() {
            self.copies.push(value.cast(copy.dtype())?);
        }
        self.names.push(name);
        self.values.push(value);
        Ok(id)
    }

    /// The number of parameters (tensors, not elements).
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The number of elements over all tensors.
    pub fn elements(&self) -> usize {
        self.values.iter().map(Tensor::len).sum()
    }

    /// Looks a name up.
    pub fn id(&self, name: &str) -> Option<ParameterId> {
        self.index.get(name).copied()
    }

    /// The name of a parameter.
    pub fn name(&self, id: ParameterId) -> &str {
        &self.names[id.0]
    }

    /// The value of a parameter.
    pub fn value(&self, id: ParameterId) -> &Tensor {
        &self.values[id.0]
    }

    /// The value of a parameter in the dtype of an activation: the value itself or its copy.
    ///
    /// # Errors
    /// If neither has this dtype.
    pub fn value_as(&self, id: ParameterId, dtype: DType) -> Result<&Tensor> {
        let kept = [Some(&self.values[id.0]), self.copies.get(id.0)];
        kept.into_iter().flatten().find(|value| value.dtype() == dtype).ok_or_else(|| {
            Error::shape("parameters", format!("{} is not kept in {dtype:?}", self.names[id.0]))
        })
    }

    /// The value of a parameter and its copy, if there is one, to be changed in place.
    pub fn value_mut(&mut self, id: ParameterId) -> (&mut Tensor, Option<&mut Tensor>) {
        (&mut self.values[id.0], self.copies.get_mut(id.0))
    }

    /// All values and their copies in order, to be changed in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = (&mut Tensor, Option<&mut Tensor>)> {
        let copies = self.copies.iter_mut().map(Some).chain(std::iter::repeat_with(|| None));
        self.values.iter_mut().zip(copies)
    }

    /// The float dtype of the activations.
    pub fn compute_dtype(&self) -> DType {
        self.copies.first().or(self.values.first()).map_or(DType::F32, Tensor::dtype)
    }

    /// The device that holds the values; `None` on the host.
    pub fn device(&self) -> Option<&Device> {
        self.values.first().and_then(Tensor::device)
    }

    /// (id, name, value) in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &str, &Tensor)> {
        self.names
            .iter()
            .zip(&self.values)
            .enumerate()
            .map(|(at, (name, value))| (ParameterId(at), name.as_str(), value))
    }

    /// Replaces a value with another of the same shape, converted to the dtype and device of the old one.
    ///
    /// # Errors
    /// If the name is unknown, the shape differs, or a device fails.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let id = self.id(name).ok_or_else(|| Error::invalid(format!("no parameter {name}")))?;
        let held = &mut self.values[id.0];
        if held.shape() != value.shape() {
            return Err(Error::shape(
                "parameters",
                format!("{name} has the shape {:?}, got {:?}", held.shape(), value.shape()),
            ));
        }
        let value = value.to_host()?.cast(held.dtype())?;
        *held = match held.device() {
            None => value,
            Some(device) => value.to_device(&device.clone())?,
        };
        if let Some(copy) = self.copies.get_mut(id.0) {
            *copy = self.values[id.0].cast(copy.dtype())?;
        }
        Ok(())
    }

    /// The same parameters in another float dtype.
    ///
    /// # Errors
    /// If the device does not support the dtype, or fails.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            names: self.names.clone(),
            values: self.values.iter().map(|value| value.cast(dtype)).collect::<Result<_>>()?,
            copies: Vec::new(),
            index: self.index.clone(),
        })
    }

    /// Copies the parameters to a device, in f32, with copies in `compute` if that is another dtype.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn to_device(&self, device: &Device, compute: DType) -> Result<Self> {
        let on_device = |value: &Tensor| value.to_host()?.cast(DType::F32)?.to_device(device);
        let values: Vec<Tensor> = self.values.iter().map(on_device).collect::<Result<_>>()?;
        let copies = match compute {
            DType::F32 => Vec::new(),
            _ => values.iter().map(|value| value.cast(compute)).collect::<Result<_>>()?,
        };
        Ok(Self { names: self.names.clone(), values, copies, index: self.index.clone() })
    }
}
