//! Choosing the subset worth training on: ratings tables, the ranking, five strategies, and what they keep.
//!
//! Order: rows are ranked by rating from high to low, ties in the order of the input. The percentile of rank `r` of
//! `n` is `r / n` in [0, 1); percentile 0 is the best rated. Every place that speaks of percentiles means this.

pub mod formats;
pub(crate) mod ids;
pub(crate) mod ranking;
pub(crate) mod ratings;
pub(crate) mod strategy;
pub(crate) mod subset;

use serde::Serialize;

use crate::error::Result;

pub use ranking::Ranking;
pub use ratings::{
    RatingColumns, RatingRow, RatingsHeader, RatingsOptions, RatingsReader, RatingsTable, RatingsWriter,
};
pub use strategy::{Keep, Parameter, Strategy};
pub use subset::{SubsetJob, SubsetReport, write_subset};

/// Chooses from `ratings` (higher is better).
///
/// # Errors
/// If a rating is not finite, a parameter is out of its range, or there are too few rows.
pub fn select(ratings: &[f64], strategy: &Strategy, keep: Keep, seed: u64) -> Result<Selection> {
    let ranking = Ranking::new(ratings)?;
    let ranks = strategy::choose_ranks(&ranking, strategy, keep, seed)?;
    Ok(Selection::of(&ranking, &ranks, ratings, strategy))
}

/// What a strategy keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The rows kept, counted from 0 in the order of the input, ascending.
    pub kept: Vec<u32>,
    /// What they are.
    pub summary: SelectionSummary,
}

/// What a selection consists of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelectionSummary {
    /// Rows in the table.
    pub rows: usize,
    /// Rows dropped from the top before drawing.
    pub dropped: usize,
    /// Rows kept.
    pub kept: usize,
    /// Percentiles of the rows kept (0 = best rated).
    pub kept_percentiles: Spread,
    /// Ratings of the rows kept.
    pub kept_ratings: Spread,
    /// Share kept of each tenth of the ranking, best rated first: row `r` of `n` is in tenth `⌊10·r/n⌋`. `None` where
    /// a tenth has no row.
    pub kept_share_by_decile: [Option<f64>; 10],
}

/// Five numbers and the mean. Quartiles are interpolated linearly between the two nearest values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub minimum: f64,
    /// A quarter lies at or below.
    pub lower_quartile: f64,
    /// A half lies at or below.
    pub median: f64,
    /// Three quarters lie at or below.
    pub upper_quartile: f64,
    /// The largest.
    pub maximum: f64,
    /// The mean.
    pub mean: f64,
}

impl Spread {
    /// Of `count` values that `value` gives in ascending order.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "places among at most 2^32 values"
    )]
    fn of_ascending(count: usize, value: impl Fn(usize) -> f64) -> Self {
        let quantile = |share: f64| {
            let place = share * (count - 1) as f64;
            let (below, part) = (place.floor() as usize, place.fract());
            let lower = value(below);
            if part == 0.0 { lower } else { lower + (value(below + 1) - lower) * part }
        };
        Self {
            minimum: value(0),
            lower_quartile: quantile(0.25),
            median: quantile(0.5),
            upper_quartile: quantile(0.75),
            maximum: value(count - 1),
            mean: (0..count).map(&value).sum::<f64>() / count as f64,
        }
    }
}

impl Selection {
    /// The rows at `ranks` (ascending, not empty).
    #[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
    fn of(ranking: &Ranking, ranks: &[u32], ratings: &[f64], strategy: &Strategy) -> Self {
        use rayon::prelude::*;
        let rows = ranking.len();
        let mut kept: Vec<u32> = ranks.par_iter().map(|&rank| ranking.order()[rank as usize]).collect();
        let last = ranks.len() - 1;
        let kept_ratings = Spread::of_ascending(ranks.len(), |place| {
            ratings[ranking.order()[ranks[last - place] as usize] as usize]
        });
        kept.par_sort_unstable();
        let (mut kept_of, mut rows_of) = ([0usize; 10], [0usize; 10]);
        for (decile, rows_of) in rows_of.iter_mut().enumerate() {
            *rows_of = (rows * (decile + 1)).div_ceil(10) - (rows * decile).div_ceil(10);
        }
        for &rank in ranks {
            kept_of[rank as usize * 10 / rows] += 1;
        }
        let share =
            |decile: usize| (rows_of[decile] > 0).then(|| kept_of[decile] as f64 / rows_of[decile] as f64);
        let summary = SelectionSummary {
            rows,
            dropped: strategy.dropped(rows),
            kept: ranks.len(),
            kept_percentiles: Spread::of_ascending(ranks.len(), |place| {
                ranking.percentile(ranks[place] as usize)
            }),
            kept_ratings,
            kept_share_by_decile: std::array::from_fn(share),
        };
        Self { kept, summary }
    }
}
