//! `attribute`: relates each record's gradient to the validation gradient.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    cli::watch::Counted,
    config::Geometry,
    data::corpus::CorpusFormat,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    rater::attribute,
};

/// The geometry of the inner product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GeometryArgument {
    /// The validation gradient V.
    Sgd,
    /// V / (√v̂ + ε), v̂ being the second moment of the checkpoint's optimizer.
    Adamw,
}

/// The arguments of `attribute`.
#[derive(Clone, Debug, Args)]
pub struct AttributeArguments {
    /// A run of `train` under a meta-gradient rule, for its newest checkpoint, or one or more of the folders in its `checkpoints`.
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    pub checkpoint: Vec<PathBuf>,
    /// Use all checkpoints of the run (`keep_checkpoints` in its configuration sets how many there are).
    #[arg(long)]
    pub every: bool,
    /// The corpus; docs/formats.md lists the supported formats.
    #[arg(long, value_name = "CORPUS")]
    pub data: PathBuf,
    /// The validation set, also a corpus; V is the gradient of its mean loss.
    #[arg(long, value_name = "CORPUS")]
    pub validation: PathBuf,
    /// Read both as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<CorpusFormat>,
    /// Output, .csv or .parquet. Failed records go to `NAME.failed.csv` in the same directory.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The vector whose inner product with each record's gradient is taken.
    #[arg(long, value_enum, default_value_t = GeometryArgument::Sgd)]
    pub geometry: GeometryArgument,
    /// Batch size. Results do not depend on it, except for the last digits on a GPU.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Replace an existing output.
    #[arg(long)]
    pub overwrite: bool,
    /// Device of the proxy: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Set a key of the run's configuration, such as columns.caption=text or workers=8.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the output cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: AttributeArguments, interrupt: &Interrupt) -> Result<()> {
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    let request = attribute::AttributeRequest {
        checkpoints: arguments.checkpoint,
        every: arguments.every,
        corpus: arguments.data,
        validation: arguments.validation,
        format: arguments.format,
        out: arguments.out,
        geometry: match arguments.geometry {
            GeometryArgument::Sgd => Geometry::Sgd,
            GeometryArgument::Adamw => Geometry::AdamW,
        },
        batch: usize::try_from(arguments.batch).map_err(|_| Error::argument("--batch is too large"))?,
        overwrite: arguments.overwrite,
        sets,
    };
    let mut progress = Counted::new();
    let summary = attribute::attribute(&request, interrupt, &mut progress)?;
    super::say(&summary.to_string())
}
