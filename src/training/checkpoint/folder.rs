//! Checkpoint folders: written atomically, named by their step, verified when read.
//!
//! Regular checkpoints are called `step-00001200`. One written only because the user stopped the run is called
//! `interrupted-00001234`: it is removed when the next checkpoint is written, so that the checkpoints of a finished run
//! do not depend on interruptions.

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
    files::{
        PendingFolder, remove_folder,
        sealed::{Unsealed, Written, seal, unseal},
    },
    training::run_directory::RunFiles,
};

/// The format of `state.json` that this version writes. Format 2 did not record the run's other files and had no
/// checksum: such a checkpoint can be read, but not resumed.
const FORMAT: u32 = 3;
const OLDER: u32 = 2;
/// The file of counters and fingerprints.
const STATE: &str = "state.json";
/// Prefix of the folder names.
const PREFIX: &str = "step-";
/// Prefix of the names of checkpoints written on an interrupt.
const INTERRUPTED: &str = "interrupted-";
/// The hint for a damaged checkpoint.
const HINT: &str = "remove the folder to use an older checkpoint";

/// The content of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile<S> {
    format: u32,
    state: S,
    files: BTreeMap<String, Written>,
    /// The run's other files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunFiles>,
}

/// The reason for writing a checkpoint, and the files of the run that it records.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Occasion<'a> {
    /// The checkpoint is written only because the user stopped the run.
    pub(crate) interrupted: bool,
    /// How many regular checkpoints to keep.
    pub(crate) keep: Option<usize>,
    /// The run's other files at this point.
    pub(crate) run: Option<&'a RunFiles>,
}

/// A checkpoint whose state has been read and verified.
#[derive(Debug)]
pub(crate) struct Opened<'a, S> {
    folder: &'a Path,
    pub(crate) state: S,
    files: BTreeMap<String, Written>,
    run: Option<RunFiles>,
}

/// Writes the checkpoint of `step` into `checkpoints`: one file per set of tensors, and the state. Removes
/// checkpoints that are no longer kept, and returns the folder written.
///
/// # Errors
/// If writing fails; existing checkpoints are unchanged.
pub(crate) fn write<'a>(
    checkpoints: &Path,
    step: u64,
    Occasion { interrupted, keep, run }: Occasion<'_>,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensors)>,
    state: &impl Serialize,
) -> Result<PathBuf> {
    let target = checkpoints.join(format!("{}{step:08}", if interrupted { INTERRUPTED } else { PREFIX }));
    let pending = PendingFolder::new(&target)?;
    let mut files = BTreeMap::new();
    for (name, tensors) in tensors {
        let bytes = to_safetensors(tensors).map_err(|message| damaged(&target.join(name), message))?;
        files.insert(name.to_owned(), Written::of(&bytes));
        pending.write(name, &bytes)?;
    }
    let state = StateFile { format: FORMAT, state, files, run: run.cloned() };
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| damaged(&target.join(STATE), format!("cannot be written as JSON: {error}")))?;
    pending.write(STATE, &seal(text))?;
    pending.publish()?;
    tidy(checkpoints, keep)?;
    Ok(target)
}

/// Removes old checkpoints: regular ones other than the `keep` newest, and ones written on an interrupt. The newest
/// checkpoint always stays. A resuming run calls this too, since it may have been killed before this step.
///
/// # Errors
/// If a folder cannot be removed.
pub(crate) fn tidy(checkpoints: &Path, keep: Option<usize>) -> Result<()> {
    let newest = newest(checkpoints)?;
    let all = list(checkpoints)?;
    let old = all.len().saturating_sub(keep.map_or(usize::MAX, |keep| keep.max(1)));
    let surplus = all.into_iter().take(old).chain(interrupted(checkpoints)?);
    for (_, folder) in surplus.filter(|(_, folder)| newest.as_ref() != Some(folder)) {
        remove_folder(&folder)?;
    }
    Ok(())
}

/// Reads a checkpoint's state.
///
/// # Errors
/// If it is missing, damaged or of an unknown format.
pub(crate) fn open<S: DeserializeOwned>(folder: &Path) -> Result<Opened<'_, S>> {
    let path = folder.join(STATE);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| {
        damaged(&path, format!("is not the state of a checkpoint ({error}); {HINT}"))
    };
    let (text, sealed) = match unseal(&bytes) {
        Unsealed::Whole(text) => (text, true),
        Unsealed::Without => (bytes, false),
        Unsealed::Broken => {
            return Err(damaged(&path, format!("is damaged: its SHA-256 is not the one at its end; {HINT}")));
        }
    };
    let Format { format } = serde_json::from_slice(&text).map_err(unreadable)?;
    match (format, sealed) {
        (FORMAT, true) | (OLDER, false) => {}
        (FORMAT | OLDER, _) => {
            return Err(damaged(&path, format!("is damaged: it does not end with its SHA-256; {HINT}")));
        }
        _ => {
            let message = format!("has format {format}, but this version reads formats {OLDER} and {FORMAT}");
            return Err(damaged(&path, message));
        }
    }
    let StateFile { state, files, run, .. } = serde_json::from_slice(&text).map_err(unreadable)?;
    Ok(Opened { folder, state, files, run })
}

impl<S> Opened<'_, S> {
    /// The run's other files as of the checkpoint, for a run that resumes.
    ///
    /// # Errors
    /// If the checkpoint was written by a version that did not record them.
    pub(crate) fn run_files(&self) -> Result<&RunFiles> {
        self.run.as_ref().ok_or_else(|| {
            let message = "was written by an older version, which did not record metrics.jsonl and dynamics/: the \
                           run can be scored and reported, but not resumed; start a new one with another --out";
            damaged(&self.folder.join(STATE), message)
        })
    }

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
        let Some(record) = self.files.get(name) else {
            return Err(damaged(&path, format!("is not listed in {STATE}; {HINT}")));
        };
        if bytes.len() as u64 != record.bytes {
            let what = if (bytes.len() as u64) < record.bytes { "truncated" } else { "damaged" };
            let message = format!("is {what}: {} bytes instead of {}; {HINT}", bytes.len(), record.bytes);
            return Err(damaged(&path, message));
        }
        if Written::of(&bytes) != *record {
            return Err(damaged(
                &path,
                format!("is damaged: its SHA-256 does not match the one in {STATE}; {HINT}"),
            ));
        }
        from_safetensors(&bytes).map_err(|message| damaged(&path, message))
    }
}

/// The steps and folders of the regular checkpoints, oldest first.
pub(crate) fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    named(checkpoints, PREFIX)
}

/// The steps and folders of the checkpoints written on an interrupt, oldest first.
pub(crate) fn interrupted(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    named(checkpoints, INTERRUPTED)
}

/// The newest checkpoint.
pub(crate) fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let last = list(checkpoints)?.pop();
    // If both exist for a step, the one written on an interrupt adds nothing.
    let stopped = interrupted(checkpoints)?.pop();
    Ok(match (last, stopped) {
        (Some((step, last)), Some((stopped_step, _))) if step >= stopped_step => Some(last),
        (last, stopped) => stopped.or(last).map(|(_, folder)| folder),
    })
}

fn named(checkpoints: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(checkpoints).map_err(Error::io("read", checkpoints))? {
        let entry = entry.map_err(Error::io("read", checkpoints))?;
        let name = entry.file_name();
        if let Some(step) = name.to_string_lossy().strip_prefix(prefix).and_then(|step| step.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}

/// Tensors as a safetensors file.
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

/// The tensors of a safetensors file, in their stored dtypes.
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
            other => return Err(format!("{name} has the unsupported dtype {other:?}")),
        };
        Ok((name.to_owned(), tensor.map_err(|error| error.to_string())?))
    };
    file.iter().map(tensor).collect()
}
