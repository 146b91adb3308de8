//! `pack`: writes a selected subset in the format that another trainer reads.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::watch::Counted,
    data::{ColumnNames, corpus::CorpusFormat},
    error::Result,
    interrupt::Interrupt,
    select::formats::{Format, PackJob, SHARD, pack},
};

/// The arguments of `pack`.
#[derive(Clone, Debug, Args)]
pub struct PackArguments {
    /// The subset: a CSV, as `select` writes it, or any corpus.
    #[arg(long, value_name = "CORPUS")]
    pub data: PathBuf,
    /// Read --data as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub data_format: Option<CorpusFormat>,
    /// csv, parquet, imagefolder (Hugging Face; images copied), imagefolder-links, webdataset (tar shards), or uids
    /// (DataComp's .npy). csv and parquet reference the images without reading them.
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// The output: a folder for imagefolder, imagefolder-links and webdataset, else a file. Rows whose image is missing or unreadable are skipped;
    /// their number and the reasons are printed.
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// webdataset: samples per shard.
    #[arg(long, value_name = "N", default_value_t = SHARD as u64, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub shard: u64,
    /// Column of the ids. If there is no column `id`: one of the common names (key, uid), or else the image's path.
    #[arg(long, value_name = "NAME", default_value = "id")]
    pub id_column: String,
    /// Column of the images' paths. If there is no column `image_save_path`: one of the common names (image, file_name).
    #[arg(long, value_name = "NAME", default_value = "image_save_path")]
    pub image_column: String,
    /// Column of the captions. If there is no column `caption`: one of the common names (text, prompt).
    #[arg(long, value_name = "NAME", default_value = "caption")]
    pub caption_column: String,
    /// Skip and count malformed rows instead of ending with an error.
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Replace existing outputs.
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the output cannot be written; [`Error::Interrupted`](crate::Error::Interrupted) if the
/// user interrupts.
pub(super) fn run(arguments: PackArguments, interrupt: &Interrupt) -> Result<()> {
    let job = PackJob {
        subset: arguments.data,
        data_format: arguments.data_format,
        columns: ColumnNames {
            id: arguments.id_column,
            image: arguments.image_column,
            caption: arguments.caption_column,
        },
        skip_bad_rows: arguments.skip_bad_rows,
        format: arguments.format,
        out: arguments.out,
        shard: usize::try_from(arguments.shard).unwrap_or(usize::MAX),
        overwrite: arguments.overwrite,
    };
    let mut progress = Counted::new();
    let packed = pack(&job, interrupt, &mut progress)?;
    super::say(&packed.to_string())
}
