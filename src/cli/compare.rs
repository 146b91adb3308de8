//! `compare`: trains models on the subset that each rating selects, and on controls.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::watch::Counted,
    compare::{
        CompareRequest, SampledImagesRequest,
        arms::{Convention, Rating, SamplingArm},
        compare,
        markdown::markdown,
    },
    config::Config,
    data::corpus::CorpusFormat,
    engine::cuda::DeviceChoice,
    error::{Error, Result},
    interrupt::Interrupt,
    measure::job::{Choice, Features},
    select::Keep,
};

/// The arguments of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArguments {
    /// Configuration in JSON: the models' and raters' sizes and training, and the data.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The training set; overrides the configuration. A column `flaw`, as written by `plant`, names the planted flaws.
    #[arg(long, value_name = "CORPUS")]
    pub data: Option<PathBuf>,
    /// The validation set, which guides the raters of meta-gradient rules; overrides the configuration; if neither is set, 20% of the training
    /// set is held out, of clean records if there is a column of flaws.
    #[arg(long, value_name = "CORPUS")]
    pub validation: Option<PathBuf>,
    /// The held-out set, on which models are measured and which no rater reads [default: half of the validation set].
    #[arg(long, value_name = "CORPUS")]
    pub held_out: Option<PathBuf>,
    /// Read all three as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<CorpusFormat>,
    /// Directory of the comparison. The same command resumes it, also with more seeds, shares, ratings or samplers.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number of seeds, starting at --first-seed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// The first seed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first_seed: u64,
    /// How much to keep: shares (50%) or numbers of records.
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', default_value = "20%,50%")]
    pub keep: Vec<String>,
    /// Names of ratings; or all.
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "all",
        help = format!("Ratings: {}; or all", Rating::listed())
    )]
    pub ratings: Vec<String>,
    /// Samplers: top-k, block:OFFSET, filter, filter:WITHIN, gsample[:MEAN/SIGMA], shift-gsample[:DROP/MEAN/SIGMA].
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "top-k,filter,gsample,shift-gsample"
    )]
    pub samplers: Vec<String>,
    /// Training budget to match between subsets and the full set: epochs or steps.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "epochs,steps")]
    pub equal: Vec<String>,
    /// The column of planted flaws [default: flaw].
    #[arg(long, value_name = "NAME")]
    pub flaw_column: Option<String>,
    /// Allow the same image in more than one set.
    #[arg(long)]
    pub allow_duplicates: bool,
    /// Keep the models, not only their results.
    #[arg(long)]
    pub keep_models: bool,
    /// Generate images for this many held-out captions with each model, and measure their distance to the held-out
    /// images; 0: none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub images: usize,
    /// Features of the Fréchet distances of generated images: tokenizer, clip, inception (the distance is then FID).
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "tokenizer",
        requires = "images"
    )]
    pub features: Vec<Features>,
    /// A full CLIP model, its Hugging Face folder or the weights in it: also measures the CLIP-Score of generated
    /// images.
    #[arg(long, value_name = "FOLDER", requires = "images")]
    pub clip: Option<PathBuf>,
    /// FID's Inception-v3, with pytorch-fid's names.
    #[arg(long, value_name = "FILE", requires = "images")]
    pub inception: Option<PathBuf>,
    /// Device of the networks: cpu, cuda, cuda:N, emulated or auto; `devices` lists them.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Set a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or an output cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: CompareArguments, interrupt: &Interrupt) -> Result<()> {
    let mut sets = arguments.set;
    sets.extend(arguments.device.map(|device| format!("device={device}")));
    for (key, path) in
        [("data_args.train_csv_path", arguments.data), ("data_args.val_csv_path", arguments.validation)]
    {
        if let Some(path) = path {
            sets.push(format!("{key}={}", super::train::quoted(&path)?));
        }
    }
    sets.extend(arguments.format.map(|format| format!("data_format={format}")));
    let mut config = Config::load(&arguments.config, &sets)?;
    if let Some(held_out) = &arguments.held_out {
        config.read_as(held_out, arguments.format);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let choice = Choice {
        features: arguments.features,
        clip: arguments.clip,
        inception: arguments.inception,
        decode: config.preprocess(1),
    };
    let images = (arguments.images > 0).then_some(SampledImagesRequest { count: arguments.images, choice });
    let ratings = match &arguments.ratings[..] {
        [all] if all == "all" => Rating::all(),
        named => parsed(named)?,
    };
    let keeps = arguments.keep.iter().map(|text| Ok((text.clone(), text.parse::<Keep>()?)));
    let request = CompareRequest {
        config,
        out: arguments.out,
        seeds: (arguments.first_seed..arguments.first_seed.saturating_add(arguments.seeds)).collect(),
        keeps: keeps.collect::<Result<_>>()?,
        ratings,
        samplers: parsed::<SamplingArm>(&arguments.samplers)?,
        conventions: parsed::<Convention>(&arguments.equal)?,
        held_out: arguments.held_out,
        flaw_column: arguments.flaw_column,
        allow_duplicates: arguments.allow_duplicates,
        keep_models: arguments.keep_models,
        images,
    };
    let mut progress = Counted::new();
    let (comparison, files) = compare(&request, interrupt, &mut progress)?;
    super::say(&format!(
        "{} training records, {} validation records to guide raters, {} held-out records to measure models\n\n{}",
        comparison.records,
        comparison.validation,
        comparison.held_out,
        markdown(&comparison)
    ))?;
    for path in &files {
        super::say(&path.display().to_string())?;
    }
    Ok(())
}

/// Parses names, removing duplicates.
fn parsed<T: std::str::FromStr<Err = Error> + PartialEq>(names: &[String]) -> Result<Vec<T>> {
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let one: T = name.trim().parse()?;
        if !found.contains(&one) {
            found.push(one);
        }
    }
    Ok(found)
}
