//! `measure`: distances between generated and held-out images, and how well images match their captions.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    cli::watch::Counted,
    config::Config,
    data::{
        ColumnNames, Preprocess,
        corpus::{CorpusFormat, files::CorpusFiles},
    },
    error::{Error, Result},
    files::write_atomic,
    interrupt::Interrupt,
    jobs::{Claim, output::Output},
    measure::{
        images::images_as,
        job::{Choice, Features, Measurer, tokenizer_of_config, tokenizer_of_run},
        space::NOT_MEASURED,
    },
    report::text_table::TextTable,
};

/// The arguments of `measure`.
#[derive(Clone, Debug, Args)]
pub struct MeasureArguments {
    /// The images to measure: a folder that `sample` wrote, samples.csv, any folder of images, or a corpus.
    #[arg(long, value_name = "DIR|CORPUS")]
    generated: PathBuf,
    /// The reference images, in the same formats. Without them, only CLIP-Score is measured.
    #[arg(long, value_name = "DIR|CORPUS")]
    reference: Option<PathBuf>,
    /// Read both as csv, jsonl, parquet, webdataset or imagefolder [default: detected by content].
    #[arg(long, value_name = "FORMAT")]
    format: Option<CorpusFormat>,
    /// Features of the Fréchet distances: tokenizer, clip, inception (the distance is then FID).
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "tokenizer")]
    features: Vec<Features>,
    /// Features of the tokenizer: the configuration that names it, or whose training set it is fitted to.
    #[arg(long, value_name = "FILE", conflicts_with = "checkpoint")]
    config: Option<PathBuf>,
    /// Features of the tokenizer: the run that used it.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// A full CLIP model: its Hugging Face folder, or the weights in it. Also measures CLIP-Score.
    #[arg(long, value_name = "FOLDER")]
    clip: Option<PathBuf>,
    /// FID's Inception-v3, with pytorch-fid's names: safetensors or pt_inception-2015-12-05.pth.
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// Also write the metrics to this JSON file.
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Replace an existing output of this command.
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Set a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If an input cannot be used or the output cannot be written; [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: &MeasureArguments, interrupt: &Interrupt) -> Result<()> {
    let config = arguments.config.as_ref().map(|path| Config::load(path, &arguments.set)).transpose()?;
    let paths = [
        &arguments.config,
        &arguments.reference,
        &arguments.checkpoint,
        &arguments.clip,
        &arguments.inception,
    ];
    let mut inputs: Vec<PathBuf> = paths.into_iter().flatten().cloned().collect();
    for path in std::iter::once(&arguments.generated).chain(&arguments.reference) {
        inputs.extend(CorpusFiles::inputs(path, arguments.format));
    }
    inputs.extend(config.iter().flat_map(Config::inputs));
    let claim = Claim { command: "measure", inputs: &inputs, overwrite: arguments.overwrite };
    // An unusable output path is refused before the measures are taken.
    let output = arguments.out.as_ref().map(|out| Output::fresh(&claim, out, &[])).transpose()?;
    let measured = measures(arguments, config.as_ref(), interrupt);
    match (output, measured) {
        (Some(output), measured) => {
            let out = arguments.out.clone().unwrap_or_default();
            output.write(|output| write_atomic(&output.staged(), &measured?))?;
            super::say(&out.display().to_string())
        }
        (None, measured) => measured.map(drop),
    }
}

/// Computes the metrics and prints them; returns them as JSON.
fn measures(arguments: &MeasureArguments, config: Option<&Config>, interrupt: &Interrupt) -> Result<Vec<u8>> {
    for warning in config.iter().flat_map(|config| &config.warnings) {
        tracing::warn!("{warning}");
    }
    let columns = config.map_or_else(ColumnNames::default, Config::columns);
    let skip_bad_rows = config.is_some_and(|config| config.data.skip_bad_rows);
    let choice = Choice {
        features: if arguments.reference.is_some() { arguments.features.clone() } else { Vec::new() },
        clip: arguments.clip.clone(),
        inception: arguments.inception.clone(),
        decode: config.map_or(Preprocess::default_for(1), |config| config.preprocess(1)),
    };
    let mut progress = Counted::new();
    let tokenizer = || match (config, &arguments.checkpoint) {
        (Some(config), _) => tokenizer_of_config(config, interrupt, &mut progress),
        (None, Some(run)) => tokenizer_of_run(run),
        (None, None) => Err(Error::argument(
            "features of the tokenizer need --config FILE or --checkpoint DIR; pass one, or other --features",
        )),
    };
    let measurer = interrupt.while_reading(NOT_MEASURED, || Measurer::open(&choice, tokenizer))?;
    let list = |path: &PathBuf| {
        interrupt.while_reading(NOT_MEASURED, || images_as(path, &columns, arguments.format, skip_bad_rows))
    };
    let generated = list(&arguments.generated)?;
    let mut left_out = json!({"generated": [], "reference": []});
    let references = match &arguments.reference {
        None => None,
        Some(path) => {
            let (references, failed) = measurer.references(&list(path)?, interrupt, &mut progress)?;
            left_out["reference"] = json!(failed);
            Some(references)
        }
    };
    let (measures, failed) = measurer.measure(&generated, references.as_ref(), interrupt, &mut progress)?;
    left_out["generated"] = json!(failed);
    if measures.is_empty() {
        return Err(Error::input(
            &arguments.generated,
            format!("nothing is measured: {} has no captions", arguments.generated.display()),
        ));
    }
    for measure in measures.iter().filter(|measure| measure.singular_covariance) {
        tracing::warn!(
            "{} and {} images are too few for a full-rank covariance; compare only between sets of the same sizes: {}",
            measure.generated,
            measure.reference.unwrap_or_default(),
            measure.name
        );
    }
    let mut table = TextTable::new(["metric", "value", "images", "compared with"]);
    for measure in &measures {
        let reference = measure.reference.map_or(String::new(), |count| count.to_string());
        table.row([
            measure.name.clone(),
            format!("{:.4}", measure.value),
            measure.generated.to_string(),
            reference,
        ]);
    }
    super::say(&table.to_string())?;
    for (side, what) in [("generated", "images"), ("reference", "reference images")] {
        let count = left_out[side].as_array().map_or(0, Vec::len);
        if count > 0 {
            super::say(&format!("{count} {what} could not be used and were skipped"))?;
        }
    }
    let json = json!({"measures": measures, "networks": measurer.identity(), "left_out": left_out});
    let mut bytes = serde_json::to_vec_pretty(&json).map_err(|error| Error::invalid(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}
