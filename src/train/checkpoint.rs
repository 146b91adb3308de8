//! Checkpoints: a folder a step, `checkpoints/step-00001200/`, that appears whole or not at all.
//!
//! | file | holds |
//! | --- | --- |
//! | `proxy.safetensors`, `rater.safetensors` | the weights under their released names |
//! | `optimizer.safetensors` | AdamW's moments: `proxy/first/<name>`, `proxy/second/<name>`, and the other networks' |
//! | `reference.safetensors` | the weights of the reference proxy, for rules that have one, after the warm-up |
//! | `samples.safetensors` | what the run knows of each training sample |
//! | `state.json` | counters, fingerprints, and the SHA-256 of the other files |

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{loss_scale::LossScale, optimizer::AdamW};
use crate::{
    engine::{Parameters, Storage, Tensor},
    error::{Error, Result},
    files::{PendingFolder, remove_folder, sha256},
};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The form of `state.json` that this version writes.
const FORMAT: u32 = 2;
/// The file of counters and fingerprints.
const STATE: &str = "state.json";
/// What the folders' names begin with.
const PREFIX: &str = "step-";

/// Everything of a checkpoint that is not a tensor. Random numbers need no state: each is a function of the seed and
/// the step, and so is the sampler's position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Updates done; the next one is this, counted from 0.
    pub step: u64,
    /// The epoch of the next update.
    pub epoch: u64,
    /// The share of the validation loss at the next update.
    pub upper_level_weight: f64,
    /// The run's seed.
    pub seed: u64,
    /// Updates that the proxy's optimiser has done.
    pub proxy_optimizer_steps: u64,
    /// Updates that the rater's optimiser has done.
    pub rater_optimizer_steps: u64,
    /// Updates that the reference proxy's optimiser has done, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_optimizer_steps: Option<u64>,
    /// Scaling of the proxy's losses, where there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_loss_scale: Option<LossScale>,
    /// Scaling of the rater's losses, where there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rater_loss_scale: Option<LossScale>,
    /// Scaling of the reference proxy's losses, where there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_loss_scale: Option<LossScale>,
    /// [`Config::fingerprint`](crate::config::Config::fingerprint).
    pub config: String,
    /// Fingerprint of the image tokenizer.
    pub image_tokenizer: String,
    /// Fingerprint of the text encoder.
    pub text_encoder: String,
    /// Fingerprint of the samples and their order.
    pub data: String,
    /// The version that wrote it.
    pub version: String,
    /// The commit it was built from.
    pub git_hash: String,
}

/// The whole of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    format: u32,
    state: State,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// A training run at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The proxy's weights.
    pub proxy: Tensors,
    /// The rater's weights.
    pub rater: Tensors,
    /// All optimisers' moments.
    pub optimizer: Tensors,
    /// The reference proxy's weights, where there is one.
    pub reference: Option<Tensors>,
    /// What the run knows of each training sample.
    pub samples: Tensors,
    /// The rest.
    pub state: State,
}

/// The files of tensors that every checkpoint has.
const FILES: [&str; 4] =
    ["proxy.safetensors", "rater.safetensors", "optimizer.safetensors", "samples.safetensors"];
/// The file of the reference proxy.
const REFERENCE: &str = "reference.safetensors";

impl Checkpoint {
    /// Writes the checkpoint into `checkpoints`, the folder of all of them, and removes all but the `keep` newest.
    /// Gives the folder written.
    ///
    /// # Errors
    /// If writing fails; checkpoints that were there stay as they are.
    pub fn save(&self, checkpoints: &Path, keep: Option<usize>) -> Result<PathBuf> {
        let target = checkpoints.join(format!("{PREFIX}{:08}", self.state.step));
        let pending = PendingFolder::new(&target)?;
        let mut files = BTreeMap::new();
        let tensors = [&self.proxy, &self.rater, &self.optimizer, &self.samples];
        let reference = self.reference.as_ref().map(|reference| (REFERENCE, reference));
        for (name, tensors) in FILES.into_iter().zip(tensors).chain(reference) {
            let bytes = to_safetensors(tensors).map_err(|message| damaged(&target.join(name), message))?;
            files.insert(name.to_owned(), FileRecord { bytes: bytes.len() as u64, sha256: sha256(&bytes) });
            pending.write(name, &bytes)?;
        }
        let state = StateFile { format: FORMAT, state: self.state.clone(), files };
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

    /// Reads a checkpoint's folder.
    ///
    /// # Errors
    /// If a file is missing, truncated or changed since it was written.
    pub fn load(folder: &Path) -> Result<Self> {
        let state = read_state(folder)?;
        let [proxy, rater, optimizer, samples] = FILES.map(|name| read_file(folder, name, &state));
        let reference = match state.files.contains_key(REFERENCE) {
            true => Some(read_file(folder, REFERENCE, &state)?),
            false => None,
        };
        Ok(Self {
            proxy: proxy?,
            rater: rater?,
            optimizer: optimizer?,
            reference,
            samples: samples?,
            state: state.state,
        })
    }

    /// The rater's weights and the state alone, for scoring.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_rater(folder: &Path) -> Result<(Tensors, State)> {
        let state = read_state(folder)?;
        Ok((read_file(folder, FILES[1], &state)?, state.state))
    }

    /// The newest checkpoint among `checkpoints`, if there is one. Nothing is changed there: a run that is still being
    /// trained can be scored.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
        if !checkpoints.exists() {
            return Ok(None);
        }
        Ok(list(checkpoints)?.pop().map(|(_, folder)| folder))
    }
}

/// The checkpoints' steps and folders, oldest first.
fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
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

fn read_state(folder: &Path) -> Result<StateFile> {
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
    serde_json::from_slice(&bytes).map_err(unreadable)
}

fn read_file(folder: &Path, name: &str, state: &StateFile) -> Result<Tensors> {
    let path = folder.join(name);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    let cure = "remove the folder to use an older checkpoint";
    let Some(record) = state.files.get(name) else {
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

fn damaged(path: &Path, message: impl Into<String>) -> Error {
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

/// A network's weights, to be saved.
///
/// # Errors
/// If they are on a device that fails.
pub fn weights(parameters: &Parameters) -> Result<Tensors> {
    parameters.iter().map(|(_, name, value)| Ok((name.to_owned(), value.to_host()?))).collect()
}

/// An optimiser's moments, to be saved under `network/first/…` and `network/second/…`.
///
/// # Errors
/// If they are on a device that fails.
pub fn moments(network: &str, parameters: &Parameters, optimizer: &AdamW) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (id, name, _) in parameters.iter() {
        let (first, second) = optimizer.moments(id);
        tensors.insert(format!("{network}/first/{name}"), first.to_host()?);
        tensors.insert(format!("{network}/second/{name}"), second.to_host()?);
    }
    Ok(tensors)
}

/// Puts saved weights into a network. `origin` is the checkpoint, for messages.
///
/// # Errors
/// If a tensor is missing, surplus, or of another shape; all of them are named, and nothing is changed.
pub fn restore_weights(origin: &Path, tensors: &Tensors, parameters: &mut Parameters) -> Result<()> {
    let expected: Vec<(String, Vec<usize>)> =
        parameters.iter().map(|(_, name, value)| (name.to_owned(), value.shape().to_vec())).collect();
    compare(origin, tensors, &expected)?;
    for (name, _) in &expected {
        parameters.set(name, &tensors[name])?;
    }
    Ok(())
}

/// Puts saved moments into an optimiser; see [`moments`]. Tensors of other networks are passed over.
///
/// # Errors
/// As for [`restore_weights`].
pub fn restore_moments(
    origin: &Path,
    network: &str,
    tensors: &Tensors,
    parameters: &Parameters,
    optimizer: &mut AdamW,
) -> Result<()> {
    let prefix = format!("{network}/");
    let own: Tensors = tensors
        .iter()
        .filter(|(name, _)| name.starts_with(&prefix))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut expected = Vec::new();
    for moment in ["first", "second"] {
        for (_, name, value) in parameters.iter() {
            expected.push((format!("{network}/{moment}/{name}"), value.shape().to_vec()));
        }
    }
    compare(origin, &own, &expected)?;
    for (id, name, _) in parameters.iter() {
        let [first, second] = ["first", "second"].map(|moment| &own[&format!("{network}/{moment}/{name}")]);
        optimizer.restore(id, first, second)?;
    }
    Ok(())
}

/// Refuses tensors that are not exactly those expected, naming every difference.
fn compare(origin: &Path, tensors: &Tensors, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let names: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let surplus: Vec<&str> =
        tensors.keys().map(String::as_str).filter(|name| !names.contains(name)).collect();
    let mut complaints = Vec::new();
    for (name, shape) in expected {
        match tensors.get(name) {
            None => {
                let nearest = surplus
                    .iter()
                    .map(|other| (strsim::jaro_winkler(name, other), other))
                    .max_by(|left, right| left.0.total_cmp(&right.0));
                complaints.push(match nearest {
                    Some((likeness, other)) if likeness > 0.8 => {
                        format!("{name} is missing (there is {other})")
                    }
                    _ => format!("{name} is missing"),
                });
            }
            Some(tensor) if tensor.shape() != shape => {
                complaints.push(format!("{name} has the shape {:?} instead of {shape:?}", tensor.shape()));
            }
            Some(_) => {}
        }
    }
    complaints.extend(surplus.iter().map(|name| format!("{name} is not part of the network")));
    if complaints.is_empty() {
        return Ok(());
    }
    const SHOWN: usize = 8;
    let more = complaints.len().saturating_sub(SHOWN);
    complaints.truncate(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let message = format!("does not fit the network of this configuration: {}{more}", complaints.join("; "));
    Err(damaged(origin, message))
}

/// Refuses a checkpoint that was made with something else than what is there now, such as another tokenizer.
///
/// # Errors
/// If the fingerprints differ.
pub fn expect_fingerprint(origin: &Path, what: &str, saved: &str, found: &str) -> Result<()> {
    if saved == found {
        return Ok(());
    }
    let short = |fingerprint: &str| fingerprint.chars().take(12).collect::<String>();
    let message = format!(
        "was made with another {what} (fingerprint {} there, {} here); use the one that was saved with it",
        short(saved),
        short(found)
    );
    Err(damaged(origin, message))
}
