//! The inputs that determine a job's results, stored with the parts. Settings that do not affect the results are
//! not included.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    engine::{DType, cuda::DeviceChoice},
    tokens::cache::TokenCache,
};

/// The format version of the files in the folder of parts.
pub(super) const FORMAT: u32 = 2;

/// An input that determines a job's results.
pub(crate) struct Input {
    /// What it is.
    pub(crate) kind: &'static str,
    /// Its name in messages.
    pub(crate) name: String,
    /// Its digest or value.
    pub(crate) identity: String,
}

impl Input {
    /// An input whose name is its kind.
    pub(crate) fn new(kind: &'static str, identity: impl Into<String>) -> Self {
        Self { kind, name: kind.to_owned(), identity: identity.into() }
    }

    /// A file.
    pub(crate) fn file(kind: &'static str, path: &Path, identity: &str) -> Self {
        Self { kind, name: format!("{kind} {}", path.display()), identity: identity.to_owned() }
    }
}

/// All inputs of a job, as stored with the parts.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) format: u32,
    /// Kinds and identities, in the order of comparison. Names are not compared: a moved file is the same input.
    inputs: Vec<(String, String)>,
}

impl Job {
    /// The job with these inputs.
    pub(super) fn of(inputs: &[Input]) -> Self {
        let inputs = inputs.iter().map(|input| (input.kind.to_owned(), input.identity.clone()));
        Self { format: FORMAT, inputs: inputs.collect() }
    }

    /// The name of the first input that differs from the stored ones.
    pub(super) fn first_difference<'a>(&'a self, named: &'a [Input], stored: &'a Self) -> &'a str {
        let differs = |at: &usize| stored.inputs.get(*at) != self.inputs.get(*at);
        let at = (0..self.inputs.len().max(stored.inputs.len())).find(differs).unwrap_or(0);
        let removed = || stored.inputs.get(at).map_or("", |(kind, _)| kind);
        named.get(at).map_or_else(removed, |input| &input.name)
    }
}

/// The parts of a configuration that determine results, and the compute device and dtype, `None` being the CPU.
pub(crate) fn deciding(config: &Config, cache: Option<&TokenCache>, device: Option<DType>) -> [Input; 3] {
    // The index of the device does not matter.
    let kind = if config.device == DeviceChoice::Emulated { "emulated" } else { "cuda" };
    let computed = device.map_or_else(|| "cpu".to_owned(), |compute| format!("{kind} {compute:?}"));
    // A cache returns the encoders' output, except that it may round text states.
    let states = if cache.is_some_and(TokenCache::rounds_text) { "bf16" } else { "as encoded" };
    [
        Input::new("the configuration (--set, --config)", config.fingerprint()),
        Input::new("the device and the data type (--device, fp16)", computed),
        Input::new("the data type of the cached text states", states),
    ]
}
