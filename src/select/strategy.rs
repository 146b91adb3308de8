//! The selection strategies (method.md, stage 2): random, top-k, block, filter, Gsample, Shift-Gsample.
//!
//! All sample without replacement and return exactly the requested number of rows. A row's random number depends only
//! on the seed and the row (Philox, counter = row), so the result does not depend on threads or the order of work.

use std::{fmt, ops::Range, str::FromStr};

use rayon::prelude::*;
use serde::Serialize;

use super::Ranking;
use crate::{
    engine::{Purpose, Random},
    error::{Error, Result},
};

/// How many rows to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// A share of all rows in (0, 1], rounded to the nearest integer.
    Share(f64),
    /// An absolute number of rows.
    Count(u64),
}

impl FromStr for Keep {
    type Err = Error;

    /// `50%` and `0.5` are shares, `1200` is a count (so `1` is one row and `1.0` is all rows).
    fn from_str(text: &str) -> Result<Self> {
        let unreadable = || {
            Error::argument(format!(
                "`{text}` is neither a share such as 50% or 0.5 nor a number of rows such as 1200"
            ))
        };
        let keep = if let Some(percent) = text.strip_suffix('%') {
            Self::Share(percent.trim().parse::<f64>().map_err(|_| unreadable())? / 100.0)
        } else if let Ok(count) = text.parse::<u64>() {
            Self::Count(count)
        } else {
            Self::Share(text.parse::<f64>().map_err(|_| unreadable())?)
        };
        keep.validated()
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(formatter, "{}%", share * 100.0),
            Self::Count(count) => write!(formatter, "{count} rows"),
        }
    }
}

impl Keep {
    fn validated(self) -> Result<Self> {
        match self {
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => Err(Error::argument(format!(
                "the share to keep is {share}, but it must be above 0 and at most 1 (100%)"
            ))),
            Self::Count(0) => {
                Err(Error::argument("the number of rows to keep is 0, but it must be at least 1"))
            }
            keep => Ok(keep),
        }
    }

    /// The number of rows to keep of `rows`.
    ///
    /// # Errors
    /// If a share is outside (0, 1], or rounds to zero rows.
    pub fn count(self, rows: usize) -> Result<usize> {
        match self.validated()? {
            Self::Count(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
            Self::Share(share) => match rounded(share, rows) {
                0 => {
                    Err(Error::argument(format!("{self} of {rows} rows is less than half a row; keep more")))
                }
                count => Ok(count),
            },
        }
    }
}

/// `share` of `rows`, rounded to the nearest integer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share in [0, 1] of at most 2^32 rows"
)]
fn rounded(share: f64, rows: usize) -> usize {
    (share * rows as f64).round() as usize
}

/// A parameter of a strategy: a share or a percentile, written as `30%` or `0.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Mean of the Gaussian, between 0 and 1.
    Mean,
    /// Standard deviation of the Gaussian, above 0 and at most 1.
    Sigma,
    /// Share excluded from the top, at least 0 and below 1.
    DropTop,
    /// Percentile where the window starts, at least 0 and below 1.
    Offset,
    /// Share of the best rated that is sampled from, above 0 and at most 1.
    Within,
}

impl Parameter {
    /// The name in configurations and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Sigma => "sigma",
            Self::DropTop => "drop_top",
            Self::Offset => "offset",
            Self::Within => "within",
        }
    }

    /// Parses a value.
    ///
    /// # Errors
    /// If it is not a number or outside the parameter's range.
    pub fn parse(self, text: &str) -> Result<f64> {
        let text = text.trim();
        let number = match text.strip_suffix('%').map(str::trim_end) {
            // Divides by 100 in decimal, so that 33.3% is exactly the float 0.333.
            Some(percent) if !percent.contains(['e', 'E']) => format!("{percent}e-2").parse::<f64>(),
            Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
            None => text.parse::<f64>(),
        };
        let Ok(number) = number else {
            return Err(Error::argument(format!(
                "`{text}` is neither a percentage such as 30% nor a share such as 0.3"
            )));
        };
        let (fits, range) = match self {
            Self::Mean => ((0.0..=1.0).contains(&number), "between 0 and 1 (100%)"),
            Self::Sigma | Self::Within => (number > 0.0 && number <= 1.0, "above 0 and at most 1 (100%)"),
            Self::DropTop | Self::Offset => ((0.0..1.0).contains(&number), "at least 0 and below 1 (100%)"),
        };
        if fits {
            return Ok(number);
        }
        let hint = if number > 1.0 && number <= 100.0 && !text.ends_with('%') {
            format!("; for {text} percent write {text}%")
        } else {
            String::new()
        };
        Err(Error::argument(format!("{} is {text}, but it must be {range}{hint}", self.name())))
    }
}

/// A selection strategy. Percentile 0 is the highest rating; the lowest is just under 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "strategy", rename_all = "kebab-case")]
pub enum Strategy {
    /// Uniform sampling.
    Random,
    /// The highest ratings.
    TopK,
    /// A contiguous window of the ranking.
    Block {
        /// Percentile where the window starts, in [0, 1).
        offset: f64,
    },
    /// Uniform sampling from the best rated, so that the worst rated are left out and the best are not preferred.
    Filter {
        /// Share of all rows to sample from, in (0, 1]. If it has fewer rows than are kept, the best rated are kept.
        within: f64,
    },
    /// Sampling weighted by a Gaussian over the percentiles; the paper's mean is 0.5.
    Gsample {
        /// Mean of the Gaussian, a percentile.
        mean: f64,
        /// Standard deviation of the Gaussian, in percentiles.
        sigma: f64,
    },
    /// Excludes the highest ratings, then samples weighted by a Gaussian over the percentiles (eq. 11).
    ShiftGsample {
        /// Share of all rows to exclude from the top, in [0, 1).
        #[serde(rename = "drop_top")]
        drop_top: f64,
        /// Mean of the Gaussian, a percentile of the whole ranking.
        mean: f64,
        /// Standard deviation of the Gaussian, in percentiles.
        sigma: f64,
    },
}

impl Strategy {
    /// Gsample centered on the ranking, as in the paper.
    pub(crate) const GSAMPLE: Self = Self::Gsample { mean: 0.5, sigma: 0.2 };
    /// The default Shift-Gsample: the window in which the rater of the rule `excess` beat random subsets at every
    /// share, on both corpora tested (docs/comparison.md). The paper's best window is later, about `drop_top` 0.1,
    /// `mean` 0.45, `sigma` 0.2, because its rater ranks plain images first.
    pub const SHIFT_GSAMPLE: Self = Self::ShiftGsample { drop_top: 0.05, mean: 0.3, sigma: 0.25 };

    /// The default filter: the strategy with which the default rule closed most of the gap to clean subsets
    /// (docs/comparison.md).
    pub const FILTER: Self = Self::Filter { within: 0.6 };

    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::TopK => "top-k",
            Self::Block { .. } => "block",
            Self::Filter { .. } => "filter",
            Self::Gsample { .. } => "gsample",
            Self::ShiftGsample { .. } => "shift-gsample",
        }
    }

    /// Checks the range of each parameter.
    ///
    /// # Errors
    /// If a share is out of range, the mean is not finite, or sigma is not above 0.
    pub fn validate(&self) -> Result<()> {
        let gaussian = |mean: f64, sigma: f64| {
            if !mean.is_finite() {
                return Err(Error::argument(format!("mean is {mean}, but it must be a finite number")));
            }
            if !(sigma > 0.0 && sigma.is_finite()) {
                return Err(Error::argument(format!("sigma is {sigma}, but it must be a number above 0")));
            }
            Ok(())
        };
        let below_one = |name: &str, value: f64| {
            if (0.0..1.0).contains(&value) {
                return Ok(());
            }
            Err(Error::argument(format!("{name} is {value}, but it must be at least 0 and below 1")))
        };
        match *self {
            Self::Random | Self::TopK => Ok(()),
            Self::Block { offset } => below_one("offset", offset),
            Self::Filter { within } if within > 0.0 && within <= 1.0 => Ok(()),
            Self::Filter { within } => {
                Err(Error::argument(format!("within is {within}, but it must be above 0 and at most 1")))
            }
            Self::Gsample { mean, sigma } => gaussian(mean, sigma),
            Self::ShiftGsample { drop_top, mean, sigma } => {
                below_one("drop_top", drop_top)?;
                gaussian(mean, sigma)
            }
        }
    }

    /// The maximum number of rows that this can keep of `rows`.
    pub fn reach(&self, rows: usize) -> usize {
        match *self {
            Self::Block { offset } => rows - rounded(offset, rows).min(rows),
            _ => rows - self.dropped(rows),
        }
    }

    /// The number of highest-rated rows of `rows` that are excluded before sampling.
    pub fn dropped(&self, rows: usize) -> usize {
        if let Self::ShiftGsample { drop_top, .. } = *self { rounded(drop_top, rows) } else { 0 }
    }
}

/// The ranks that `strategy` keeps, ascending; exactly as many as `keep` requires.
///
/// # Errors
/// If a parameter is out of range, or fewer rows are available than required.
pub(crate) fn choose_ranks(
    ranking: &Ranking,
    strategy: &Strategy,
    keep: Keep,
    seed: u64,
) -> Result<Vec<u32>> {
    strategy.validate()?;
    let rows = ranking.len();
    let count = keep.count(rows)?;
    let dropped = strategy.dropped(rows);
    let available = rows - dropped;
    if count > available {
        let why =
            if dropped > 0 { format!(" after excluding the {dropped} highest-rated") } else { String::new() };
        return Err(Error::not_enough_data(format!(
            "cannot keep {count} rows: only {available} of {rows} are available{why}; keep fewer"
        )));
    }
    let gaussian = |mean: f64, sigma: f64| {
        smallest_keys(ranking, dropped..rows, count, |rank, row| {
            let distance = (ranking.percentile(rank) - mean) / sigma;
            log_exponential(seed, row) + 0.5 * distance * distance
        })
    };
    match *strategy {
        Strategy::Random => Ok(smallest_keys(ranking, 0..rows, count, |_, row| log_exponential(seed, row))),
        Strategy::TopK => Ok(window(0, count)),
        Strategy::Block { offset } => {
            let begin = rounded(offset, rows);
            if begin + count > rows {
                return Err(Error::not_enough_data(format!(
                    "a block of {count} rows from offset {offset} (rank {begin}) runs past the last of {rows} rows; \
                     begin earlier or keep fewer"
                )));
            }
            Ok(window(begin, count))
        }
        Strategy::Filter { within } => {
            let best = rounded(within, rows).max(count);
            Ok(smallest_keys(ranking, 0..best, count, |_, row| log_exponential(seed, row)))
        }
        Strategy::Gsample { mean, sigma } | Strategy::ShiftGsample { mean, sigma, .. } => {
            Ok(gaussian(mean, sigma))
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ranks are bounded by the ranking")]
fn window(begin: usize, count: usize) -> Vec<u32> {
    (begin as u32..(begin + count) as u32).collect()
}

/// The logarithm of the Exp(1) variate of `row`.
fn log_exponential(seed: u64, row: u32) -> f64 {
    (-(-Random::new(seed, Purpose::Select, u64::from(row)).uniform()).ln_1p()).ln()
}

/// Weighted sampling without replacement with exponential keys (Efraimidis and Spirakis 2006): the `count` smallest
/// of `Exp(1) / p`. `log_key(rank, row)` returns the logarithm of the key, so that small weights do not underflow to
/// 0.
#[expect(clippy::cast_possible_truncation, reason = "ranks are bounded by the ranking")]
fn smallest_keys(
    ranking: &Ranking,
    ranks: Range<usize>,
    count: usize,
    log_key: impl Fn(usize, u32) -> f64 + Sync,
) -> Vec<u32> {
    if count == ranks.len() {
        return window(ranks.start, count);
    }
    let mut keyed: Vec<(f64, u32)> =
        ranks.into_par_iter().map(|rank| (log_key(rank, ranking.order()[rank]), rank as u32)).collect();
    keyed.select_nth_unstable_by(count, |left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    keyed.truncate(count);
    let mut kept: Vec<u32> = keyed.into_iter().map(|(_, rank)| rank).collect();
    kept.par_sort_unstable();
    kept
}
