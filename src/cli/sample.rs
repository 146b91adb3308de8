//! `sample`: pictures from captions.

use std::{fs, path::PathBuf};

use clap::Args;

use crate::{
    cli::watch::Counted,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    train::sample::{SampleRequest, SampleSettings, sample},
};

/// The arguments of `sample`.
#[derive(Clone, Debug, Args)]
pub struct SampleArguments {
    /// A run of `fit`, for its newest checkpoint, or one of the folders in its `checkpoints`.
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with_all = ["weights", "config"])]
    checkpoint: Option<PathBuf>,
    /// Weights in the released layout (`ar-ckpt*.pth`, safetensors), for a model that was not fitted here.
    #[arg(long, value_name = "FILE", requires = "config")]
    weights: Option<PathBuf>,
    /// The configuration that goes with --weights; it names the image tokenizer and the text encoder.
    #[arg(long, value_name = "FILE", requires = "weights")]
    config: Option<PathBuf>,
    /// A caption; as often as wanted.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file of captions, one a line.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Pictures of each caption.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    each: u32,
    /// Folder for the pictures, samples.csv and grid.png.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Guidance at the finest scale; it grows with the scale. 0: none, at half the time.
    #[arg(long, value_name = "X", default_value_t = SampleSettings::default().guidance)]
    cfg: f64,
    /// Draw from so many of the likeliest codes; 0: from all.
    #[arg(long, value_name = "N", default_value_t = SampleSettings::default().top_k)]
    top_k: usize,
    /// Draw from the likeliest codes that have this probability together; 0: from all.
    #[arg(long, value_name = "P", default_value_t = SampleSettings::default().top_p)]
    top_p: f64,
    /// Fixes every draw.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Pictures drawn at once; they do not depend on it but, on a device, in the last digits of the logits.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Where the network is: cpu, cuda, cuda:N, emulated or auto; `devices` lists what there is.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Sets a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the pictures from being drawn; [`Error::Interrupted`] when the user stopped it.
pub fn run(arguments: SampleArguments, interrupt: &Interrupt) -> Result<()> {
    let SampleArguments { checkpoint, weights, config, prompt: mut prompts, .. } = arguments;
    if let Some(path) = &arguments.prompts {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let model = checkpoint.or(config).ok_or_else(|| {
        Error::invalid("sample needs --checkpoint DIR, or --config FILE and --weights FILE")
    })?;
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    let size = |number: u32| usize::try_from(number).map_err(|_| Error::invalid("a number is too large"));
    let request = SampleRequest {
        model,
        weights,
        sets,
        prompts,
        each: size(arguments.each)?,
        out: arguments.out,
        batch: size(arguments.batch)?,
        settings: SampleSettings {
            guidance: arguments.cfg,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            seed: arguments.seed,
        },
    };
    let mut progress = Counted::new();
    let summary = sample(&request, interrupt, &mut |done, total| progress.count("drawing", done, total))?;
    super::say(&summary.to_string())
}
