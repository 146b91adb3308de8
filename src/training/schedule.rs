//! Learning rate and weight decay as functions of the iteration (upstream: `lr_wd_annealing` in
//! `utils/lr_control.py`), the weight between the two losses, and the lengths of epochs.

use std::f64::consts::PI;

use crate::{
    config::{Config, ScheduleShape},
    error::{Error, Result},
};

impl ScheduleShape {
    /// The learning rate relative to its peak, at the share `passed` of the time after the warm-up; `end` is its
    /// final value.
    fn factor(self, passed: f64, end: f64) -> f64 {
        let rest = 1.0 - passed;
        match self {
            Self::Cosine => end + (1.0 - end) * (0.5 + 0.5 * (PI * passed).cos()),
            Self::FlatThenLinear(flat) if passed < flat => 1.0,
            Self::FlatThenLinear(flat) => end + (1.0 - end) * rest / (1.0 - flat),
            Self::Linear => end + (1.0 - end) * rest,
            Self::Bent(share) => {
                let middle = f64::midpoint(1.0, end + (1.0 - end) * (1.0 - share));
                if passed < share {
                    1.0 + (middle - 1.0) * passed / share
                } else {
                    end + (middle - end) * rest / (1.0 - share)
                }
            }
            Self::Exponential => {
                const FLAT: f64 = 0.15;
                if passed < FLAT { 1.0 } else { ((passed - FLAT) / (1.0 - FLAT) * end.ln()).exp() }
            }
        }
    }
}

/// Learning rate and weight decay over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape of the decay after the warm-up.
    pub shape: ScheduleShape,
    /// The peak learning rate.
    pub peak: f64,
    /// Warm-up iterations; rounded half to even, as in Python.
    pub warmup: f64,
    /// The learning rate at iteration 0, relative to the peak.
    pub start: f64,
    /// The learning rate at the last iteration, relative to the peak.
    pub end: f64,
    /// Weight decay at iteration 0; it follows half a cosine to `weight_decay_end`.
    pub weight_decay: f64,
    /// Weight decay at the last iteration.
    pub weight_decay_end: f64,
    /// Iterations of the run.
    pub iterations: u64,
}

/// The rates of one iteration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The learning rate.
    pub learning_rate: f64,
    /// The weight decay of the parameters that decay.
    pub weight_decay: f64,
}

impl Schedule {
    /// The rates at `iteration`, counted from 0. In runs so short that the released code divides by zero (the warm-up
    /// ends on the last iteration, or there is only one), these are the peak and the initial weight decay.
    pub fn at(&self, iteration: u64) -> Rates {
        let (now, last) = (iteration as f64, self.iterations.saturating_sub(1) as f64);
        let warmup = self.warmup.round_ties_even();
        let share = |passed: f64, whole: f64| if whole > 0.0 { (passed / whole).min(1.0) } else { 0.0 };
        let factor = if now < warmup {
            self.start + (1.0 - self.start) * now / warmup
        } else {
            self.shape.factor(share(now - warmup, last - warmup), self.end)
        };
        let cosine = 0.5 + 0.5 * (PI * share(now, last)).cos();
        Rates {
            learning_rate: factor * self.peak,
            weight_decay: self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * cosine,
        }
    }
}

/// The share of the validation loss in the proxy's loss in an epoch, counted from 0: linear in the epoch, and clamped
/// at 0 unless `unclamped`, as upstream (upstream.md, A7).
pub(crate) fn upper_level_weight(first: f64, decay: f64, epoch: u64, unclamped: bool) -> f64 {
    let weight = first - decay * epoch as f64;
    if unclamped { weight } else { weight.max(0.0) }
}

/// A run as iterations (one training and one validation batch each), updates (`accumulation` iterations each) and
/// epochs. All counts start at 0; an update may span the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Iterations per epoch.
    pub epoch_iterations: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Iterations per update.
    pub accumulation: u64,
    /// Learning rate and weight decay.
    pub schedule: Schedule,
    first_weight: f64,
    weight_decay: f64,
    unclamped: bool,
}

impl Plan {
    /// The plan for the given numbers of training and validation samples. An epoch is one pass over the training set,
    /// or over the validation set under `compat.validation_epoch`, as upstream (upstream.md, C6).
    ///
    /// # Errors
    /// If there is no sample, or the whole run is shorter than one update.
    pub(crate) fn new(config: &Config, train_samples: usize, validation_samples: usize) -> Result<Self> {
        let training = &config.training;
        let samples = if config.compat.validation_epoch { validation_samples } else { train_samples };
        let epoch_iterations = samples.div_ceil(training.batch) as u64;
        let iterations = epoch_iterations * training.epochs;
        let accumulation = training.accumulation as u64;
        if iterations < accumulation {
            return Err(Error::not_enough_data(format!(
                "{samples} samples give {iterations} batches of {} in {} epochs, fewer than the {accumulation} of one \
                 update; lower bs or ac",
                training.batch, training.epochs
            )));
        }
        Ok(Self {
            epoch_iterations,
            epochs: training.epochs,
            accumulation,
            schedule: Schedule {
                shape: training.schedule,
                peak: training.learning_rate,
                warmup: training.warmup_epochs * epoch_iterations as f64,
                start: training.warmup_start,
                end: training.end,
                weight_decay: training.weight_decay,
                weight_decay_end: training.weight_decay_end,
                iterations,
            },
            first_weight: training.upper_level_weight,
            weight_decay: training.upper_level_weight_decay,
            unclamped: config.compat.unclamped_upper_level_weight,
        })
    }

    /// Updates of the run; iterations at the end that do not fill an update are dropped.
    pub(crate) fn updates(&self) -> u64 {
        self.schedule.iterations / self.accumulation
    }

    /// The iterations of an update.
    pub(crate) fn iterations(&self, update: u64) -> std::ops::Range<u64> {
        update * self.accumulation..(update + 1) * self.accumulation
    }

    /// The epoch of an update: that of its last iteration, as upstream.
    pub(crate) fn epoch(&self, update: u64) -> u64 {
        ((update + 1) * self.accumulation - 1) / self.epoch_iterations
    }

    /// Whether an update is the last one of its epoch or of the run.
    pub(crate) fn ends_epoch(&self, update: u64) -> bool {
        update + 1 == self.updates() || self.epoch(update + 1) > self.epoch(update)
    }

    /// The rates of an update: those of its last iteration.
    pub(crate) fn rates(&self, update: u64) -> Rates {
        self.schedule.at(self.iterations(update).end - 1)
    }

    /// The share of the validation loss in the proxy's loss at an update.
    pub(crate) fn upper_level_weight(&self, update: u64) -> f64 {
        upper_level_weight(self.first_weight, self.weight_decay, self.epoch(update), self.unclamped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_do_not_divide_by_zero() {
        let schedule = |iterations, warmup| Schedule {
            shape: ScheduleShape::FlatThenLinear(0.05),
            peak: 1.0,
            warmup,
            start: 0.005,
            end: 0.01,
            weight_decay: 0.05,
            weight_decay_end: 0.02,
            iterations,
        };
        for (iterations, warmup) in [(1, 0.0), (1, 1.0), (2, 1.0), (3, 2.4), (5, 7.0)] {
            for iteration in 0..iterations {
                let rates = schedule(iterations, warmup).at(iteration);
                assert!((0.0..=1.0).contains(&rates.learning_rate), "{iterations} {warmup}: {rates:?}");
                assert!((0.02..=0.05).contains(&rates.weight_decay), "{iterations} {warmup}: {rates:?}");
            }
        }
        assert_eq!(schedule(2, 1.0).at(1).learning_rate, 1.0);
    }

    #[test]
    fn the_weight_is_clamped_at_zero_unless_released() {
        assert_eq!(upper_level_weight(1.0, 0.03, 0, false), 1.0);
        assert!((upper_level_weight(1.0, 0.03, 9, false) - 0.73).abs() < 1e-12);
        assert_eq!(upper_level_weight(1.0, 0.03, 40, false), 0.0);
        assert!((upper_level_weight(1.0, 0.03, 40, true) + 0.2).abs() < 1e-12);
    }

    #[test]
    fn shapes_are_read_by_their_released_names() {
        for name in ["lin0", "lin", "lin00", "lin0.3", "cos", "exp"] {
            name.parse::<ScheduleShape>().unwrap();
        }
        for name in ["", "linear", "lin1", "lin0.0", "linNaN", "pi"] {
            assert!(name.parse::<ScheduleShape>().unwrap_err().contains(&format!("\"{name}\"")));
        }
    }

    #[test]
    fn updates_and_epochs_are_counted_as_released() {
        let sets = ["bs=8", "ac=3", "ep=3"].map(str::to_owned);
        let config = Config::parse("test", "{}", &sets).unwrap();
        assert_eq!(config.training.batch, 3);
        let plan = Plan::new(&config, 12, 6).unwrap();
        assert_eq!((plan.epoch_iterations, plan.updates()), (4, 4));
        assert_eq!((0..4).map(|update| plan.epoch(update)).collect::<Vec<_>>(), [0, 1, 2, 2]);
        assert_eq!(
            (0..4).map(|update| plan.ends_epoch(update)).collect::<Vec<_>>(),
            [true, true, false, true]
        );
        let released = Config::parse("test", "{\"compat\": \"released\"}", &sets).unwrap();
        assert_eq!(Plan::new(&released, 12, 6).unwrap().epoch_iterations, 2);
        assert!(Plan::new(&Config::parse("test", "{}", &[]).unwrap(), 0, 6).is_err());
    }
}
