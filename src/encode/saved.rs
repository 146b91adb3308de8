//! Saved encoders: a JSON description with the kind, and safetensors next to it if there are weights.

use std::{collections::BTreeMap, fs, path::Path};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    engine::{DType, Tensor},
    error::{Error, Result},
    files::text::read_text,
};

/// File name of an image tokenizer's description.
pub(crate) const IMAGE_TOKENIZER: &str = "image_tokenizer.json";

/// File name of a text encoder's description.
pub(crate) const TEXT_ENCODER: &str = "text_encoder.json";

/// The JSON description of a saved encoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderDescription {
    /// The kind of encoder.
    pub kind: String,
    /// The encoder's settings, in the format of its kind.
    pub settings: serde_json::Value,
    /// SHA-256 over kind, settings and weights, in hexadecimal.
    pub fingerprint: String,
}

impl EncoderDescription {
    /// The settings of an encoder of this kind.
    ///
    /// # Errors
    /// If the kind differs or the settings are invalid.
    pub fn settings<T: DeserializeOwned>(&self, path: &Path, kind: &str) -> Result<T> {
        if self.kind != kind {
            return Err(damaged(path, format!("expected the kind \"{kind}\", got \"{}\"", self.kind)));
        }
        serde_path_to_error::deserialize(&self.settings)
            .map_err(|error| damaged(path, format!("settings.{}: {}", error.path(), error.inner())))
    }

    /// Compares the saved fingerprint with that of the loaded encoder.
    ///
    /// # Errors
    /// If they differ.
    pub(crate) fn check_fingerprint(&self, path: &Path, found: &str) -> Result<()> {
        if self.fingerprint == found {
            return Ok(());
        }
        Err(damaged(
            path,
            format!(
                "the fingerprint is {}, but that of the files is {found}; they were changed or belong to different encoders, so save or fit it again",
                self.fingerprint
            ),
        ))
    }
}

/// Reads a description.
///
/// # Errors
/// If the file cannot be read or is not a description.
pub(crate) fn read_description(path: &Path) -> Result<EncoderDescription> {
    let text = read_text(path)?;
    let mut reader = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| damaged(path, format!("not the description of an encoder: {error}")))
}

/// Writes a description atomically.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_description(
    path: &Path,
    kind: &str,
    settings: &impl Serialize,
    fingerprint: &str,
) -> Result<()> {
    let describe = || {
        let settings = serde_json::to_value(settings)?;
        let description =
            EncoderDescription { kind: kind.to_owned(), settings, fingerprint: fingerprint.to_owned() };
        serde_json::to_vec_pretty(&description)
    };
    let mut text =
        describe().map_err(|error| damaged(path, format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Reads every tensor of a safetensors file: f32 unchanged, f64, f16 and bf16 cast to f32, integers that fit
/// cast to u32.
///
/// # Errors
/// If the file cannot be read, is damaged, or has a dtype or value that cannot be cast.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| damaged(path, format!("not a complete safetensors file ({error})")))?;
    file.iter()
        .map(|(name, view)| {
            let tensor =
                tensor(&view).map_err(|message| damaged(path, format!("tensor {name}: {message}")))?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

fn tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
    }
    fn whole<T: Copy + TryInto<u32> + std::fmt::Display>(values: Vec<T>) -> Result<Vec<u32>, String> {
        let cast = |value: T| value.try_into().map_err(|_| format!("{value} does not fit u32"));
        values.into_iter().map(cast).collect()
    }
    let (shape, bytes) = (view.shape(), view.data());
    let made = match view.dtype() {
        Dtype::F32 => Tensor::new(shape, numbers(bytes, f32::from_le_bytes)),
        Dtype::F64 => {
            Tensor::new(shape, numbers(bytes, f64::from_le_bytes)).and_then(|wide| wide.cast(DType::F32))
        }
        Dtype::F16 => Tensor::new(shape, numbers(bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Tensor::new(shape, numbers(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
        Dtype::U32 => Tensor::new(shape, numbers(bytes, u32::from_le_bytes)),
        Dtype::I32 => Tensor::new(shape, whole(numbers(bytes, i32::from_le_bytes))?),
        Dtype::I64 => Tensor::new(shape, whole(numbers(bytes, i64::from_le_bytes))?),
        Dtype::U64 => Tensor::new(shape, whole(numbers(bytes, u64::from_le_bytes))?),
        other => return Err(format!("unsupported dtype {other:?}")),
    };
    made.map_err(|error| error.to_string())
}

/// Writes f32 tensors as safetensors, atomically.
///
/// # Errors
/// If a tensor is not f32 or the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let bytes = bytemuck::cast_slice(tensor.as_slice::<f32>()?);
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes)
            .map_err(|error| damaged(path, format!("tensor {name} cannot be written: {error}")))?;
        views.push((*name, view));
    }
    let bytes = safetensors::serialize(views, None)
        .map_err(|error| damaged(path, format!("cannot be written as safetensors: {error}")))?;
    write_atomic(path, &bytes)
}

/// Writes a file atomically; creates its folder if necessary.
fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    crate::files::write_atomic(path, bytes)
}

/// Bytes in hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An [`Error::Checkpoint`].
pub(super) fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}

/// The error for a kind that this version does not support.
pub(super) fn unknown_kind(path: &Path, found: &str, known: &[&str]) -> Error {
    damaged(path, format!("unknown kind `{found}`; expected one of {}", known.join(", ")))
}
