//! `plant`: plants known flaws in a copy of a corpus.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{flaws::shares, watch::Counted},
    data::{
        ColumnNames, Preprocess,
        corpus::CorpusFormat,
        corruption::{
            FlawShares, Mixture,
            plant::{PlantSettings, plant},
        },
        image::preprocess::DEFAULT_MAX_PIXELS,
    },
    error::Result,
    interrupt::Interrupt,
};

/// The arguments of `plant`.
#[derive(Clone, Debug, Args)]
pub struct PlantArguments {
    /// The corpus; docs/formats.md lists the supported formats.
    #[arg(long, value_name = "CORPUS")]
    pub data: PathBuf,
    /// Read the corpus as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<CorpusFormat>,
    /// Directory for the copy: corpus.csv with the columns flaw and flaw_source, and images.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Shares of the flaws, such as noise=5%,blur=0.05; the others are 0. The flaws are plain, noise, blur, jpeg, watermark,
    /// wrong_caption, neighbor_caption, truncated_caption, generic_caption, boilerplate_caption, foreign_caption,
    /// duplicate, cropped_duplicate, flipped_duplicate and recompressed_duplicate [default: plain, noise, blur, jpeg,
    /// watermark, wrong_caption and duplicate, 30% in total].
    #[arg(long, value_name = "FLAW=SHARE,…", value_delimiter = ',')]
    pub flaws: Vec<String>,
    /// A named mixture instead of --flaws, 30% in total: pixels, text, both, mismatch (captions that are fine on their
    /// own) or duplicates.
    #[arg(long, value_name = "NAME", conflicts_with = "flaws")]
    pub mixture: Option<Mixture>,
    /// Side in pixels of all copied images, which are cropped to the center square.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub side: u32,
    /// Random seed for choosing and corrupting records.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Column of the ids. If there is no column `id`: one of the common names (key, uid), or else the image's path.
    #[arg(long, value_name = "NAME", default_value = "id")]
    pub id_column: String,
    /// Column of the images' paths. If there is no column `image_save_path`: one of the common names (image, file_name).
    #[arg(long, value_name = "NAME", default_value = "image_save_path")]
    pub image_column: String,
    /// Column of the captions. If there is no column `caption`: one of the common names (text, prompt).
    #[arg(long, value_name = "NAME", default_value = "caption")]
    pub caption_column: String,
    /// Column of the categories in which neighbor_caption finds neighbors [default: category, if there is one; without
    /// categories, the neighbor is the caption that shares most words].
    #[arg(long, value_name = "NAME")]
    pub category_column: Option<String>,
    /// Count malformed rows as failed records instead of ending with an error.
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Images with more pixels are skipped.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PIXELS)]
    pub max_pixels: u64,
    /// Number of decoding threads.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,
    /// Replace a planted corpus in the folder.
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the copy cannot be written; [`Error::Interrupted`](crate::Error::Interrupted) if the
/// user interrupts.
pub(super) fn run(arguments: PlantArguments, interrupt: &Interrupt) -> Result<()> {
    let settings = PlantSettings {
        corpus: arguments.data,
        format: arguments.format,
        columns: ColumnNames {
            id: arguments.id_column,
            image: arguments.image_column,
            caption: arguments.caption_column,
        },
        skip_bad_rows: arguments.skip_bad_rows,
        out: arguments.out,
        preprocess: Preprocess {
            max_pixels: arguments.max_pixels,
            ..Preprocess::default_for(arguments.side as usize)
        },
        shares: shares(&arguments.flaws, arguments.mixture, FlawShares::PLANTED, false)?,
        category_column: arguments.category_column,
        workers: usize::from(arguments.workers),
        seed: arguments.seed,
        overwrite: arguments.overwrite,
    };
    let mut progress = Counted::new();
    let planted = plant(&settings, interrupt, &mut progress)?;
    let total: usize = planted.counts.iter().map(|(_, count)| count).sum();
    let counts: Vec<String> = planted.counts.iter().map(|(flaw, count)| format!("{count} {flaw}")).collect();
    let left_out = if planted.failed > 0 { format!("; {} skipped", planted.failed) } else { String::new() };
    super::say(&format!("{total} records: {}{left_out}\n{}", counts.join(", "), planted.table.display()))
}
