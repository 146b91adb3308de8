//! What the fit of one model came to.

use serde::{Deserialize, Serialize};

use crate::{generator::fit::ScaleMeasures, measure::job::Measurement};

/// What a fit came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    /// What it is known by: SHA-256 over configuration, training set and held-out set, shortened.
    pub key: String,
    /// Records trained on.
    pub records: u64,
    /// Epochs over them.
    pub epochs: u64,
    /// Updates.
    pub steps: u64,
    /// Loss on the held-out set at the end; nothing if the run diverged, as with the other measures.
    pub loss: Option<f64>,
    /// The finest scale's.
    pub tail_loss: Option<f64>,
    /// Share of tokens predicted right, in percent.
    pub accuracy: Option<f64>,
    /// The finest scale's.
    pub tail_accuracy: Option<f64>,
    /// By scale, the coarsest first.
    pub scales: Vec<ScaleMeasures>,
    /// Updates and loss on the held-out set, after each epoch.
    pub curve: Vec<(u64, f64)>,
    /// Seconds that it took, over all starts.
    pub seconds: f64,
    /// What was said when the loss was no number any more.
    pub diverged: Option<String>,
    /// What was measured of the images that it draws, where that was asked for.
    #[serde(default, alias = "images", skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Measurement>,
}

impl CellResult {
    /// That of a model which could not be fitted, for what came before it diverged.
    pub(super) fn diverged(records: u64, message: String) -> Self {
        Self {
            key: String::new(),
            records,
            epochs: 0,
            steps: 0,
            loss: None,
            tail_loss: None,
            accuracy: None,
            tail_accuracy: None,
            scales: Vec::new(),
            curve: Vec::new(),
            seconds: 0.0,
            diverged: Some(message),
            images: Vec::new(),
        }
    }
}
