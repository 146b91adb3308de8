//! Checkpoints: one folder per step, `checkpoints/step-00001200/`, written atomically; `interrupted-00001234/` if the
//! run was stopped, until it resumes.
//!
//! | file | contents |
//! | --- | --- |
//! | `proxy.safetensors`, `rater.safetensors` | the weights under their released names |
//! | `optimizer.safetensors` | AdamW's moments: `proxy/first/<name>`, `proxy/second/<name>`, and the other networks' |
//! | `reference.safetensors` | the weights of the reference proxy, for rules that have one, after the warm-up |
//! | `samples.safetensors` | the per-sample records of the run |
//! | `state.json` | counters, fingerprints, the SHA-256 of the other files, of the run's `metrics.jsonl` so far and its recordings, and at the end its own |

pub(crate) mod folder;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use self::folder::{Occasion, damaged};
use crate::{
    engine::{Parameters, Tensor},
    error::Result,
    tokens::encoders::Encoders,
    training::{loss_scale::LossScale, optimizer::AdamW, run_directory::RunFiles},
};

/// The file of a model's weights.
pub(crate) const MODEL: &str = "model.safetensors";

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The state of a checkpoint other than its tensors. Random streams need no state: each is a function of the seed and
/// the step, and so is the sampler's position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointState {
    /// Updates done, which is also the index of the next one.
    pub step: u64,
    /// How many of these updates trained the rater alone; they are the last ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rater_only_steps: u64,
    /// The epoch of the next update.
    pub epoch: u64,
    /// The share of the validation loss in the next update.
    pub upper_level_weight: f64,
    /// The run's seed.
    pub seed: u64,
    /// Updates of the proxy's optimizer.
    pub proxy_optimizer_steps: u64,
    /// Updates of the rater's optimizer.
    pub rater_optimizer_steps: u64,
    /// Updates of the reference proxy's optimizer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_optimizer_steps: Option<u64>,
    /// Loss scaling of the proxy, if enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_loss_scale: Option<LossScale>,
    /// Loss scaling of the rater, if enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rater_loss_scale: Option<LossScale>,
    /// Loss scaling of the reference proxy, if enabled.
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
    /// The version of this program that wrote it.
    pub version: String,
    /// The commit it was built from.
    pub git_hash: String,
}

impl CheckpointState {
    /// Refuses encoders other than those of the checkpoint.
    ///
    /// # Errors
    /// If a fingerprint differs.
    pub(crate) fn expect_encoders(&self, folder: &Path, encoders: &Encoders) -> Result<()> {
        let (tokenizer, text) = (encoders.tokenizer.fingerprint(), encoders.text.fingerprint());
        expect_fingerprint(folder, "image tokenizer", &self.image_tokenizer, &tokenizer)?;
        expect_fingerprint(folder, "text encoder", &self.text_encoder, &text)
    }
}

fn is_zero(steps: &u64) -> bool {
    *steps == 0
}

/// The state of a training run at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The proxy's weights.
    pub proxy: Tensors,
    /// The rater's weights.
    pub rater: Tensors,
    /// All optimizers' moments.
    pub optimizer: Tensors,
    /// The reference proxy's weights, if there is one.
    pub reference: Option<Tensors>,
    /// The per-sample records.
    pub samples: Tensors,
    /// Everything else.
    pub state: CheckpointState,
}

/// The tensor files of every checkpoint.
const FILES: [&str; 4] =
    ["proxy.safetensors", "rater.safetensors", "optimizer.safetensors", "samples.safetensors"];
/// The file of the reference proxy.
const REFERENCE: &str = "reference.safetensors";

impl Checkpoint {
    /// Writes the checkpoint into `checkpoints` and removes all but the `keep` newest. Returns the folder written.
    ///
    /// # Errors
    /// If writing fails; existing checkpoints are unchanged.
    pub fn save(&self, checkpoints: &Path, keep: Option<usize>) -> Result<PathBuf> {
        self.save_on(checkpoints, Occasion { keep, ..Occasion::default() })
    }

    /// Like [`save`](Self::save), on a given occasion.
    pub(crate) fn save_on(&self, checkpoints: &Path, occasion: Occasion<'_>) -> Result<PathBuf> {
        let tensors = [&self.proxy, &self.rater, &self.optimizer, &self.samples];
        let reference = self.reference.as_ref().map(|reference| (REFERENCE, reference));
        let files = FILES.into_iter().zip(tensors).chain(reference);
        folder::write(checkpoints, self.state.step, occasion, files, &self.state)
    }

    /// Reads a checkpoint folder.
    ///
    /// # Errors
    /// If a file is missing, truncated or changed since it was written.
    pub fn load(folder: &Path) -> Result<Self> {
        let opened = open_rating(folder)?;
        let [proxy, rater, optimizer, samples] = FILES.map(|name| opened.tensors(name));
        let reference = match opened.has(REFERENCE) {
            true => Some(opened.tensors(REFERENCE)?),
            false => None,
        };
        Ok(Self {
            proxy: proxy?,
            rater: rater?,
            optimizer: optimizer?,
            reference,
            samples: samples?,
            state: opened.state,
        })
    }

    /// Reads the rater's weights and the state alone, for scoring.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_rater(folder: &Path) -> Result<(Tensors, CheckpointState)> {
        let opened = open_rating(folder)?;
        Ok((opened.tensors(FILES[1])?, opened.state))
    }

    /// The newest checkpoint in `checkpoints`, if any, including ones written on an interrupt. Changes nothing, so a
    /// run can be scored while it trains.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
        if !checkpoints.exists() {
            return Ok(None);
        }
        folder::newest(checkpoints)
    }

    /// The record of the run's other files in a checkpoint.
    ///
    /// # Errors
    /// If it is damaged, or of an older version, which did not record them.
    pub(crate) fn run_files(folder: &Path) -> Result<RunFiles> {
        open_rating(folder)?.run_files().cloned()
    }
}

/// Whether a checkpoint was written by `fit`.
pub(crate) fn is_fit(path: &Path) -> bool {
    path.join(MODEL).exists()
}

/// Opens the checkpoint of a rater; refuses the checkpoint of a model with a message that says so.
fn open_rating(path: &Path) -> Result<folder::Opened<'_, CheckpointState>> {
    if is_fit(path) {
        return Err(damaged(path, "contains a model trained by `fit`, not a rater; pass a run of `train`"));
    }
    folder::open(path)
}

/// The weights of a network, for a checkpoint.
///
/// # Errors
/// If they are on a device that fails.
pub fn weights(parameters: &Parameters) -> Result<Tensors> {
    parameters.iter().map(|(_, name, value)| Ok((name.to_owned(), value.to_host()?))).collect()
}

/// The moments of an optimizer, for a checkpoint, as `network/first/…` and `network/second/…`.
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

/// Restores the weights of a network. `origin` is the checkpoint, for messages.
///
/// # Errors
/// If a tensor is missing, unexpected, or of another shape; the message lists the differences, and nothing is
/// changed.
pub fn restore_weights(origin: &Path, tensors: &Tensors, parameters: &mut Parameters) -> Result<()> {
    let expected: Vec<(String, Vec<usize>)> =
        parameters.iter().map(|(_, name, value)| (name.to_owned(), value.shape().to_vec())).collect();
    compare(origin, tensors, &expected)?;
    for (name, _) in &expected {
        parameters.set(name, &tensors[name])?;
    }
    Ok(())
}

/// Restores the moments of an optimizer; see [`moments`]. Tensors of other networks are ignored.
///
/// # Errors
/// Those of [`restore_weights`].
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

/// Refuses tensors other than those expected, and lists the differences.
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
                complaints.push(format!("{name} has shape {:?} instead of {shape:?}", tensor.shape()));
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

/// Refuses a checkpoint made with other inputs than the current ones, such as another tokenizer.
///
/// # Errors
/// If the fingerprints differ.
pub fn expect_fingerprint(origin: &Path, what: &str, saved: &str, found: &str) -> Result<()> {
    if saved == found {
        return Ok(());
    }
    let short = |fingerprint: &str| fingerprint.chars().take(12).collect::<String>();
    let message = format!(
        "was made with another {what} (fingerprint {} there, {} here); use the one saved with it",
        short(saved),
        short(found)
    );
    Err(damaged(origin, message))
}
