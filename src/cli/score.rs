//! `score`: rates every pair of a corpus.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::watch::Counted,
    data::corpus::CorpusFormat,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    rater::scorer,
};

/// The arguments of `score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArguments {
    /// A run directory, for its newest checkpoint, or one of the folders in its `checkpoints`; with --config, a
    /// checkpoint of the released code (`ar-ckpt*.pth`) or a file of the rater's weights.
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    /// The configuration of a rater that was not trained here; it names the image tokenizer and the text encoder.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The corpus; docs/formats.md lists the supported formats.
    #[arg(long, value_name = "CORPUS")]
    pub data: PathBuf,
    /// Read the corpus as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<CorpusFormat>,
    /// Output, .csv or .parquet. Failed records go to `NAME.failed.csv` in the same directory.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The name of the rating column; must not be a column of the corpus.
    #[arg(long, value_name = "NAME", default_value = "rating")]
    pub rating_column: String,
    /// Batch size. Unless --batch-normalized is given, ratings do not depend on it, except for the last digits on a
    /// GPU.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Use the released rating: a softmax over each batch times the batch's score. It depends on which records share a
    /// batch.
    #[arg(long)]
    pub batch_normalized: bool,
    /// Rate with the rater also under the rules `norm-gain` and `gain`. By default, records of the run then keep the rating
    /// that was measured by cross-fitting, and the proxies of the folds evaluate the others. The rater is faster, and
    /// approximates them.
    #[arg(long)]
    pub by_rater: bool,
    /// Replace an existing output.
    #[arg(long)]
    pub overwrite: bool,
    /// A column of the corpus to show before each caption on the contact sheet.
    #[arg(long, value_name = "COLUMN")]
    pub note_column: Option<String>,
    /// Device of the networks: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
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
pub(super) fn run(arguments: ScoreArguments, interrupt: &Interrupt) -> Result<()> {
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    let batch = usize::try_from(arguments.batch).map_err(|_| Error::argument("--batch is too large"))?;
    let request = scorer::ScoreRequest {
        checkpoint: arguments.checkpoint,
        config: arguments.config,
        corpus: arguments.data,
        format: arguments.format,
        out: arguments.out,
        rating_column: arguments.rating_column,
        batch,
        batch_normalized: arguments.batch_normalized,
        by_rater: arguments.by_rater,
        overwrite: arguments.overwrite,
        images: true,
        note_column: arguments.note_column,
        sets,
    };
    let mut progress = Counted::new();
    let summary = scorer::score(&request, interrupt, &mut progress)?;
    super::say(&summary.to_string())?;
    for path in &summary.images {
        super::say(&path.display().to_string())?;
    }
    Ok(())
}
