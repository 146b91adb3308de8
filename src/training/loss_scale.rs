//! The loss scale that keeps small gradients within fp16, as upstream: PyTorch's `GradScaler` with an upper bound
//! (upstream.md, A9).

use serde::{Deserialize, Serialize};

/// The initial scale.
const FIRST: f64 = 2048.0;
/// Consecutive applied updates after which the scale grows.
const INTERVAL: u64 = 1000;
/// The growth factor.
const GROWTH: f64 = 2.0;
/// The factor after a skipped update.
const BACKOFF: f64 = 0.5;
/// The upper bound.
const MOST: f64 = 32_768.0;

/// The scale and its state. It is a power of two, so it changes no digit of values that stay in range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    factor: f64,
    /// Updates since the scale last changed.
    since: u64,
    /// Updates skipped in the whole run.
    skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: FIRST, since: 0, skipped: 0 }
    }
}

impl LossScale {
    /// The factor of the losses.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Updates skipped in the whole run.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Records an update: applied, or skipped because the gradients were not finite.
    pub(crate) fn record(&mut self, applied: bool) {
        if !applied {
            self.factor *= BACKOFF;
            (self.since, self.skipped) = (0, self.skipped + 1);
            return;
        }
        self.since += 1;
        if self.since == INTERVAL {
            (self.factor, self.since) = ((self.factor * GROWTH).min(MOST), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_follows_the_released_rules() {
        let mut scale = LossScale::default();
        assert_eq!(scale.factor(), 2048.0);
        scale.record(false);
        assert_eq!((scale.factor(), scale.skipped()), (1024.0, 1));
        for _ in 0..999 {
            scale.record(true);
        }
        assert_eq!(scale.factor(), 1024.0);
        scale.record(true);
        assert_eq!(scale.factor(), 2048.0);
        // A skipped update restarts the count.
        for _ in 0..999 {
            scale.record(true);
        }
        scale.record(false);
        scale.record(true);
        assert_eq!(scale.factor(), 1024.0);
        for _ in 0..20_000 {
            scale.record(true);
        }
        assert_eq!((scale.factor(), scale.skipped()), (32_768.0, 2));
    }
}
