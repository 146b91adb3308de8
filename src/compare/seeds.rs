//! The models of a comparison: arm by arm for each seed, and their results.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use super::{
    CompareRequest, TrainedModel,
    arms::{Arm, Rating, SamplingArm},
    cells::Fits,
    comparison::{Comparison, FlawLine},
    data::Data,
    flaw_of,
    ratings::Ratings,
    result::CellResult,
    task::Task,
};
use crate::{
    data::{Record, corruption::Flaw},
    error::Result,
    interrupt::Interrupt,
    report::statistics::{auroc, mean_interval, mean_percentile},
    select::{Keep, RatingsOptions, Strategy, SubsetJob, write_subset},
};

/// The values of each rating by seed and id.
type RatingValues = BTreeMap<Rating, BTreeMap<u64, HashMap<String, f64>>>;

/// A comparison in progress.
pub(super) struct Seeds<'a> {
    request: &'a CompareRequest,
    out: &'a Path,
    data: &'a Data,
    /// The index of the column of flaws.
    flaw: Option<usize>,
    ratings: Ratings<'a>,
    fits: Fits<'a>,
    rating_values: RatingValues,
    outcomes: Vec<TrainedModel>,
}

/// An arm and a seed, under the names used in outcomes.
struct Named {
    rating: String,
    sampler: String,
    seed: u64,
    /// Whether it is the first seed: warnings are printed once.
    first: bool,
}

impl Named {
    fn outcome(
        &self,
        keep: &str,
        convention: &str,
        result: CellResult,
        flaws: Vec<(String, f64)>,
    ) -> TrainedModel {
        TrainedModel {
            rating: self.rating.clone(),
            sampler: self.sampler.clone(),
            keep: keep.to_owned(),
            convention: convention.to_owned(),
            seed: self.seed,
            result,
            flaws,
        }
    }
}

impl<'a> Seeds<'a> {
    pub(super) fn new(
        request: &'a CompareRequest,
        out: &'a Path,
        data: &'a Data,
        flaw: Option<usize>,
        ratings: Ratings<'a>,
        fits: Fits<'a>,
    ) -> Self {
        Self {
            request,
            out,
            data,
            flaw,
            ratings,
            fits,
            rating_values: RatingValues::new(),
            outcomes: Vec::new(),
        }
    }

    /// Trains the models of one arm with one seed, at each share and by each convention.
    pub(super) fn arm(
        &mut self,
        (turn, at): (usize, usize),
        arms: &[Arm],
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<()> {
        let (arm, seed) = (&arms[at], self.request.seeds[turn]);
        let (rating, sampler) = arm.names();
        let name = format!("{rating} {sampler}").trim().to_owned();
        let (turns, count) = (self.request.seeds.len(), arms.len());
        let what = format!("seed {} of {turns}, {name} ({} of {count})", turn + 1, at + 1);
        let chosen = self.ratings_of(arm, seed, interrupt, task)?;
        let named = Named { rating, sampler, seed, first: turn == 0 };
        task.name = what;
        let Some(chosen) = chosen else {
            let epochs = self.request.config.training.epochs;
            let result = self.fits.result(&self.data.pool, seed, epochs, interrupt, task)?;
            self.outcomes.push(named.outcome("100%", "", result, shares(&self.data.records, self.flaw)));
            return Ok(());
        };
        for (keep_name, keep) in &self.request.keeps {
            match &chosen {
                Ok(path) => self.share(&named, arm, (keep_name, *keep), path, interrupt, task)?,
                Err(message) => {
                    let count = keep.count(self.data.records.len())? as u64;
                    for convention in &self.request.conventions {
                        let result = CellResult::diverged(count, message.clone());
                        self.outcomes.push(named.outcome(keep_name, convention.name(), result, Vec::new()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The ratings table of an arm, or why there is none; `None` if all records are taken.
    fn ratings_of(
        &mut self,
        arm: &Arm,
        seed: u64,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<Option<Result<PathBuf, String>>> {
        let flaw = self.flaw;
        Ok(match arm {
            Arm::Everything => None,
            Arm::Random => Some(Ok(self.ratings.constant("random", seed, |_| true)?)),
            Arm::Oracle => Some(Ok(self
                .ratings
                .constant("oracle", seed, |record| flaw_of(record, flaw) == Some(Flaw::Clean.name()))?)),
            Arm::Chosen(rating, _) => {
                let table = self.ratings.table(*rating, seed, &self.request.ratings, interrupt, task)?;
                if let Ok(path) = &table {
                    let numbers = self.ratings.read(path)?;
                    self.rating_values.entry(*rating).or_default().insert(seed, numbers);
                }
                Some(table)
            }
        })
    }

    /// Selects one share by a ratings table, and trains a model on it by each convention.
    fn share(
        &mut self,
        named: &Named,
        arm: &Arm,
        (keep_name, keep): (&str, Keep),
        chosen: &Path,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<()> {
        let (config, all) = (&self.request.config, self.data.records.len());
        let strategy = match arm {
            Arm::Chosen(_, SamplingArm(strategy)) => *strategy,
            _ => Strategy::Random,
        };
        let name = format!("{} {}", named.rating, named.sampler).trim().to_owned();
        let count = keep.count(all)?;
        let rated = self.ratings.read(chosen)?.len();
        if rated < count && named.first {
            tracing::warn!("{name} has {rated} records, fewer than {keep_name}; all of them are kept");
        }
        // The oracle, and ratings that some records lack, may have fewer records than are to be kept.
        let count = count.min(rated);
        if count < config.training.batch || count > strategy.reach(rated) {
            if named.first {
                tracing::warn!(
                    "{name} has no {keep_name} of {rated} records, or they are fewer than a batch; it is skipped"
                );
            }
            return Ok(());
        }
        let file = format!("{name}-{keep_name}-{}", named.seed).replace([' ', ':', '/'], "_");
        let subset = self.out.join("subsets").join(format!("{file}.csv"));
        let job = SubsetJob {
            ratings: chosen.to_path_buf(),
            options: RatingsOptions::default(),
            names: self.ratings.columns(),
            image_column: config.data.image_column.clone(),
            strategy,
            keep: Keep::Count(count as u64),
            seed: named.seed,
            out: subset.clone(),
            data: Some(self.data.pool.clone()),
            format: None,
            caption_column: config.data.caption_column.clone(),
            overwrite: true,
        };
        write_subset(&job, interrupt)?;
        let kept = config.open_corpus(&subset)?.read_all()?;
        let share = kept.len() as f64 / all as f64;
        for convention in &self.request.conventions {
            let epochs = convention.epochs(config.training.epochs, share);
            let result = self.fits.result(&subset, named.seed, epochs, interrupt, task)?;
            let flaws = shares(&kept, self.flaw);
            self.outcomes.push(named.outcome(keep_name, convention.name(), result, flaws));
        }
        Ok(())
    }

    /// The results so far.
    pub(super) fn comparison(&self) -> Comparison {
        let Self { request, data, flaw, .. } = self;
        Comparison {
            config: request.config.to_json(),
            flaw_column: request.flaw_column().to_owned(),
            records: data.records.len(),
            validation: data.aside[0],
            held_out: data.aside[1],
            flaws: flaw_lines(&data.records, *flaw, &self.rating_values),
            kinds: shares(&data.records, *flaw),
            costs: costs(&self.ratings),
            outcomes: self.outcomes.clone(),
        }
    }
}

/// The fraction of each kind of record, in the order of [`Flaw::ALL`]; unknown kinds by name, last.
fn shares(records: &[Record], flaw: Option<usize>) -> Vec<(String, f64)> {
    let mut counts: BTreeMap<(usize, String), f64> = BTreeMap::new();
    for flaw in records.iter().filter_map(|record| flaw_of(record, flaw)) {
        let order = Flaw::ALL.iter().position(|known| known.name() == flaw).unwrap_or(Flaw::ALL.len());
        *counts.entry((order, flaw.to_owned())).or_default() += 1.0;
    }
    counts.into_iter().map(|((_, flaw), count)| (flaw, count / records.len() as f64)).collect()
}

fn flaw_lines(records: &[Record], column: Option<usize>, rating_values: &RatingValues) -> Vec<FlawLine> {
    let mut lines = Vec::new();
    let kinds = shares(records, column);
    for (rating, seeds) in rating_values {
        for (flaw, _) in kinds.iter().filter(|(flaw, _)| flaw != Flaw::Clean.name()) {
            let (mut found, mut percentiles) = (Vec::new(), Vec::new());
            for numbers in seeds.values() {
                let rated: Vec<(f64, &str)> = records
                    .iter()
                    .filter_map(|record| Some((*numbers.get(&record.id)?, flaw_of(record, column)?)))
                    .collect();
                let compared = rated.iter().filter(|(_, kind)| *kind == flaw || *kind == Flaw::Clean.name());
                let (scores, positives): (Vec<f64>, Vec<bool>) =
                    compared.map(|(number, kind)| (-number, kind == flaw)).unzip();
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

/// Mean seconds of each rater's training and scoring over the finished seeds. A start that was killed before it
/// recorded its time does not count.
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
