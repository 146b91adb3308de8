//! Configuration: a JSON file with the released keys and our own, and `--set key=value` on top of it.
//!
//! The file becomes a `keys::RawConfig`, in which every key is optional, and that becomes a [`Config`], in which every
//! value is checked and every default filled in. `keys/table.rs` declares the keys, and `docs/config.md` lists them.

mod check;
mod compat;
pub mod keys;
mod nearest;
mod reading;
mod renamed;
pub mod rules;
mod schedule;
mod source;

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use compat::Compat;
pub use rules::{Geometry, RaterObjective, RuleEntry, RuleSettings, Scaling};
pub use schedule::ScheduleShape;

use crate::{
    encode::pretrained,
    engine::{DType, cuda::DeviceChoice, ops::pyramid::Reach},
    error::{Error, Result},
    models::{BackboneConfig, Initialization, Rope},
};
use keys::Effect;
use source::Source;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Fixes every random number.
    pub seed: u64,
    /// Where the networks are.
    pub device: DeviceChoice,
    /// The type of activations on a device; the CPU computes in f32.
    pub compute: DType,
    /// Keep only each block's input for the backward pass.
    pub recompute: bool,
    /// On a device, record a step that comes again and replay it.
    pub cuda_graph: bool,
    /// The run's name.
    pub experiment: String,
    /// The run directory, where the command line names none.
    pub out: Option<PathBuf>,
    /// Where samples come from.
    pub data: DataConfig,
    /// How images become codes.
    pub image_tokenizer: ImageTokenizerConfig,
    /// How captions become text states.
    pub text_encoder: TextEncoderConfig,
    /// Sizes and switches of both networks.
    pub networks: NetworksConfig,
    /// How both are trained.
    pub training: TrainingConfig,
    /// Released behaviors that are switched on.
    pub compat: Compat,
    /// Updates between checkpoints within an epoch; `None`: only at epoch ends.
    pub checkpoint_every: Option<u64>,
    /// Newest checkpoints to keep; `None`: all.
    pub keep_checkpoints: Option<usize>,
    /// Log lines an epoch, at most.
    pub log_lines: u64,
    /// What was accepted but does not do what it says here; one sentence each.
    pub warnings: Vec<String>,
    effective: keys::RawConfig,
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// The training set's table; `None` until one is given.
    pub train: Option<PathBuf>,
    /// The validation set's table.
    pub validation: Option<PathBuf>,
    /// Share of the training set held out for validation where there is no table of it.
    pub validation_portion: Option<f64>,
    /// Which part of the training set is used.
    pub portion: Portion,
    /// Column of the ids.
    pub id_column: String,
    /// Column of the images' paths.
    pub image_column: String,
    /// Column of the captions.
    pub caption_column: String,
    /// Malformed rows of tables are counted as failed instead of ending the job.
    pub skip_bad_rows: bool,
    /// Threads that decode images, at least 1.
    pub workers: usize,
    /// Images with more pixels are refused.
    pub max_pixels: u64,
    /// Images whose pixel data is cut are decoded as far as it goes.
    pub truncated_images: bool,
    /// The folder of a token cache, see [`tokens::cache`](crate::tokens::cache).
    pub token_cache: Option<PathBuf>,
}

impl DataConfig {
    /// The training set's table.
    ///
    /// # Errors
    /// If none is given.
    pub fn train_csv(&self) -> Result<&Path> {
        self.train.as_deref().ok_or_else(|| {
            Error::argument(
                "the configuration names no training set; give its table with --data FILE.csv (or data_args.train_csv_path)",
            )
        })
    }
}

/// Which part of the training set is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Portion {
    /// All of it.
    All,
    /// This share, drawn by the seed (`random_portion_train`).
    Random(f64),
    /// This share, from the top of the table (`rank_portion_train`).
    First(f64),
}

/// Which image tokenizer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTokenizerKind {
    /// Principal components of patches, quantized by k-means: fitted to the training images.
    Pca,
    /// The released VQ-VAE, whose weights are read.
    VqVae,
}

/// How images become codes.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTokenizerConfig {
    /// Which one it is.
    pub kind: ImageTokenizerKind,
    /// Principal components, the channels of a code.
    pub components: usize,
    /// Codes in the vocabulary.
    pub codes: usize,
    /// Training images to fit on, at most.
    pub fit_images: usize,
    /// Folder of a fitted tokenizer to use instead, or the VQ-VAE's weights.
    pub path: Option<PathBuf>,
}

/// How captions become text states.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoderConfig {
    /// Which encoder.
    pub kind: TextEncoderKind,
    /// Folder of a released encoder, or of a saved one to use instead.
    pub path: Option<PathBuf>,
}

/// Which text encoder, and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEncoderKind {
    /// A fixed random vector for every word.
    HashedWords {
        /// Tokens a caption.
        tokens: usize,
        /// Channels of a token's vector.
        channels: usize,
    },
    /// A released encoder; what is `None` is as its folder says.
    Pretrained {
        /// Which one.
        kind: pretrained::EncoderKind,
        /// Tokens a caption.
        tokens: Option<usize>,
        /// Channels of a token's vector, which cannot be chosen, only expected.
        channels: Option<usize>,
    },
}

/// Sizes and switches of both networks.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworksConfig {
    /// Sides of the token maps, growing.
    pub patch_nums: Vec<usize>,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Blocks of the proxy.
    pub proxy_depth: usize,
    /// Channels of the proxy.
    pub proxy_width: usize,
    /// Blocks of the rater.
    pub rater_depth: usize,
    /// Channels of the rater.
    pub rater_width: usize,
    /// Normalize queries and keys.
    pub attention_l2_norm: bool,
    /// Rotary positions, if any.
    pub rope: Option<Rope>,
    /// Add a learned vector a scale.
    pub level_embedding: bool,
    /// Layer norm before the proxy's logits.
    pub logit_norm: bool,
    /// Modulate the norms by the level.
    pub shared_aln: bool,
    /// Cross-attention to the text.
    pub cross_attention: bool,
    /// Start cross-attention projections at 0 (`from_scratch: false`).
    pub zero_cross_attention: bool,
    /// Weights that the proxy, or the model that is fitted, starts from instead of fresh ones.
    pub initial_weights: Option<PathBuf>,
    /// How weights start.
    pub initialization: Initialization,
}

/// Channels of an attention head.
pub(crate) const HEAD_WIDTH: usize = 64;

impl NetworksConfig {
    /// The side of the images, in pixels.
    pub fn image_side(&self) -> usize {
        self.patch_size * self.patch_nums.last().copied().unwrap_or(1)
    }
}

/// Progressive training: the model learns the coarser scales first, as released (`pg`, `pg0`, `pgwp`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progressive {
    /// Share of the run after which all scales are trained.
    pub share: f64,
    /// The newest scale at the start, counted from 0.
    pub first: usize,
    /// Epochs in which the tokens of a new scale come to count in full.
    pub warm_up_epochs: f64,
}

/// How both networks are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingConfig {
    /// Passes over the data.
    pub epochs: u64,
    /// Samples of one batch, `B`.
    pub batch: usize,
    /// Batches whose gradients make one update.
    pub accumulation: usize,
    /// Shape of the learning-rate schedule.
    pub schedule: ScheduleShape,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Epochs of warm-up.
    pub warmup_epochs: f64,
    /// Learning rate at the start of the warm-up, over the peak.
    pub warmup_start: f64,
    /// Learning rate at the end, over the peak.
    pub end: f64,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end.
    pub weight_decay_end: f64,
    /// Largest gradient norm of a network.
    pub clip: Option<f64>,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Whether scales are added as training goes on; `fit` alone.
    pub progressive: Option<Progressive>,
    /// Tokens of a sample that a step trains on, the others being dropped at random from the finest scale; `fit` alone.
    pub drop_scale_length: Option<usize>,
    /// Share of the validation loss in the proxy's loss, in the first epoch.
    pub upper_level_weight: f64,
    /// Taken off that at every later epoch.
    pub upper_level_weight_decay: f64,
    /// Share of captions replaced by the empty one.
    pub caption_drop: f64,
    /// Divides the rater's logits.
    pub rater_temperature: f64,
    /// Add the released entropy term to the rater's loss.
    pub rater_regularization: bool,
    /// Do not train the proxy.
    pub freeze_proxy: bool,
    /// Added to the sampler's seed.
    pub sampler_seed: u64,
    /// By which rule the rater learns, and how.
    pub rule: RuleSettings,
    /// Epochs at the start in which the proxy learns from the training samples alone, and the rater not at all (eq. 4).
    pub proxy_warmup_epochs: u64,
    /// The first epoch, counted from 0, whose constants enter the running averages; those of earlier ones are replaced.
    pub average_from_epoch: u64,
    /// Epochs at the end in which the rater alone learns, from averages that do not change any more.
    pub rater_only_epochs: u64,
    /// Epochs between two recordings of what was measured of each sample; `None`: never.
    pub record_every: Option<u64>,
    /// Measure the norm of each training sample's gradient in the epochs that are recorded.
    pub record_norms: bool,
}

impl Config {
    /// The files and folders that it names to be read. They are no place for an output.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let DataConfig { train, validation, token_cache, .. } = &self.data;
        let (image, text) = (&self.image_tokenizer.path, &self.text_encoder.path);
        let named = [train, validation, token_cache, image, text, &self.networks.initial_weights];
        named.into_iter().flatten().cloned().collect()
    }

    /// Reads a file and applies `--set` arguments (`key=value`, the value in JSON or bare) in order.
    ///
    /// # Errors
    /// If the file cannot be read, or a key or a value cannot be used: the message names it and the cure.
    pub fn load(path: impl AsRef<Path>, sets: &[String]) -> Result<Self> {
        check::check(Source::read(path.as_ref(), sets)?)
    }

    /// As [`load`](Self::load), from text; `name` stands for the file in messages.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        check::check(Source::parse(name, text, sets)?)
    }

    /// Reads what a run or a comparison kept. Names that have changed since are read under the new ones, with a warning.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub(crate) fn parse_kept(name: &str, text: &str) -> Result<Self> {
        check::check(Source::parse_kept(name, text)?)
    }

    /// The effective configuration: every key with the value that holds. Read again, it gives this configuration.
    pub fn to_json(&self) -> Value {
        // Strings, numbers and lists cannot fail to become JSON.
        serde_json::to_value(&self.effective).unwrap_or_default()
    }

    /// SHA-256 over every value that changes results: a run can only be resumed under the same fingerprint.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in self.significant() {
            hash.update(format!("{key}={value}\n"));
        }
        crate::files::hexadecimal(&hash.finalize())
    }

    /// The first key whose value changes results and differs: (key, value here, value there).
    pub fn first_difference(&self, other: &Self) -> Option<(String, String, String)> {
        let (here, there) = (self.significant(), other.significant());
        here.into_iter()
            .zip(there)
            .find(|(here, there)| here != there)
            .map(|((key, here), (_, there))| (key, here, there))
    }

    /// Dotted key and value of everything that changes results, in order: first what stands in no group, then the rest.
    fn significant(&self) -> Vec<(String, String)> {
        let json = self.to_json();
        let (mut values, mut nested) = (Vec::new(), Vec::new());
        for key in keys::KEYS {
            let (name, list) = match (key.effect, key.name.split_once('.')) {
                (Effect::Harmless, _) => continue,
                (Effect::ResultsAsGroup, Some((group, _))) => (group, &mut values),
                (Effect::Results, Some(_)) => (key.name, &mut nested),
                (_, None) => (key.name, &mut values),
            };
            let value = name.split('.').try_fold(&json, |at, part| at.get(part)).unwrap_or(&Value::Null);
            list.push((name.to_owned(), value.to_string()));
        }
        // A group's keys follow each other.
        values.dedup();
        values.append(&mut nested);
        values
    }

    /// What the rater sees of each scale.
    pub(crate) fn rater_reach(&self) -> Reach {
        self.compat.rater_reach()
    }

    /// The proxy's backbone, for a tokenizer of `vocabulary` codes of `code_channels` channels and an encoder of
    /// `text_channels` channels.
    pub fn proxy_backbone(
        &self,
        vocabulary: usize,
        code_channels: usize,
        text_channels: usize,
    ) -> BackboneConfig {
        let networks = &self.networks;
        self.backbone(networks.proxy_depth, networks.proxy_width, vocabulary, code_channels, text_channels)
    }

    /// The rater's backbone; see [`proxy_backbone`](Self::proxy_backbone).
    pub(crate) fn rater_backbone(
        &self,
        vocabulary: usize,
        code_channels: usize,
        text_channels: usize,
    ) -> BackboneConfig {
        let networks = &self.networks;
        self.backbone(networks.rater_depth, networks.rater_width, vocabulary, code_channels, text_channels)
    }

    fn backbone(
        &self,
        depth: usize,
        width: usize,
        vocabulary: usize,
        code_channels: usize,
        text_channels: usize,
    ) -> BackboneConfig {
        let networks = &self.networks;
        BackboneConfig {
            patch_nums: networks.patch_nums.clone(),
            vocabulary,
            code_channels,
            text_channels,
            depth,
            width,
            heads: width / HEAD_WIDTH,
            mlp_ratio: 4.0,
            attention_l2_norm: networks.attention_l2_norm,
            rope: networks.rope,
            level_embedding: networks.level_embedding,
            logit_norm: networks.logit_norm,
            shared_aln: networks.shared_aln,
            cross_attention: networks.cross_attention,
            drop_path: 0.1 * depth as f64 / 24.0,
            cross_from_first_sample: self.compat.cross_attention_first_sample,
            initialization: networks.initialization,
        }
    }
}
