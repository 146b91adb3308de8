//! What decides a job's numbers, as it is kept beside the parts. What they do not depend on is no part of it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    engine::{DType, cuda::DeviceChoice},
    tokens::cache::TokenCache,
};

/// The form of the files in the folder of parts.
pub(super) const FORMAT: u32 = 2;

/// Something that decides a job's numbers.
pub(crate) struct Input {
    /// What it is.
    pub(crate) kind: &'static str,
    /// How messages name it.
    pub(crate) name: String,
    /// What it is known by.
    pub(crate) identity: String,
}

impl Input {
    /// One that is named as its kind.
    pub(crate) fn new(kind: &'static str, identity: impl Into<String>) -> Self {
        Self { kind, name: kind.to_owned(), identity: identity.into() }
    }

    /// A file.
    pub(crate) fn file(kind: &'static str, path: &Path, identity: &str) -> Self {
        Self { kind, name: format!("{kind} {}", path.display()), identity: identity.to_owned() }
    }
}

/// All that decides a job's numbers, as it is kept beside the parts.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) format: u32,
    /// Kinds and identities, in the order in which they are compared. Names may change: a file that was moved is the same.
    inputs: Vec<(String, String)>,
}

impl Job {
    /// That of these inputs.
    pub(super) fn of(inputs: &[Input]) -> Self {
        let inputs = inputs.iter().map(|input| (input.kind.to_owned(), input.identity.clone()));
        Self { format: FORMAT, inputs: inputs.collect() }
    }

    /// The name of the first input that is another one here.
    pub(super) fn first_difference<'a>(&'a self, named: &'a [Input], held: &'a Self) -> &'a str {
        let differs = |at: &usize| held.inputs.get(*at) != self.inputs.get(*at);
        let at = (0..self.inputs.len().max(held.inputs.len())).find(differs).unwrap_or(0);
        let removed = || held.inputs.get(at).map_or("", |(kind, _)| kind);
        named.get(at).map_or_else(removed, |input| &input.name)
    }
}

/// The part of a configuration that decides numbers, and what they are computed in, `None` being the CPU.
pub(crate) fn deciding(config: &Config, cache: Option<&TokenCache>, device: Option<DType>) -> [Input; 3] {
    // Which one of several alike it is does not matter.
    let kind = if config.device == DeviceChoice::Emulated { "emulated" } else { "cuda" };
    let computed = device.map_or_else(|| "processor".to_owned(), |compute| format!("{kind} {compute:?}"));
    // A cache gives what the encoders give, but for states that it rounds.
    let states = if cache.is_some_and(TokenCache::rounds_text) { "bf16" } else { "as encoded" };
    [
        Input::new("the configuration (--set, --config)", config.fingerprint()),
        Input::new("where numbers are computed (--device, fp16)", computed),
        Input::new("the token cache, by what it keeps of captions,", states),
    ]
}
