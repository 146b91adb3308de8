//! The named weights of a network, in a fixed order.

use std::collections::HashMap;

use crate::{
    engine::tensor::{DType, Tensor},
    error::{Error, Result},
};

/// A parameter's place in its [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(pub usize);

/// Named tensors in the order in which the network declared them. Names are those of the released PyTorch code.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    names: Vec<String>,
    values: Vec<Tensor>,
    index: HashMap<String, ParameterId>,
}

impl Parameters {
    /// Adds a parameter at the end.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn push(&mut self, name: impl Into<String>, value: Tensor) -> Result<ParameterId> {
        let name = name.into();
        let id = ParameterId(self.values.len());
        if self.index.insert(name.clone(), id).is_some() {
            return Err(Error::invalid(format!("the parameter {name} is declared twice")));
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

    /// The value of a parameter, to be changed in place.
    pub fn value_mut(&mut self, id: ParameterId) -> &mut Tensor {
        &mut self.values[id.0]
    }

    /// (id, name, value) in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &str, &Tensor)> {
        self.names
            .iter()
            .zip(&self.values)
            .enumerate()
            .map(|(at, (name, value))| (ParameterId(at), name.as_str(), value))
    }

    /// Replaces one value by another of the same shape, cast to the type held.
    ///
    /// # Errors
    /// If the name is unknown or the shape differs.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let id = self.id(name).ok_or_else(|| Error::invalid(format!("there is no parameter {name}")))?;
        let held = &mut self.values[id.0];
        if held.shape() != value.shape() {
            return Err(Error::shape(
                "parameters",
                format!("{name} has the shape {:?} here, but {:?} was given", held.shape(), value.shape()),
            ));
        }
        *held = value.cast(held.dtype());
        Ok(())
    }

    /// The same parameters in another float type.
    pub fn cast(&self, dtype: DType) -> Self {
        Self {
            names: self.names.clone(),
            values: self.values.iter().map(|value| value.cast(dtype)).collect(),
            index: self.index.clone(),
        }
    }
}
