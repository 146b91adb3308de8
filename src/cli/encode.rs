//! `encode`: caches the tokens and text embeddings of a corpus.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    cli::watch::Counted,
    config::Config,
    data::corpus::CorpusFormat,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    tokens::{
        cache,
        encode::{EncodeRequest, encode},
    },
    training::trained::configuration,
};

/// The arguments of `encode`.
#[derive(Clone, Debug, Args)]
pub struct EncodeArguments {
    /// Configuration in JSON: it names the encoders and the columns; an image tokenizer that has to be fitted is fitted
    /// to the first table, as in training.
    #[arg(long, value_name = "FILE", required_unless_present = "run", conflicts_with = "run")]
    pub config: Option<PathBuf>,
    /// A run of `train` or `fit` whose encoders are used instead.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// A corpus of images and captions; may be repeated [default: the configuration's training and validation sets].
    #[arg(long, value_name = "CORPUS")]
    pub data: Vec<PathBuf>,
    /// Read --data as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT", requires = "data")]
    pub format: Option<CorpusFormat>,
    /// Directory of the cache. The same command resumes it, and recomputes damaged shards.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What to cache for captions: embeddings in bf16, embeddings in f32, token ids only (small), or nothing [default:
    /// bf16 for CLIP and T5, none for the built-in hashed encoder].
    #[arg(long, value_name = "KIND")]
    pub text: Option<TextArgument>,
    /// Rows per shard; an interrupted command loses at most one shard.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub shard: u32,
    /// Replace another cache in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Device of the encoders: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Set a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What to cache for captions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TextArgument {
    /// Text embeddings in bfloat16.
    Bf16,
    /// Text embeddings in f32.
    F32,
    /// Token ids only; the encoder runs when embeddings are needed.
    Ids,
    /// Nothing; the encoder runs when embeddings are needed.
    None,
}

impl TextArgument {
    fn kept(self) -> Option<cache::TextKept> {
        match self {
            Self::Bf16 => Some(cache::TextKept::Bf16),
            Self::F32 => Some(cache::TextKept::F32),
            Self::Ids => Some(cache::TextKept::Ids),
            Self::None => None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the cache cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: EncodeArguments, interrupt: &Interrupt) -> Result<()> {
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    let mut config = match (&arguments.config, &arguments.run) {
        (Some(path), _) => Config::load(path, &sets)?,
        (None, Some(run)) => configuration(run, &sets)?,
        (None, None) => return Err(Error::argument("no encoders; pass --config FILE or --run DIR")),
    };
    for table in &arguments.data {
        config.read_as(table, arguments.format);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let request = EncodeRequest {
        config,
        run: arguments.run,
        tables: arguments.data,
        out: arguments.out,
        text: arguments.text.map(TextArgument::kept),
        shard_rows: arguments.shard as usize,
        overwrite: arguments.overwrite,
    };
    let mut progress = Counted::new();
    let summary = encode(&request, interrupt, &mut progress)?;
    super::say(&summary.to_string())
}
