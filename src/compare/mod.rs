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
pub mod markdown;
pub mod page;
mod ratings;
mod result;
mod runs;
pub mod table;
mod written;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use arms::{Arm, Convention, Rating, Sampler};
use cells::Fits;
pub use comparison::Comparison;
use comparison::FlawLine;
use drawn::Drawn;
pub use drawn::PicturesRequest;
use ratings::Ratings;
pub use result::CellResult;
pub use table::PictureLine;

use crate::{
    config::Config,
    data::{Record, corruption::Flaw},
    error::{Error, Result},
    files::remove_leftovers,
    generator::fit::{FitObserver, FitStepReport, Measures},
    interrupt::Interrupt,
    jobs::{Claim, folder::OutputFolder},
    rater::{
        bilevel::{RaterReport, StepRates, StepReport},
        trainer::Observer,
    },
    report::statistics::{auroc, mean_interval, mean_percentile},
    select::{Keep, RatingsOptions, Strategy, SubsetJob, write_subset},
    training::{prepared::Preparing, schedule::Rates},
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
    pub samplers: Vec<Sampler>,
    /// By what subsets and the whole are trained alike.
    pub conventions: Vec<Convention>,
    /// The column that says what was planted; `clean` is what is not spoiled.
    pub flaw_column: Option<String>,
    /// What models are measured on; half of the validation set if it is not named.
    pub held_out: Option<PathBuf>,
    /// Go on where the sets share pictures.
    pub allow_duplicates: bool,
    /// Keep the models.
    pub keep_models: bool,
    /// Pictures that each model draws, and what is measured of them.
    pub pictures: Option<PicturesRequest>,
}

impl CompareRequest {
    /// The column of the planted truth that is looked for.
    fn flaw_column(&self) -> &str {
        self.flaw_column.as_deref().unwrap_or(FLAW_COLUMN)
    }
}

/// One model of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
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

/// The numbers of each rating by seed and id.
type Told = BTreeMap<Rating, BTreeMap<u64, HashMap<String, f64>>>;

/// Passes on how far a part is, under its name.
struct Teller<'a> {
    what: String,
    progress: &'a mut dyn FnMut(&str, u64, u64),
}

impl Teller<'_> {
    fn tell(&mut self, done: u64, total: u64) {
        (self.progress)(&self.what, done, total);
    }
}

impl Preparing for Teller<'_> {
    fn preparing(&mut self, what: &str, done: u64, total: u64) {
        (self.progress)(what, done, total);
    }

    fn note(&mut self, sentence: &str) {
        tracing::info!("{}: {sentence}", self.what);
    }
}

impl FitObserver for Teller<'_> {
    fn step(&mut self, step: u64, total: u64, _samples: usize, _rates: Rates, _report: &FitStepReport) {
        self.tell(step + 1, total);
    }

    fn validated(&mut self, _step: u64, _measures: &Measures) {}
}

impl Observer for Teller<'_> {
    fn step(&mut self, step: u64, total: u64, _samples: usize, _rates: StepRates, _report: &StepReport) {
        self.tell(step + 1, total);
    }

    fn rater_step(&mut self, step: u64, total: u64, _samples: usize, _report: &RaterReport) {
        self.tell(step + 1, total);
    }
}

/// Runs a comparison, or goes on with it. Gives what it came to and the tables and pictures that were written.
///
/// # Errors
/// If the data or an arm cannot be used, two of the sets share pictures, a file cannot be written, or the user
/// interrupts: what is finished is kept.
pub fn compare(
    request: &CompareRequest,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str, u64, u64),
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
    let mut teller = Teller { what: "preparing".to_owned(), progress };
    let data = data::prepare(request, &out, begin, interrupt, &mut teller)?;
    let flaw = flaw_column(request, &data.pool)?;
    let flaw_of = |record: &Record| flaw.map(|column| record.fields[column].clone());
    check_sizes(request, data.records.len())?;
    let clean =
        data.records.iter().filter(|record| flaw_of(record).as_deref() == Some(Flaw::Clean.name())).count();
    let has_ceiling = clean >= config.training.batch;
    if flaw.is_some() && !has_ceiling {
        tracing::warn!(
            "{clean} records are `{}` in the column `{}`, fewer than a batch of {}, so there is no ceiling (`oracle`)",
            Flaw::Clean.name(),
            request.flaw_column(),
            config.training.batch
        );
    }

    let mut ratings = Ratings::new(config, &out, (&data.pool, &data.records), &data.validation, &data.cache);
    let drawn = match &request.pictures {
        Some(pictures) => Some(Drawn::open(pictures, config, &data, &out, interrupt, &mut teller)?),
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
    let mut outcomes = Vec::new();
    let mut told = Told::new();
    let mut summary = None;
    for (turn, &seed) in request.seeds.iter().enumerate() {
        for (at, arm) in arms.iter().enumerate() {
            let (rating, sampler) = arm.names();
            let name = format!("{rating} {sampler}").trim().to_owned();
            let what = format!(
                "seed {} of {}, {name} ({} of {})",
                turn + 1,
                request.seeds.len(),
                at + 1,
                arms.len()
            );
            let chosen = match arm {
                Arm::Everything => None,
                Arm::Random => Some(Ok(ratings.constant("random", seed, |_| true)?)),
                Arm::Oracle => Some(Ok(ratings.constant("oracle", seed, |record| {
                    flaw_of(record).as_deref() == Some(Flaw::Clean.name())
                })?)),
                Arm::Chosen(rating, _) => {
                    let table = ratings.table(*rating, seed, &request.ratings, interrupt, &mut teller)?;
                    if let Ok(path) = &table {
                        let numbers = ratings.read(path)?;
                        told.entry(*rating).or_default().insert(seed, numbers);
                    }
                    Some(table)
                }
            };
            let outcome = |keep: &str, convention: &str, result: CellResult, flaws| Outcome {
                rating: rating.clone(),
                sampler: sampler.clone(),
                keep: keep.to_owned(),
                convention: convention.to_owned(),
                seed,
                result,
                flaws,
            };
            teller.what = what;
            let Some(chosen) = chosen else {
                let result = fits.result(&data.pool, seed, config.training.epochs, interrupt, &mut teller)?;
                outcomes.push(outcome("100%", "", result, shares(&data.records, &flaw_of)));
                continue;
            };
            for (keep_name, keep) in &request.keeps {
                let count = keep.count(data.records.len())?;
                let chosen = match &chosen {
                    Ok(path) => path,
                    Err(message) => {
                        for convention in &request.conventions {
                            let result = CellResult::diverged(count as u64, message.clone());
                            outcomes.push(outcome(keep_name, convention.name(), result, Vec::new()));
                        }
                        continue;
                    }
                };
                let strategy = match arm {
                    Arm::Chosen(_, Sampler(strategy)) => *strategy,
                    _ => Strategy::Random,
                };
                let named = format!("{name}-{keep_name}-{seed}").replace([' ', ':', '/'], "_");
                let subset = out.join("subsets").join(format!("{named}.csv"));
                let rated = ratings.read(chosen)?.len();
                if rated < count && turn == 0 {
                    tracing::warn!(
                        "{name} has {rated} records, fewer than {keep_name}; all of them are kept"
                    );
                }
                // An oracle, or a number that not every record has, may have fewer records than are to be kept.
                let count = count.min(rated);
                if count < config.training.batch || count > strategy.reach(rated) {
                    if turn == 0 {
                        tracing::warn!(
                            "{name} has no {keep_name} of {rated} records, or they are fewer than a batch; it is left out"
                        );
                    }
                    continue;
                }
                let job = SubsetJob {
                    ratings: chosen.clone(),
                    options: RatingsOptions::default(),
                    names: ratings.columns(),
                    image_column: config.data.image_column.clone(),
                    strategy,
                    keep: Keep::Count(count as u64),
                    seed,
                    out: subset.clone(),
                    data: Some(data.pool.clone()),
                    overwrite: true,
                };
                write_subset(&job, interrupt)?;
                let kept = config.open_corpus(&subset)?.read_all()?;
                let share = kept.len() as f64 / data.records.len() as f64;
                for convention in &request.conventions {
                    let epochs = convention.epochs(config.training.epochs, share);
                    let result = fits.result(&subset, seed, epochs, interrupt, &mut teller)?;
                    outcomes.push(outcome(keep_name, convention.name(), result, shares(&kept, &flaw_of)));
                }
            }
        }
        // After each seed, so that there is something to look at.
        let comparison = Comparison {
            config: config.to_json(),
            flaw_column: request.flaw_column().to_owned(),
            records: data.records.len(),
            validation: data.aside[0],
            held_out: data.aside[1],
            flaws: flaw_lines(&data.records, &flaw_of, &told),
            kinds: shares(&data.records, &flaw_of),
            costs: costs(&ratings),
            outcomes: outcomes.clone(),
        };
        comparison.write(&out)?;
        let files = written::write(&out, &comparison)?;
        summary = Some((comparison, files));
    }
    let (comparison, files) = summary.ok_or_else(|| Error::invalid("a comparison needs a seed"))?;
    folder.complete_with(&files)?;
    Ok((comparison, files))
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
    match corpus.header().iter().position(|column| column == name) {
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

/// The share of each kind of record, in the order of [`Flaw::ALL`]; kinds that are no flaws of ours by their names, last.
fn shares(records: &[Record], flaw_of: &dyn Fn(&Record) -> Option<String>) -> Vec<(String, f64)> {
    let mut counts: BTreeMap<(usize, String), f64> = BTreeMap::new();
    for flaw in records.iter().filter_map(flaw_of) {
        let place = Flaw::ALL.iter().position(|known| known.name() == flaw).unwrap_or(Flaw::ALL.len());
        *counts.entry((place, flaw)).or_default() += 1.0;
    }
    counts.into_iter().map(|((_, flaw), count)| (flaw, count / records.len() as f64)).collect()
}

fn flaw_lines(records: &[Record], flaw_of: &dyn Fn(&Record) -> Option<String>, told: &Told) -> Vec<FlawLine> {
    let mut lines = Vec::new();
    let kinds = shares(records, flaw_of);
    for (rating, seeds) in told {
        for (flaw, _) in kinds.iter().filter(|(flaw, _)| flaw != Flaw::Clean.name()) {
            let (mut found, mut percentiles) = (Vec::new(), Vec::new());
            for numbers in seeds.values() {
                let rated: Vec<(f64, String)> = records
                    .iter()
                    .filter_map(|record| Some((*numbers.get(&record.id)?, flaw_of(record)?)))
                    .collect();
                let beside = rated.iter().filter(|(_, kind)| kind == flaw || kind == Flaw::Clean.name());
                let (scores, positives): (Vec<f64>, Vec<bool>) =
                    beside.map(|(number, kind)| (-number, kind == flaw)).unzip();
                found.extend(auroc(&scores, &positives));
                let (all, members): (Vec<f64>, Vec<bool>) =
                    rated.iter().map(|(number, kind)| (*number, kind == flaw)).unzip();
                percentiles.extend(mean_percentile(&all, &members));
            }
            if let (Some(auroc), Some((percentile, _))) = (mean_interval(&found), mean_interval(&percentiles))
            {
                lines.push(FlawLine { rating: rating.to_string(), flaw: flaw.clone(), auroc, percentile });
            }
        }
    }
    lines
}

/// Mean seconds of each rater's training and scoring, over the seeds that came to an end. A start that was killed before it said
/// what it took is left out.
fn costs(ratings: &Ratings<'_>) -> Vec<(String, Option<f64>, Option<f64>)> {
    let mut sums: BTreeMap<Rating, [Vec<f64>; 2]> = BTreeMap::new();
    for ((rule, _), seconds) in &ratings.raters {
        if let Ok(seconds) = seconds {
            let all = sums.entry(Rating::Rater(*rule)).or_default();
            std::iter::zip(all, seconds).for_each(|(all, one)| all.extend(*one));
        }
    }
    let mean = |all: &[f64]| mean_interval(all).map(|(mean, _)| mean);
    sums.into_iter()
        .map(|(rating, [train, score])| (rating.to_string(), mean(&train), mean(&score)))
        .collect()
}
