//! Data selection: ratings tables, the ranking, five selection strategies, and the subsets that they write.
//!
//! Rows are ranked by rating in descending order; ties keep the order of the input. The percentile of rank `r` of `n`
//! is `r / n` in [0, 1): percentile 0 is the highest rating. All code and documentation uses this definition.

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

/// Selects rows from `ratings` (higher is better).
///
/// # Errors
/// If a rating is not finite, a parameter is out of range, or there are too few rows.
pub fn select(ratings: &[f64], strategy: &Strategy, keep: Keep, seed: u64) -> Result<Selection> {
    let ranking = Ranking::new(ratings)?;
    let ranks = strategy::choose_ranks(&ranking, strategy, keep, seed)?;
    Ok(Selection::of(&ranking, &ranks, ratings, strategy))
}

/// The result of a strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Indices of the kept rows, ascending.
    pub kept: Vec<u32>,
    /// Statistics of the kept rows.
    pub summary: SelectionSummary,
}

/// Statistics of a selection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelectionSummary {
    /// Rows in the table.
    pub rows: usize,
    /// Highest-rated rows excluded before sampling.
    pub dropped: usize,
    /// Rows kept.
    pub kept: usize,
    /// Percentiles of the kept rows (0 = highest rating).
    pub kept_percentiles: Spread,
    /// Ratings of the kept rows.
    pub kept_ratings: Spread,
    /// Share of rows kept per decile of the ranking, highest ratings first: row `r` of `n` is in decile `⌊10·r/n⌋`.
    /// `None` if a decile has no rows.
    pub kept_share_by_decile: [Option<f64>; 10],
}

/// Minimum, quartiles, maximum and mean. Quartiles are interpolated linearly between the two nearest values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Minimum.
    pub minimum: f64,
    /// 25th percentile.
    pub lower_quartile: f64,
    /// 50th percentile.
    pub median: f64,
    /// 75th percentile.
    pub upper_quartile: f64,
    /// Maximum.
    pub maximum: f64,
    /// Mean.
    pub mean: f64,
}

impl Spread {
    /// Statistics of `count` values, which `value` returns in ascending order.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "indices of at most 2^32 values"
    )]
    fn of_ascending(count: usize, value: impl Fn(usize) -> f64) -> Self {
        let quantile = |share: f64| {
            let position = share * (count - 1) as f64;
            let (below, part) = (position.floor() as usize, position.fract());
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
    /// The selection of the rows at `ranks` (ascending, not empty).
    #[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
    fn of(ranking: &Ranking, ranks: &[u32], ratings: &[f64], strategy: &Strategy) -> Self {
        use rayon::prelude::*;
        let rows = ranking.len();
        let mut kept: Vec<u32> = ranks.par_iter().map(|&rank| ranking.order()[rank as usize]).collect();
        let last = ranks.len() - 1;
        let kept_ratings = Spread::of_ascending(ranks.len(), |index| {
            ratings[ranking.order()[ranks[last - index] as usize] as usize]
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
            kept_percentiles: Spread::of_ascending(ranks.len(), |index| {
                ranking.percentile(ranks[index] as usize)
            }),
            kept_ratings,
            kept_share_by_decile: std::array::from_fn(share),
        };
        Self { kept, summary }
    }
}
