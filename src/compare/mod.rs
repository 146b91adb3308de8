//! Compares ratings by training models on the subsets that they select: trains one text-to-image model on everything,
//! on random subsets, and on the subset of each rating and sampler, with several seeds, and tabulates the results
//! alongside the controls.
//!
//! Raters are guided by a validation set, and models are measured on a held-out set that no rater reads.
//!
//! A comparison is one folder: `data/` (the usable records and the two sets), `tokens/` (the token cache), `raters/`,
//! `ratings/`, `subsets/`, `fits/` (one result per distinct model), and the tables. Existing parts are not recomputed,
//! so an interrupted comparison resumes, and one with more ratings, shares or seeds reuses what it has.

pub mod arms;
mod cells;
mod comparison;
mod data;
mod heuristics;
pub(crate) mod markdown;
pub(crate) mod page;
mod page_tables;
mod ratings;
mod result;
mod runs;
mod sampled_images;
mod seeds;
pub(crate) mod table;
mod task;
mod written;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use arms::{Arm, Convention, Rating, SamplingArm};
use cells::Fits;
pub use comparison::Comparison;

use data::Data;
use ratings::Ratings;
pub use result::CellResult;
use sampled_images::SampledImages;
pub use sampled_images::SampledImagesRequest;
use seeds::Seeds;
pub use table::ImageLine;
use task::Task;

use crate::{
    config::Config,
    data::{Record, corruption::Flaw},
    error::{Error, Result},
    files::remove_leftovers,
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder, progress::Progress},
    select::Keep,
};

/// What to compare.
#[derive(Clone, Debug)]
pub struct CompareRequest {
    /// Sizes and training of the models and raters, and the data.
    pub config: Config,
    /// The folder of the comparison.
    pub out: PathBuf,
    /// The seeds: each determines the initial weights, the sample order, the raters and the subsets.
    pub seeds: Vec<u64>,
    /// How much to keep, with the labels that the tables show.
    pub keeps: Vec<(String, Keep)>,
    /// The ratings.
    pub ratings: Vec<Rating>,
    /// The samplers.
    pub samplers: Vec<SamplingArm>,
    /// The training budget that is equal for subset and full-data models.
    pub conventions: Vec<Convention>,
    /// The column of planted flaws, in which `clean` marks a clean record.
    pub flaw_column: Option<String>,
    /// The held-out set; half of the validation set if `None`.
    pub held_out: Option<PathBuf>,
    /// Allow the same image in more than one set.
    pub allow_duplicates: bool,
    /// Keep the models.
    pub keep_models: bool,
    /// Images that each model generates, and their measures.
    pub images: Option<SampledImagesRequest>,
}

impl CompareRequest {
    /// The name of the column of planted flaws.
    fn flaw_column(&self) -> &str {
        self.flaw_column.as_deref().unwrap_or(FLAW_COLUMN)
    }
}

/// One model of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainedModel {
    /// The rating, or `everything`, `random`, `oracle`.
    pub rating: String,
    /// The sampler, if there is one.
    pub sampler: String,
    /// How much was kept.
    pub keep: String,
    /// The convention; empty for everything.
    pub convention: String,
    /// The seed.
    pub seed: u64,
    /// The measures of the model.
    pub result: CellResult,
    /// The fraction of each kind of record in the training set.
    pub flaws: Vec<(String, f64)>,
}

/// The column of flaws, unless another is given.
const FLAW_COLUMN: &str = "flaw";

/// Runs or resumes a comparison. Returns it and the tables and images written.
///
/// # Errors
/// If the data or an arm cannot be used, two of the sets share images, or a file cannot be written;
/// [`Error::Interrupted`] if the user interrupts; finished ratings and models are kept.
pub fn compare(
    request: &CompareRequest,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<(Comparison, Vec<PathBuf>)> {
    let config = &request.config;
    if request.seeds.is_empty() || request.keeps.is_empty() || request.conventions.is_empty() {
        return Err(Error::invalid("a comparison needs a seed, a share to keep and a convention"));
    }
    let out = std::path::absolute(&request.out).map_err(Error::io("resolve", &request.out))?;
    let mut inputs = config.inputs();
    inputs.extend(request.held_out.iter().flat_map(|path| config.corpus_inputs(path)));
    let folder =
        OutputFolder::claim(&Claim { command: "compare", inputs: &inputs, overwrite: false }, &out, &[])?;
    folder.present()?;
    folder.expect_listed()?;
    let begin = || {
        folder.begin_in_place()?;
        for part in ["data", "raters", "ratings", "subsets", "fits"] {
            let folder = out.join(part);
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
            remove_leftovers(&folder)?;
        }
        remove_leftovers(&out)
    };
    let mut task = Task { name: "preparing".to_owned(), progress };
    let data = data::prepare(request, &out, begin, interrupt, &mut task)?;
    let flaw = flaw_column(request, &data.pool)?;
    check_sizes(request, data.records.len())?;
    let has_ceiling = has_ceiling(request, &data, flaw);

    let ratings = Ratings::new(config, &out, (&data.pool, &data.records), &data.validation, &data.cache);
    let sampled_images = match &request.images {
        Some(images) => Some(SampledImages::open(images, config, &data, &out, interrupt, &mut task)?),
        None => None,
    };
    let fits = Fits {
        config,
        folder: out.join("fits"),
        held_out: &data.held_out,
        cache: &data.cache,
        keep_models: request.keep_models,
        sampled_images,
    };
    let arms = arms(request, has_ceiling);
    let mut seeds = Seeds::new(request, &out, &data, flaw, ratings, fits);
    let mut summary = None;
    for turn in 0..request.seeds.len() {
        for at in 0..arms.len() {
            seeds.arm((turn, at), &arms, interrupt, &mut task)?;
        }
        // Written after each seed, so that results can be read early.
        let comparison = seeds.comparison();
        comparison.write(&out)?;
        let files = written::write(&out, &comparison)?;
        summary = Some((comparison, files));
    }
    let (comparison, files) = summary.ok_or_else(|| Error::invalid("a comparison needs a seed"))?;
    folder.complete_with(&files)?;
    Ok((comparison, files))
}

/// Whether there are enough clean records for a ceiling.
fn has_ceiling(request: &CompareRequest, data: &Data, flaw: Option<usize>) -> bool {
    let is_clean = |record: &&Record| flaw_of(record, flaw) == Some(Flaw::Clean.name());
    let (clean, batch) = (data.records.iter().filter(is_clean).count(), request.config.training.batch);
    if flaw.is_some() && clean < batch {
        tracing::warn!(
            "{clean} records are `{}` in the column `{}`, fewer than a batch of {batch}, so there is no ceiling (`oracle`)",
            Flaw::Clean.name(),
            request.flaw_column(),
        );
    }
    clean >= batch
}

/// The value of a record in the column of flaws.
fn flaw_of(record: &Record, flaw: Option<usize>) -> Option<&str> {
    flaw.map(|column| record.fields[column].as_str())
}

/// The arms in the order of the tables.
fn arms(request: &CompareRequest, planted: bool) -> Vec<Arm> {
    let mut arms = vec![Arm::Everything, Arm::Random];
    arms.extend(planted.then_some(Arm::Oracle));
    for &rating in &request.ratings {
        arms.extend(request.samplers.iter().map(|&sampler| Arm::Chosen(rating, sampler)));
    }
    arms
}

/// The index of the column of flaws: the given one, or `flaw` if there is one.
fn flaw_column(request: &CompareRequest, pool: &Path) -> Result<Option<usize>> {
    let corpus = request.config.open_corpus(pool)?;
    let name = request.flaw_column();
    match corpus.schema().columns.iter().position(|column| column == name) {
        None if request.flaw_column.is_some() => Err(Error::Table {
            path: pool.to_path_buf(),
            line: Some(1),
            message: format!("there is no column `{name}`"),
        }),
        found => Ok(found),
    }
}

/// Refuses shares with fewer records than a batch or more than there are, before anything is trained.
fn check_sizes(request: &CompareRequest, records: usize) -> Result<()> {
    let batch = request.config.training.batch;
    for (name, keep) in &request.keeps {
        let count = keep.count(records)?;
        if count > records {
            return Err(Error::not_enough_data(format!(
                "cannot keep {name} of {records} usable records; keep fewer"
            )));
        }
        if count < batch {
            return Err(Error::not_enough_data(format!(
                "keeping {name} of {records} usable records leaves {count}, fewer than one batch of {batch}; keep \
                 more, or lower bs"
            )));
        }
    }
    Ok(())
}
