//! The learning rates of a run's updates, from its log.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind},
    path::Path,
};

use serde::Deserialize;

use crate::{
    config::Config,
    error::{Error, Result},
    training::{
        checkpoint::Checkpoint,
        run_directory::{CHECKPOINTS, METRICS},
        schedule::Plan,
    },
};

/// Gives up beyond this many candidate epoch lengths.
const MOST_LENGTHS: u64 = 1 << 20;

/// The fields read from a logged update.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Logged {
    step: u64,
    epoch: u64,
    learning_rate: f64,
}

/// The learning rates of one run.
pub(super) struct LearningRates<'a> {
    config: &'a Config,
    logged: Vec<Logged>,
}

impl<'a> LearningRates<'a> {
    /// Reads the log of a run with this configuration.
    pub(super) fn of(run: &Path, config: &'a Config) -> Result<Self> {
        let path = run.join(METRICS);
        // A run of an older version does not record the file's digest.
        if let Some(newest) = Checkpoint::newest(&run.join(CHECKPOINTS))?
            && let Ok(files) = Checkpoint::run_files(&newest)
        {
            files.expect_metrics(run)?;
        }
        let mut logged = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let line = line.map_err(Error::io("read", &path))?;
                    // The last line may be incomplete while the run is still training.
                    logged.extend(serde_json::from_str::<Logged>(&line).ok());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
        Ok(Self { config, logged })
    }

    /// The learning rate of the update that led to the weights after `step` updates; `None` if it cannot be
    /// determined.
    ///
    /// For a logged update, the log contains it. For the others, it follows from the schedule and the length of an
    /// epoch: the candidates are the lengths for which the schedule gives exactly the logged rates, and all candidates
    /// must give the same rate.
    pub(super) fn leading_to(&self, step: u64) -> Option<f64> {
        let update = step.checked_sub(1)?;
        if let Some(line) = self.logged.iter().find(|line| line.step == update) {
            return Some(line.learning_rate);
        }
        let (least, most) = self.epoch_lengths()?;
        if most.checked_sub(least)? >= MOST_LENGTHS {
            return None;
        }
        let mut agreed = None;
        for length in least..=most {
            let Some(rate) = self.under(length, update) else { continue };
            if agreed.is_some_and(|agreed| agreed != rate) {
                return None;
            }
            agreed = Some(rate);
        }
        agreed
    }

    /// The smallest and largest number of iterations per epoch that is consistent with the epochs of the logged
    /// updates.
    fn epoch_lengths(&self) -> Option<(u64, u64)> {
        let accumulation = self.config.training.accumulation as u64;
        let (mut least, mut most) = (1, None::<u64>);
        for line in &self.logged {
            let last = (line.step + 1) * accumulation - 1;
            least = least.max(last / (line.epoch + 1) + 1);
            if let Some(longest) = last.checked_div(line.epoch) {
                most = Some(most.map_or(longest, |most| most.min(longest)));
            }
        }
        Some((least, most?))
    }

    /// The learning rate of an update for this epoch length, unless the log contradicts it.
    fn under(&self, epoch_iterations: u64, update: u64) -> Option<f64> {
        let samples = usize::try_from(epoch_iterations).ok()?.checked_mul(self.config.training.batch)?;
        let plan = Plan::new(self.config, samples, samples).ok()?;
        let fits = |line: &Logged| {
            line.step < plan.updates()
                && plan.epoch(line.step) == line.epoch
                && plan.rates(line.step).learning_rate == line.learning_rate
        };
        (update < plan.updates() && self.logged.iter().all(fits)).then(|| plan.rates(update).learning_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_logged_follows_from_the_schedule() {
        let sets = ["bs=8", "ep=4", "tlr=1e-3", "wp=1", "ac=2"].map(str::to_owned);
        let config = Config::parse("test", "{}", &sets).unwrap();
        let plan = Plan::new(&config, 1234, 40).unwrap();
        let line = |step: u64| Logged {
            step,
            epoch: plan.epoch(step),
            learning_rate: plan.rates(step).learning_rate,
        };
        let known = |logged: &[u64], step: u64| {
            let rates =
                LearningRates { config: &config, logged: logged.iter().map(|&step| line(step)).collect() };
            rates.leading_to(step)
        };
        let last = plan.updates() - 1;
        for step in [1, 17, 100, 150, last, last + 1] {
            let expected = Some(plan.rates(step - 1).learning_rate);
            assert_eq!(known(&[step - 1], step), expected, "logged, step {step}");
            assert_eq!(known(&[0, 40, 80, 120, 160, 200, last], step), expected, "not logged, step {step}");
        }
        assert_eq!(known(&[], 5), None, "nothing is known");
        assert_eq!(known(&[0, 1, 2], 100), None, "nothing bounds the length of an epoch");
        assert_eq!(known(&[0], 0), None, "no update led there");
    }
}
