//! Reads a pretrained model's weights, tensor by tensor, by name.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    engine::{DType, Tensor},
    error::{Error, Result},
    files::{hexadecimal, mistaken::read_json},
    weights::Weights,
};

/// Provides the tensor of a name and shape while a network is assembled.
pub(crate) type Take<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor> + 'a;

/// Maximum number of layers; the deepest released models have a few dozen.
const MAX_LAYERS: usize = 1_000;

/// Reads `config.json`; `section` is the key of the network's part in the configuration of a larger model.
///
/// # Errors
/// If it cannot be read, is invalid, or its model type is not one of `types`.
pub(crate) fn read_settings<T: DeserializeOwned>(folder: &Path, types: &[&str], section: &str) -> Result<T> {
    let path = folder.join("config.json");
    let mut value: Value = read_json(&path, "JSON")?;
    let damaged = |message: String| Error::Checkpoint { path: path.clone(), message };
    if let Some(found) = value.get("model_type").and_then(Value::as_str)
        && !types.contains(&found)
    {
        return Err(damaged(format!(
            "describes a model of the type \"{found}\", not {}",
            types.join(" or ")
        )));
    }
    if value.get(section).is_some_and(Value::is_object) {
        value = value[section].take();
    }
    serde_path_to_error::deserialize(value)
        .map_err(|error| damaged(format!("{}: {}", error.path(), error.inner())))
}

/// Rejects an implausible number of layers, which is under this key of the folder's `config.json`: the names of all
/// their tensors are kept in memory before they are compared with those of the weights.
///
/// # Errors
/// If there are more than [`MAX_LAYERS`].
pub(crate) fn expect_layers(folder: &Path, key: &str, layers: usize) -> Result<()> {
    if layers <= MAX_LAYERS {
        return Ok(());
    }
    Err(Error::Checkpoint {
        path: folder.join("config.json"),
        message: format!(
            "{key} is {layers}, but no encoder has more than {MAX_LAYERS} layers; take the config.json that came \
             with the weights"
        ),
    })
}

/// Opens the folder's weights and assembles a network. `assemble` is called twice: first to collect the names of the
/// tensors it reads, then, after all have been found, to read them. `ignored` says which other tensors may exist.
///
/// Returns the network and the SHA-256 over names, shapes and values, which does not depend on the storage format.
///
/// # Errors
/// If tensors are missing, surplus or of another shape, cannot be read, or have values that are not finite.
pub(crate) fn assemble<N>(
    weights: &Weights,
    prefix: &str,
    ignored: impl Fn(&str) -> bool,
    assemble: impl Fn(&mut Take<'_>) -> Result<N>,
) -> Result<(N, String)> {
    let mut expected = Vec::new();
    assemble(&mut |name, shape| {
        expected.push((format!("{prefix}{name}"), shape.to_vec()));
        Ok(Tensor::zeros(&[0], DType::F32))
    })?;
    let damaged = |message| Error::Checkpoint { path: weights.path().to_path_buf(), message };
    let mut differences = weights.compare(expected);
    differences.surplus.retain(|one| !ignored(&one.name));
    if !differences.is_empty() {
        return Err(damaged(format!("does not fit config.json: {differences}")));
    }
    let mut hash = Sha256::new();
    let network = assemble(&mut |name, _| {
        let full = format!("{prefix}{name}");
        let tensor = weights.read(&full)?;
        if tensor.dtype() != DType::F32 {
            return Err(damaged(format!("tensor {full} has integers instead of floats")));
        }
        let values = tensor.as_slice::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let message = format!("tensor {full} has {} at index {at}; the file is damaged", values[at]);
            return Err(damaged(message));
        }
        hash.update(format!("{name} {:?}\n", tensor.shape()));
        hash.update(bytemuck::cast_slice(values));
        Ok(tensor)
    })?;
    Ok((network, hexadecimal(&hash.finalize())))
}
