//! Ranks and percentiles of ratings.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// The rows of a table in descending order of rating; ties keep the order of the input.
///
/// Rank 0 is the highest rating. The percentile of rank `r` among `n` rows is `r / n`, in [0, 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    order: Vec<u32>,
}

impl Ranking {
    /// Ranks `ratings`.
    ///
    /// # Errors
    /// If `ratings` is empty, a rating is not finite, or there are more than 4,294,967,294.
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    pub fn new(ratings: &[f64]) -> Result<Self> {
        if ratings.is_empty() {
            return Err(Error::not_enough_data("there are no ratings to rank"));
        }
        if ratings.len() >= u32::MAX as usize {
            return Err(Error::argument(
                "more than 4,294,967,294 rows cannot be ranked at once; split the table",
            ));
        }
        if let Some(row) = ratings.iter().position(|rating| !rating.is_finite()) {
            return Err(Error::not_finite(format!(
                "the rating of row {} is {}, not a finite number",
                row + 1,
                ratings[row]
            )));
        }
        let mut keyed: Vec<(u64, u32)> = ratings
            .par_iter()
            .enumerate()
            .map(|(row, &rating)| (descending_key(rating), row as u32))
            .collect();
        keyed.par_sort_unstable();
        Ok(Self { order: keyed.into_par_iter().map(|(_, row)| row).collect() })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no rows, which [`new`](Self::new) rejects.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Row indices, highest rating first.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The percentile of a rank, in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "ranks fit 53 bits")]
    pub fn percentile(&self, rank: usize) -> f64 {
        rank as f64 / self.order.len() as f64
    }
}

/// A key whose ascending order is the descending order of ratings; both zeros have the same key.
fn descending_key(rating: f64) -> u64 {
    let bits = (rating + 0.0).to_bits();
    let ascending = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    !ascending
}
