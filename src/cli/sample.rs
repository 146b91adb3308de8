//! `sample`: generates images from captions.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    cli::watch::Counted,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    files::text::{filled_lines, read_text},
    generator::sample::{ImageLayout, SampleRequest, SampleSettings, geneval_prompts, sample},
    interrupt::Interrupt,
};

/// Layouts of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutName {
    /// One folder, with a grid of all images.
    Flat,
    /// One folder per prompt, as GenEval's scorer reads them.
    Geneval,
}

/// Images per prompt in GenEval.
const GENEVAL_EACH: u32 = 4;

/// The arguments of `sample`.
#[derive(Clone, Debug, Args)]
pub struct SampleArguments {
    /// A run of `fit`, for its newest checkpoint, or one of the folders in its `checkpoints`. Required unless --weights
    /// and --config are given.
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with_all = ["weights", "config"])]
    checkpoint: Option<PathBuf>,
    /// Weights in the released layout (`ar-ckpt*.pth`, safetensors) of a model that was not trained here.
    #[arg(long, value_name = "FILE", requires = "config")]
    weights: Option<PathBuf>,
    /// The configuration of --weights; it names the image tokenizer and the text encoder.
    #[arg(long, value_name = "FILE", requires = "weights")]
    config: Option<PathBuf>,
    /// A caption; may be repeated.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file of captions, one per line; with --layout geneval its file of prompts, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Images per caption [default: 1, or 4 with --layout geneval].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    each: Option<u32>,
    /// Layout of the output.
    #[arg(long, value_enum, default_value = "flat")]
    layout: LayoutName,
    /// Directory for the images, samples.csv and grid.png, or GenEval's folders.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace existing outputs of this command.
    #[arg(long)]
    overwrite: bool,
    /// Classifier-free guidance scale at the finest scale, ramped up from the coarsest; 0 disables it and halves the
    /// time.
    #[arg(long, value_name = "X", allow_negative_numbers = true, default_value_t = SampleSettings::default().guidance)]
    cfg: f64,
    /// Sample from this many of the most likely codes; 0: from all.
    #[arg(long, value_name = "N", default_value_t = SampleSettings::default().top_k)]
    top_k: usize,
    /// Sample from the most likely codes with this total probability; 0: from all.
    #[arg(long, value_name = "P", default_value_t = SampleSettings::default().top_p)]
    top_p: f64,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Images per batch; results do not depend on it, except for the last digits of the logits on a GPU.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Device of the network: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Set a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the output cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: SampleArguments, interrupt: &Interrupt) -> Result<()> {
    let SampleArguments { checkpoint, weights, config, prompt: mut prompts, .. } = arguments;
    let mut layout = ImageLayout::Flat;
    if arguments.layout == LayoutName::Geneval {
        let (Some(path), true) = (&arguments.prompts, prompts.is_empty()) else {
            return Err(Error::argument(
                "--layout geneval takes its prompts from --prompts FILE.jsonl only, whose lines its scorer needs",
            ));
        };
        let (found, metadata) = geneval_prompts(path)?;
        prompts = found;
        layout = ImageLayout::GenEval { metadata };
    } else if let Some(path) = &arguments.prompts {
        let before = prompts.len();
        prompts.extend(filled_lines(&read_text(path)?).map(|(_, line)| line.to_owned()));
        if prompts.len() == before {
            let message = "contains no prompts".to_owned();
            return Err(Error::Table { path: path.clone(), line: None, message });
        }
    }
    let model = checkpoint.or(config).ok_or_else(|| {
        Error::argument("no model; pass --checkpoint DIR, or --config FILE and --weights FILE")
    })?;
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    let size = |number: u32| usize::try_from(number).map_err(|_| Error::argument("a number is too large"));
    let request = SampleRequest {
        model,
        weights,
        sets,
        prompts,
        each: size(arguments.each.unwrap_or(if layout == ImageLayout::Flat { 1 } else { GENEVAL_EACH }))?,
        out: arguments.out,
        overwrite: arguments.overwrite,
        layout,
        batch: size(arguments.batch)?,
        settings: SampleSettings {
            guidance: arguments.cfg,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            seed: arguments.seed,
        },
    };
    let mut progress = Counted::new();
    let summary = sample(&request, interrupt, &mut progress)?;
    super::say(&summary.to_string())
}
