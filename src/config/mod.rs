//! Configuration: a JSON file with the upstream keys and this project's own, overridden by `--set key=value`.
//!
//! The file is parsed into a `keys::RawConfig`, where every key is optional, and checked into a [`Config`], where
//! every value is valid and every default filled in. `keys/table.rs` declares the keys; `docs/config.md` lists them.

mod check;
mod compat;
pub mod keys;
mod nearest;
mod reading;
mod renamed;
pub mod rules;
mod schedule;
mod source;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use compat::Compat;
pub use rules::{Geometry, RaterObjective, RuleEntry, RuleSettings, Scaling};
pub use schedule::ScheduleShape;

use crate::{
    data::corpus::CorpusFormat,
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
    /// The seed of all random streams.
    pub seed: u64,
    /// The device of the networks.
    pub device: DeviceChoice,
    /// The dtype of activations on a device; the CPU computes in f32.
    pub compute: DType,
    /// Keep only each block's input for the backward pass and recompute the rest (gradient checkpointing).
    pub recompute: bool,
    /// On a device, record a repeated step as a graph and replay it.
    pub cuda_graph: bool,
    /// The name of the run.
    pub experiment: String,
    /// The run directory, unless the command line gives one.
    pub out: Option<PathBuf>,
    /// The data sets.
    pub data: DataConfig,
    /// The image tokenizer.
    pub image_tokenizer: ImageTokenizerConfig,
    /// The text encoder.
    pub text_encoder: TextEncoderConfig,
    /// The architecture of both networks.
    pub networks: NetworksConfig,
    /// How both networks are trained.
    pub training: TrainingConfig,
    /// The proxies that evaluate captions.
    pub crossfit: CrossfitConfig,
    /// The upstream behaviors that are switched on.
    pub compat: Compat,
    /// Updates between checkpoints within an epoch; `None`: only at epoch ends.
    pub checkpoint_every: Option<u64>,
    /// Newest checkpoints to keep; `None`: all.
    pub keep_checkpoints: Option<usize>,
    /// The largest number of log lines per epoch.
    pub log_lines: u64,
    /// One sentence for each accepted key that has no effect, or an effect that its name does not suggest.
    pub warnings: Vec<String>,
    effective: keys::RawConfig,
}

/// The data sets.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// The table of the training set; `None` until one is given.
    pub train: Option<PathBuf>,
    /// The table of the validation set.
    pub validation: Option<PathBuf>,
    /// Share of the training set held out for validation when there is no validation table.
    pub validation_portion: Option<f64>,
    /// Which part of the training set is used.
    pub portion: Portion,
    /// Column of the ids.
    pub id_column: String,
    /// Column of the image paths.
    pub image_column: String,
    /// Column of the captions.
    pub caption_column: String,
    /// Count malformed rows as failed instead of ending the job.
    pub skip_bad_rows: bool,
    /// Threads that decode images, at least 1.
    pub workers: usize,
    /// The largest number of pixels of an image.
    pub max_pixels: u64,
    /// Decode truncated images as far as their data goes.
    pub truncated_images: bool,
    /// The folder of a token cache, see [`tokens::cache`](crate::tokens::cache).
    pub token_cache: Option<PathBuf>,
    /// The formats of corpora, by path; those of others are detected.
    pub formats: BTreeMap<PathBuf, CorpusFormat>,
}

impl DataConfig {
    /// The table of the training set.
    ///
    /// # Errors
    /// If none is given.
    pub fn train_csv(&self) -> Result<&Path> {
        self.train.as_deref().ok_or_else(|| {
            Error::argument("no training set; pass --data FILE.csv or set data_args.train_csv_path")
        })
    }
}

/// Which part of the training set is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Portion {
    /// All of it.
    All,
    /// A random share, fixed by the seed (`random_portion_train`).
    Random(f64),
    /// A share from the top of the table (`rank_portion_train`).
    First(f64),
}

/// The kinds of image tokenizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTokenizerKind {
    /// Principal components of patches, quantized by k-means, fitted on the training images.
    Pca,
    /// The released VQ-VAE with its pretrained weights.
    VqVae,
}

/// The image tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTokenizerConfig {
    /// Its kind.
    pub kind: ImageTokenizerKind,
    /// Principal components, which are the channels of a code.
    pub components: usize,
    /// Codes in the vocabulary.
    pub codes: usize,
    /// The largest number of training images to fit on.
    pub fit_images: usize,
    /// Folder of a fitted tokenizer to use instead, or the weights of the VQ-VAE.
    pub path: Option<PathBuf>,
}

/// The text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoderConfig {
    /// Its kind.
    pub kind: TextEncoderKind,
    /// Folder of a released encoder, or of a saved one to use instead.
    pub path: Option<PathBuf>,
}

/// The kinds of text encoders, with their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEncoderKind {
    /// A fixed random vector per word.
    HashedWords {
        /// Tokens per caption.
        tokens: usize,
        /// Channels of a token's vector.
        channels: usize,
    },
    /// A pretrained encoder; `None` takes the value from its folder.
    Pretrained {
        /// Which encoder.
        kind: pretrained::EncoderKind,
        /// Tokens per caption.
        tokens: Option<usize>,
        /// Channels of a token's vector: the value the folder must have.
        channels: Option<usize>,
    },
}

/// The architecture of both networks.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworksConfig {
    /// Sides of the token maps, increasing.
    pub patch_nums: Vec<usize>,
    /// Side of a patch in pixels.
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
    /// Rotary position embedding (RoPE), if enabled.
    pub rope: Option<Rope>,
    /// Add a learned embedding per scale.
    pub level_embedding: bool,
    /// Layer norm before the proxy's head.
    pub logit_norm: bool,
    /// Adaptive layer norm: modulate the norms by the level, shared by all blocks.
    pub shared_aln: bool,
    /// Cross-attention to the text.
    pub cross_attention: bool,
    /// Initialize the cross-attention projections to 0 (`from_scratch: false`).
    pub zero_cross_attention: bool,
    /// Initial weights of the proxy or of the model of `fit`, instead of random ones.
    pub initial_weights: Option<PathBuf>,
    /// Initialization of the weights.
    pub initialization: Initialization,
}

/// Channels per attention head.
pub(crate) const HEAD_WIDTH: usize = 64;

impl NetworksConfig {
    /// The side of the images, in pixels.
    pub fn image_side(&self) -> usize {
        self.patch_size * self.patch_nums.last().copied().unwrap_or(1)
    }
}

/// Progressive training: the model learns the coarser scales first, as upstream (`pg`, `pg0`, `pgwp`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progressive {
    /// Share of the run after which all scales are trained.
    pub share: f64,
    /// The newest scale at the start, counted from 0.
    pub first: usize,
    /// Epochs over which the loss weight of a new scale rises to 1.
    pub warm_up_epochs: f64,
}

/// Cross-fitting: the proxies that evaluate captions, for rules that need the caption gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossfitConfig {
    /// Folds of the training set.
    pub folds: usize,
    /// Epochs of each proxy, at most.
    pub epochs: u64,
    /// Epochs without a lower loss after which a proxy's training stops.
    pub patience: u64,
    /// Other captions that a caption is compared with.
    pub captions: usize,
}

/// How both networks are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingConfig {
    /// Passes over the data.
    pub epochs: u64,
    /// Samples of one batch, `B`.
    pub batch: usize,
    /// Batches whose gradients are accumulated in one update.
    pub accumulation: usize,
    /// Shape of the learning-rate schedule.
    pub schedule: ScheduleShape,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Warm-up epochs.
    pub warmup_epochs: f64,
    /// Learning rate at the start of the warm-up, relative to the peak.
    pub warmup_start: f64,
    /// Final learning rate, relative to the peak.
    pub end: f64,
    /// Initial weight decay.
    pub weight_decay: f64,
    /// Final weight decay.
    pub weight_decay_end: f64,
    /// Gradient clipping: the largest norm per network.
    pub clip: Option<f64>,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Progressive training; `fit` only.
    pub progressive: Option<Progressive>,
    /// Tokens per sample that a step trains on; the others are dropped at random from the finest scale; `fit` only.
    pub drop_scale_length: Option<usize>,
    /// Share of the validation loss in the proxy's loss in the first epoch.
    pub upper_level_weight: f64,
    /// Decrease of that share per epoch.
    pub upper_level_weight_decay: f64,
    /// Share of captions replaced by the empty one.
    pub caption_drop: f64,
    /// Temperature that divides the rater's logits.
    pub rater_temperature: f64,
    /// Add the upstream entropy term to the rater's loss.
    pub rater_regularization: bool,
    /// Freeze the proxy.
    pub freeze_proxy: bool,
    /// Added to the sampler's seed.
    pub sampler_seed: u64,
    /// The rule, its scaling and geometry, and the rater's objective.
    pub rule: RuleSettings,
    /// Epochs at the start in which the proxy is trained on the training samples alone and the rater is not trained
    /// (eq. 4).
    pub proxy_warmup_epochs: u64,
    /// The first epoch, counted from 0, whose constants enter the running averages; values of earlier epochs are
    /// replaced.
    pub average_from_epoch: u64,
    /// Epochs at the end in which the rater alone is trained, on averages that no longer change.
    pub rater_only_epochs: u64,
    /// Epochs between two recordings of the measurements of each sample; `None`: never.
    pub record_every: Option<u64>,
    /// Measure the norm of each training sample's gradient in the recorded epochs.
    pub record_norms: bool,
}

impl Config {
    /// The input files and folders that the configuration names; no output may overwrite them.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let DataConfig { train, validation, token_cache, .. } = &self.data;
        let (image, text) = (&self.image_tokenizer.path, &self.text_encoder.path);
        let corpora = [train, validation].into_iter().flatten().flat_map(|path| self.corpus_inputs(path));
        let named = [token_cache, image, text, &self.networks.initial_weights];
        corpora.chain(named.into_iter().flatten().cloned()).collect()
    }

    /// Reads a file and applies `--set` arguments (`key=value`, the value in JSON or bare) in order.
    ///
    /// # Errors
    /// If the file cannot be read, a key does not exist, or a value is not accepted; the message names the key and
    /// the fix.
    pub fn load(path: impl AsRef<Path>, sets: &[String]) -> Result<Self> {
        check::check(Source::read(path.as_ref(), sets)?)
    }

    /// Like [`load`](Self::load), from text; `name` is the name of the file in messages.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        check::check(Source::parse(name, text, sets)?)
    }

    /// Parses the configuration stored by a run or a comparison. Keys under former names are accepted with a warning.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub(crate) fn parse_kept(name: &str, text: &str) -> Result<Self> {
        check::check(Source::parse_kept(name, text)?)
    }

    /// The first former name of a key, or of a value, in the text of a stored configuration, with its current name.
    pub(crate) fn first_former_name(text: &str) -> Option<String> {
        renamed::first_former(&serde_json::from_str(text).ok()?)
    }

    /// The effective configuration: every key with its value. Parsing it reproduces this configuration.
    pub fn to_json(&self) -> Value {
        // Strings, numbers and lists always convert to JSON.
        serde_json::to_value(&self.effective).unwrap_or_default()
    }

    /// SHA-256 over every value that affects results. A run resumes only with the same fingerprint.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in self.significant() {
            hash.update(format!("{key}={value}\n"));
        }
        crate::files::hexadecimal(&hash.finalize())
    }

    /// The first of the [`differences`](Self::differences).
    pub fn first_difference(&self, other: &Self) -> Option<(String, String, String)> {
        self.differences(other).into_iter().next()
    }

    /// The keys that affect results and differ: (key, value here, value there).
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        self.significant()
            .into_iter()
            .zip(other.significant())
            .filter(|(here, there)| here != there)
            .map(|((key, here), (_, there))| (key, here, there))
            .collect()
    }

    /// Dotted key and value of everything that affects results: top-level keys first, then the groups.
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
        // The keys of a group are adjacent.
        values.dedup();
        values.append(&mut nested);
        values
    }

    /// The input that the rater reads at each scale.
    pub(crate) fn rater_reach(&self) -> Reach {
        self.compat.rater_reach()
    }

    /// The backbone of the proxy, for a tokenizer of `vocabulary` codes with `code_channels` channels and an encoder
    /// with `text_channels` channels.
    pub fn proxy_backbone(
        &self,
        vocabulary: usize,
        code_channels: usize,
        text_channels: usize,
    ) -> BackboneConfig {
        let networks = &self.networks;
        self.backbone(networks.proxy_depth, networks.proxy_width, vocabulary, code_channels, text_channels)
    }

    /// The backbone of the rater; see [`proxy_backbone`](Self::proxy_backbone).
    pub fn rater_backbone(
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
