//! The result of one model.

use serde::{Deserialize, Serialize};

use crate::{generator::fit::ScaleMeasures, measure::job::Measurement};

/// The result of training one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    /// The model's key: shortened SHA-256 over configuration, training set and held-out set.
    pub key: String,
    /// Records trained on.
    pub records: u64,
    /// Epochs over them.
    pub epochs: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Final loss on the held-out set; `None` if the run diverged, as for the other measures.
    pub loss: Option<f64>,
    /// Final loss at the finest scale.
    pub tail_loss: Option<f64>,
    /// Accuracy of the predicted tokens, in percent.
    pub accuracy: Option<f64>,
    /// Accuracy at the finest scale.
    pub tail_accuracy: Option<f64>,
    /// How much better the model predicts held-out images with their own captions than with others, in nats per token,
    /// averaged per scale and then over the scales.
    #[serde(default)]
    pub caption_gain: Option<f64>,
    /// Measures by scale, coarsest first.
    pub scales: Vec<ScaleMeasures>,
    /// Steps and held-out loss after each epoch.
    pub curve: Vec<(u64, f64)>,
    /// Training time in seconds, over all starts.
    pub seconds: f64,
    /// The error, if the loss became non-finite.
    pub diverged: Option<String>,
    /// Measures of the generated images, if any.
    #[serde(default, alias = "images", skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Measurement>,
}

impl CellResult {
    /// The result of a model that diverged before it could be measured.
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
            caption_gain: None,
            scales: Vec::new(),
            curve: Vec::new(),
            seconds: 0.0,
            diverged: Some(message),
            images: Vec::new(),
        }
    }
}
