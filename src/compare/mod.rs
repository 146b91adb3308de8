//! Does it work? Trains one text-to-image model on everything, on random parts, and on the parts that each rating and sampler
//! chooses, with several seeds, and says what each came to beside the controls.
//!
//! Raters are guided by a validation set, and models are measured on a held-out set that no rater sees.
//!
//! A folder holds it all: `data/` (the records that can be used, and the two sets), `tokens/` (what `encode` keeps),
//! `raters/`, `ratings/`, `subsets/`, `fits/` (a result for each different model), and the tables. Whatever is there is not made
//! again, so a stopped comparison goes on, and one with more ratings, shares or seeds takes up what it has.

pub mod arms;
mod cells;
mod comparison;
mod data;
mod drawn;
mod heuristics;
pub(crate) mod markdown;
pub(crate) mod page;
mod ratings;
mod result;
mod runs;
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
use drawn::Drawn;
pub use drawn::SampledImagesRequest;
use ratings::Ratings;
pub use result::CellResult;
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

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct CompareRequest {
    /// Sizes and training of the models and raters, and the data.
    pub config: Config,
    /// The folder of the comparison.
    pub out: PathBuf,
    /// The seeds: each draws the weights, the order of the samples, the raters and the subsets anew.
    pub seeds: Vec<u64>,
    /// How much is kept, with the texts that the tables show.
    pub keeps: Vec<(String, Keep)>,
    /// By what records are ranked.
    pub ratings: Vec<Rating>,
    /// How they are chosen from a ranking.
    pub samplers: Vec<SamplingArm>,
    /// By what subsets and the whole are trained alike.
    pub conventions: Vec<Convention>,
    /// The column that says what was planted; `clean` is what is not spoiled.
    pub flaw_column: Option<String>,
    /// What models are measured on; half of the validation set if it is not named.
    pub held_out: Option<PathBuf>,
    /// Go on where the sets share images.
    pub allow_duplicates: bool,
    /// Keep the models.
    pub keep_models: bool,
    /// Images that each model draws, and what is measured of them.
    pub images: Option<SampledImagesRequest>,
}

impl CompareRequest {
    /// The column of the planted truth that is looked for.
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
    /// By what it is alike; nothing for everything.
    pub convention: String,
    /// The seed.
    pub seed: u64,
    /// What the model came to.
    pub result: CellResult,
    /// The share of each kind of record in what it was trained on.
    pub flaws: Vec<(String, f64)>,
}

/// The column of flaws, unless another is named.
const FLAW_COLUMN: &str = "flaw";

/// Runs a comparison, or goes on with it. Gives what it came to and the tables and images that were written.
///
/// # Errors
/// If the data or an arm cannot be used, two of the sets share images, a file cannot be written, or the user
/// interrupts: what is finished is kept.
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
    inputs.extend(request.held_out.clone());
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
    let drawn = match &request.images {
        Some(images) => Some(Drawn::open(images, config, &data, &out, interrupt, &mut task)?),
        None => None,
    };
    let fits = Fits {
        config,
        folder: out.join("fits"),
        held_out: &data.held_out,
        cache: &data.cache,
        keep_models: request.keep_models,
        drawn,
    };
    let arms = arms(request, has_ceiling);
    let mut seeds = Seeds::new(request, &out, &data, flaw, ratings, fits);
    let mut summary = None;
    for turn in 0..request.seeds.len() {
        for at in 0..arms.len() {
            seeds.arm((turn, at), &arms, interrupt, &mut task)?;
        }
        // After each seed, so that there is something to look at.
        let comparison = seeds.comparison();
        comparison.write(&out)?;
        let files = written::write(&out, &comparison)?;
        summary = Some((comparison, files));
    }
    let (comparison, files) = summary.ok_or_else(|| Error::invalid("a comparison needs a seed"))?;
    folder.complete_with(&files)?;
    Ok((comparison, files))
}

/// Whether there are enough records that are known to be sound for a ceiling.
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

/// What a record's column of flaws says.
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

/// The place of the column of flaws: the one that is asked for, or `flaw` if there is one.
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

/// Refuses shares that come to less than a batch, before anything is trained.
fn check_sizes(request: &CompareRequest, records: usize) -> Result<()> {
    let batch = request.config.training.batch;
    for (name, keep) in &request.keeps {
        let count = keep.count(records)?;
        if count < batch || count > records {
            return Err(Error::invalid(format!(
                "{name} of {records} usable records are {count}, but a model needs at least a batch of {batch} and at most all; \
                 keep another part, or set bs lower"
            )));
        }
    }
    Ok(())
}
