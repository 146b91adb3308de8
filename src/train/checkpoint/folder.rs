//! The folders of checkpoints: written whole, numbered by their step, checked when they are read.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Tensors;
use crate::{
    engine::{Storage, Tensor},
    error::{Error, Result},
    files::{PendingFolder, remove_folder, sha256},
};

/// The form of `state.json` that this version writes.
const FORMAT: u32 = 2;
/// The file of counters and fingerprints.
const STATE: &str = "state.json";
/// What the folders' names begin with.
const PREFIX: &str = "step-";

/// The whole of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile<S> {
    format: u32,
    state: S,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// A checkpoint whose state has been read.
#[derive(Debug)]
pub(crate) struct Opened<'a, S> {
    folder: &'a Path,
    pub(crate) state: S,
    files: BTreeMap<String, FileRecord>,
}

/// Writes the checkpoint of `step` into `checkpoints`, the folder of all of them: a file for each set of tensors, and what
/// else there is to say. Removes all but the `keep` newest and gives the folder written.
///
/// # Errors
/// If writing fails; checkpoints that were there stay as they are.
pub(crate) fn write<'a>(
    checkpoints: &Path,
    step: u64,
    keep: Option<usize>,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensors)>,
    state: &impl Serialize,
) -> Result<PathBuf> {
    let target = checkpoints.join(format!("{PREFIX}{step:08}"));
    let pending = PendingFolder::new(&target)?;
    let mut files = BTreeMap::new();
    for (name, tensors) in tensors {
        let bytes = to_safetensors(tensors).map_err(|message| damaged(&target.join(name), message))?;
        files.insert(name.to_owned(), FileRecord { bytes: bytes.len() as u64, sha256: sha256(&bytes) });
        pending.write(name, &bytes)?;
    }
    let state = StateFile { format: FORMAT, state, files };
    let mut text = serde_json::to_vec_pretty(&state)
        .map_err(|error| damaged(&target.join(STATE), format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    pending.write(STATE, &text)?;
    pending.publish()?;
    if let Some(keep) = keep {
        let all = list(checkpoints)?;
        for (_, old) in &all[..all.len().saturating_sub(keep.max(1))] {
            remove_folder(old)?;
        }
    }
    Ok(target)
}

/// Reads a checkpoint's state.
///
/// # Errors
/// If it is missing, damaged or of another form.
pub(crate) fn open<S: DeserializeOwned>(folder: &Path) -> Result<Opened<'_, S>> {
    let path = folder.join(STATE);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| {
        damaged(
            &path,
            format!("is not the state of a checkpoint ({error}); remove the folder to use an older one"),
        )
    };
    let Format { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if format != FORMAT {
        let message = format!("was written in form {format}, but this version reads form {FORMAT}");
        return Err(damaged(&path, message));
    }
    let StateFile { state, files, .. } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    Ok(Opened { folder, state, files })
}

impl<S> Opened<'_, S> {
    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Reads one set of tensors.
    ///
    /// # Errors
    /// If the file is missing, truncated or changed since it was written.
    pub(crate) fn tensors(&self, name: &str) -> Result<Tensors> {
        let path = self.folder.join(name);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let cure = "remove the folder to use an older checkpoint";
        let Some(record) = self.files.get(name) else {
            return Err(damaged(&path, format!("is not mentioned in {STATE}; {cure}")));
        };
        if bytes.len() as u64 != record.bytes {
            let message = format!("is truncated: {} bytes instead of {}; {cure}", bytes.len(), record.bytes);
            return Err(damaged(&path, message));
        }
        if sha256(&bytes) != record.sha256 {
            return Err(damaged(&path, format!("is damaged: its SHA-256 is not the one in {STATE}; {cure}")));
        }
        from_safetensors(&bytes).map_err(|message| damaged(&path, message))
    }
}

/// The checkpoints' steps and folders, oldest first.
pub(super) fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(Error::io("read", checkpoints))? {
        let entry = entry.map_err(Error::io("read", checkpoints))?;
        let name = entry.file_name();
        if let Some(step) = name.to_string_lossy().strip_prefix(PREFIX).and_then(|step| step.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}

/// Tensors as the bytes of a safetensors file.
fn to_safetensors(tensors: &Tensors) -> Result<Vec<u8>, String> {
    let views: Result<Vec<_>, String> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes): (Dtype, &[u8]) = match tensor.storage().map_err(|error| error.to_string())? {
                Storage::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
                Storage::F64(values) => (Dtype::F64, bytemuck::cast_slice(values)),
                Storage::Bf16(values) => (Dtype::BF16, bytemuck::cast_slice(values)),
                Storage::F16(values) => (Dtype::F16, bytemuck::cast_slice(values)),
                Storage::U32(values) => (Dtype::U32, bytemuck::cast_slice(values)),
            };
            let view =
                TensorView::new(dtype, tensor.shape().to_vec(), bytes).map_err(|error| error.to_string())?;
            Ok((name.as_str(), view))
        })
        .collect();
    safetensors::serialize(views?, None).map_err(|error| error.to_string())
}

/// The tensors of a safetensors file, in the types that they have there.
fn from_safetensors(bytes: &[u8]) -> Result<Tensors, String> {
    fn numbers<const N: usize, T>(view: &TensorView<'_>, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        view.data().as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
    }
    let file =
        SafeTensors::deserialize(bytes).map_err(|error| format!("is not a safetensors file ({error})"))?;
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        let shape = view.shape();
        let tensor = match view.dtype() {
            Dtype::F32 => Tensor::new(shape, numbers(&view, f32::from_le_bytes)),
            Dtype::F64 => Tensor::new(shape, numbers(&view, f64::from_le_bytes)),
            Dtype::BF16 => Tensor::new(shape, numbers(&view, bf16::from_le_bytes)),
            Dtype::F16 => Tensor::new(shape, numbers(&view, f16::from_le_bytes)),
            Dtype::U32 => Tensor::new(shape, numbers(&view, u32::from_le_bytes)),
            other => return Err(format!("{name} has the type {other:?}, which is not read")),
        };
        Ok((name.to_owned(), tensor.map_err(|error| error.to_string())?))
    };
    file.iter().map(tensor).collect()
}
