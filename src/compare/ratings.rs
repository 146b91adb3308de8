//! The ratings of a comparison: one table of ids and values per rating and seed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    arms::{Heuristic, Measured, RaterRule, Rating},
    heuristics,
    runs::{path_key, run_directory, seconds, timed, with_keys},
    task::Task,
};
use crate::{
    config::Config,
    data::Record,
    error::{Error, Result},
    files::{
        sealed::{Written, read_sealed, write_sealed},
        sha256_of_file, write_csv,
    },
    interrupt::Interrupt,
    rater::{
        dynamics::recordings,
        scorer::{ScoreRequest, score},
        trainer::train,
    },
    select::{RatingsTable, ratings::RatingColumns},
    training::{checkpoint::Checkpoint, run_directory::CHECKPOINTS},
};

/// Seconds of a rater's training and of its scoring; `None` if unknown.
pub(super) type Cost = [Option<f64>; 2];

/// Computes ratings and caches them.
pub(super) struct Ratings<'a> {
    /// The configuration shared by all runs.
    pub(super) config: &'a Config,
    /// The comparison's folder.
    pub(super) folder: &'a Path,
    /// All usable records, and their table.
    pub(super) pool: (&'a Path, &'a [Record]),
    pub(super) validation: &'a Path,
    pub(super) cache: &'a Path,
    /// The cost of a rater's run and scoring, or the message if it diverged, by rule and seed.
    pub(super) raters: HashMap<(RaterRule, u64), Result<Cost, String>>,
    heuristics: HashMap<Heuristic, Vec<f64>>,
}

impl<'a> Ratings<'a> {
    /// For a pool of records.
    pub(super) fn new(
        config: &'a Config,
        folder: &'a Path,
        pool: (&'a Path, &'a [Record]),
        validation: &'a Path,
        cache: &'a Path,
    ) -> Self {
        Self { config, folder, pool, validation, cache, raters: HashMap::new(), heuristics: HashMap::new() }
    }

    /// The names of the id and rating columns.
    pub(super) fn columns(&self) -> RatingColumns {
        RatingColumns { id: self.config.data.id_column.clone(), ..RatingColumns::default() }
    }

    fn path(&self, name: &str, seed: u64) -> PathBuf {
        self.folder.join("ratings").join(format!("{name}-{seed}.csv"))
    }

    /// The table of a rating for a seed, or the message if its rater diverged.
    pub(super) fn table(
        &mut self,
        rating: Rating,
        seed: u64,
        all: &[Rating],
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<Result<PathBuf, String>> {
        let path = self.path(rating.name(), seed);
        if let Some(rule) = rating.run()
            && let Err(message) = self.rater(rule, seed, interrupt, task)?
        {
            return Ok(Err(message));
        }
        match rating {
            // Written by scoring.
            Rating::Rater(_) => {}
            _ if is_kept(&path) => {}
            Rating::RaterAlone(rule) => {
                self.score(&self.run(rule, seed), &path, true, interrupt, task).map_err(kept)?;
            }
            Rating::Measured(measured) => {
                let numbers = self.measured(measured, seed)?;
                self.write(&path, &numbers)?;
                keep(&path)?;
            }
            Rating::Heuristic(heuristic) => {
                if self.heuristics.is_empty() {
                    self.look(all, interrupt, task)?;
                }
                self.write(&path, &self.heuristics[&heuristic].clone())?;
                keep(&path)?;
            }
        }
        Ok(Ok(path))
    }

    /// A table in which every record for which `keep` holds has the same rating.
    pub(super) fn constant(&self, name: &str, seed: u64, keep: impl Fn(&Record) -> bool) -> Result<PathBuf> {
        let path = self.path(name, seed);
        let numbers: Vec<f64> =
            self.pool.1.iter().map(|record| if keep(record) { 0.0 } else { f64::NAN }).collect();
        self.write(&path, &numbers)?;
        Ok(path)
    }

    /// Trains and scores with a rule, unless that is done.
    fn rater(
        &mut self,
        rule: RaterRule,
        seed: u64,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<Result<(), String>> {
        if let Some(known) = self.raters.get(&(rule, seed)) {
            return Ok(known.clone().map(|_| ()));
        }
        let name = rule.name();
        let mut keys = rule.keys(self.config);
        keys.extend([
            path_key("data_args.train_csv_path", self.pool.0)?,
            match rule.is_cross_fitted() {
                true => "data_args.val_csv_path=".to_owned(),
                false => path_key("data_args.val_csv_path", self.validation)?,
            },
            path_key("token_cache", self.cache)?,
            // The comparison wrote these tables, so the configured format does not apply.
            "data_format=".to_owned(),
            format!("seed={seed}"),
            "record_every=1".to_owned(),
            "keep_checkpoints=1".to_owned(),
        ]);
        let config = with_keys(self.config, &keys)?;
        let run = self.run(rule, seed);
        let out = self.path(name, seed);
        let times =
            ["train", "score"].map(|what| run.with_file_name(format!("{name}-{seed}.{what}.seconds")));
        if !is_kept(&out) {
            task.name = format!("rating by {name}, seed {seed}");
            let directory = run_directory(&run, &config)?;
            let trained = timed(&times[0], || {
                match train(&config, &directory, &["compare".to_owned()], interrupt, task) {
                    Err(Error::Diverged(message)) => Ok(Err(message)),
                    Ok(_) => Ok(Ok(())),
                    Err(error) => Err(error),
                }
            });
            drop(directory);
            let (trained, _) = trained.map_err(kept)?;
            if let Err(message) = trained {
                tracing::warn!("the rater of {name} with seed {seed} diverged: {message}");
                self.raters.insert((rule, seed), Err(message.clone()));
                return Ok(Err(message));
            }
            timed(&times[1], || self.score(&run, &out, false, interrupt, task).map_err(kept))?;
        }
        let taken = times.map(|path| seconds(&path));
        self.raters.insert((rule, seed), Ok(taken));
        Ok(Ok(()))
    }

    /// Scores the pool with a run, by its rater alone if `by_rater`.
    fn score(
        &self,
        run: &Path,
        out: &Path,
        by_rater: bool,
        interrupt: &Interrupt,
        task: &mut Task<'_>,
    ) -> Result<()> {
        // A table that exists here is damaged or has no note.
        let replaced = out.exists();
        if replaced {
            fs::remove_file(out).map_err(Error::io("remove", out))?;
        }
        let request = ScoreRequest {
            checkpoint: run.to_path_buf(),
            config: None,
            corpus: self.pool.0.to_path_buf(),
            format: None,
            out: out.to_path_buf(),
            rating_column: "rating".to_owned(),
            batch: self.config.training.batch,
            batch_normalized: false,
            by_rater,
            overwrite: replaced,
            images: false,
            note_column: None,
            sets: Vec::new(),
        };
        let scored = score(&request, interrupt, &mut task.renaming())?;
        if scored.failed > 0 {
            return Err(Error::invalid(format!(
                "{} records could not be rated by {} although their tokens are cached; see {}",
                scored.failed,
                run.display(),
                scored.failed_out.display()
            )));
        }
        keep(out)
    }

    /// The folder of a rater's run.
    fn run(&self, rule: RaterRule, seed: u64) -> PathBuf {
        self.folder.join("raters").join(format!("{}-{seed}", rule.name()))
    }

    /// The recorded quantity of each record of the pool, a mean over the run's epochs; NaN where none was recorded.
    fn measured(&self, measured: Measured, seed: u64) -> Result<Vec<f64>> {
        let run = self.run(measured.run(), seed);
        if let Some(newest) = Checkpoint::newest(&run.join(CHECKPOINTS))? {
            Checkpoint::run_files(&newest)?.expect_recordings(&run)?;
        }
        let (column, high_is_good) = measured.column();
        let folder = run.join("dynamics");
        let all = recordings(&folder)?;
        // The last epoch's running average includes the earlier ones.
        let epochs = if column == "average" { &all[all.len().saturating_sub(1)..] } else { &all[..] };
        let mut sums: HashMap<&str, (f64, f64)> = HashMap::new();
        for epoch in epochs {
            for (id, &value) in epoch.ids.iter().zip(epoch.column(column).unwrap_or_default()) {
                if value.is_finite() {
                    let (sum, count) = sums.entry(id).or_default();
                    *sum += value;
                    *count += 1.0;
                }
            }
        }
        if sums.is_empty() {
            return Err(Error::input(&folder, format!("{} contains no {column}", folder.display())));
        }
        let sign = if high_is_good { 1.0 } else { -1.0 };
        let number = |record: &Record| {
            sums.get(record.id.as_str()).map_or(f64::NAN, |(sum, count)| sign * sum / count)
        };
        Ok(self.pool.1.iter().map(number).collect())
    }

    fn look(&mut self, all: &[Rating], interrupt: &Interrupt, task: &mut Task<'_>) -> Result<()> {
        let asked: Vec<Heuristic> = all
            .iter()
            .filter_map(|rating| match rating {
                Rating::Heuristic(heuristic) => Some(*heuristic),
                _ => None,
            })
            .collect();
        let data = &self.config.data;
        let preprocess = self.config.preprocess(1);
        let numbers = heuristics::rate(&asked, self.pool.1, preprocess, data.workers, interrupt, task)?;
        self.heuristics = asked.into_iter().zip(numbers).collect();
        Ok(())
    }

    /// Writes a ratings table of the records that have a value.
    fn write(&self, path: &Path, numbers: &[f64]) -> Result<()> {
        let rated = self.pool.1.iter().zip(numbers).filter(|(_, number)| number.is_finite());
        let rows = rated.map(|(record, number)| [record.id.clone(), number.to_string()]);
        write_csv(path, &[self.config.data.id_column.as_str(), "rating"], rows)
    }

    /// The values of a table by id.
    pub(super) fn read(&self, path: &Path) -> Result<HashMap<String, f64>> {
        let table = RatingsTable::read(path, &self.columns())?;
        let id =
            |at: usize| u32::try_from(at).map_or(String::new(), |at| table.ids.get(at as usize).to_owned());
        Ok(table.ratings.iter().enumerate().map(|(at, &rating)| (id(at), rating)).collect())
    }
}

/// The path of the note that identifies a finished table.
fn note_of(table: &Path) -> PathBuf {
    table.with_extension("written.json")
}

/// Writes the note of a finished table.
fn keep(table: &Path) -> Result<()> {
    let bytes = fs::metadata(table).map_err(Error::io("read", table))?.len();
    write_sealed(&note_of(table), &Written { bytes, sha256: sha256_of_file(table)? })
}

/// Whether a table exists and is unchanged since it was finished; otherwise it is recomputed.
fn is_kept(table: &Path) -> bool {
    let note = note_of(table);
    if !table.exists() || !note.exists() {
        return false;
    }
    let kept = match read_sealed::<Written>(&note, "the table is recomputed") {
        Ok(written) => written.is_whole(table),
        Err(error) => {
            tracing::warn!("{error}");
            return false;
        }
    };
    if !kept {
        tracing::warn!("{} is damaged or was changed; it is recomputed", table.display());
    }
    kept
}

/// Replaces the hint of an interrupted part with that of the comparison.
fn kept(error: Error) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Interrupted {
            saved:
                "finished ratings are kept, and the current rater resumes from its checkpoint; run the same \
                    command again"
                    .to_owned(),
        },
        other => other,
    }
}
