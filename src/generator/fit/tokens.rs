//! The tokens of the pyramid that an iteration trains on, and their loss weights: progressive training (`pg`) and
//! token dropping (`drop_scale_length`).

use crate::{
    config::{Config, Progressive},
    engine::{Purpose, Random},
    error::{Error, Result},
    models::Layout,
    training::schedule::Plan,
};

/// The tokens of one iteration.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    /// The layout of the tokens; `None` for all tokens.
    pub(super) layout: Option<Layout>,
    /// The weight of each token, if they differ; a sample's loss is the weighted sum over the number of tokens.
    pub(super) weights: Option<Vec<f64>>,
}

/// Selects the tokens of every iteration.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    whole: Layout,
    /// The end of each scale.
    ends: Vec<usize>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    All,
    Progressive { settings: Progressive, warm_up: f64, iterations: f64, stage_warm_up: f64 },
    Dropping { keep: usize, seed: u64 },
}

impl Chooser {
    /// The selection of a configuration, for a network with this layout of tokens.
    ///
    /// # Errors
    /// If more tokens would be dropped than the finest scale has, or progressive training starts at a scale that does
    /// not exist.
    pub(super) fn new(config: &Config, plan: &Plan, whole: Layout) -> Result<Self> {
        let sides = &config.networks.patch_nums;
        let ends: Vec<usize> = sides
            .iter()
            .scan(0, |end, side| {
                *end += side * side;
                Some(*end)
            })
            .collect();
        let (tokens, last) = (whole.tokens(), sides.len() - 1);
        let kind = match (config.training.progressive, config.training.drop_scale_length) {
            (Some(settings), _) if settings.first > last => {
                return Err(Error::argument(format!(
                    "pg0: progressive training starts at scale {}, but the last of patch_nums is scale {last}",
                    settings.first
                )));
            }
            (Some(settings), _) => Kind::Progressive {
                settings,
                warm_up: plan.schedule.warmup,
                iterations: plan.schedule.iterations as f64,
                stage_warm_up: settings.warm_up_epochs * plan.epoch_iterations as f64,
            },
            (None, Some(keep)) => {
                let before = if last > 0 { ends[last - 1] } else { 0 };
                if keep <= before || keep > tokens {
                    return Err(Error::argument(format!(
                        "drop_scale_length: keeping {keep} of {tokens} tokens drops more than the finest scale has; \
                         it must be between {} and {tokens}",
                        before + 1
                    )));
                }
                Kind::Dropping { keep, seed: config.seed }
            }
            (None, None) => Kind::All,
        };
        Ok(Self { whole, ends, kind })
    }

    /// The tokens of an iteration.
    ///
    /// # Errors
    /// Never, as the settings have been checked.
    pub(super) fn of(&self, iteration: u64) -> Result<Tokens> {
        let whole = Tokens { layout: None, weights: None };
        match &self.kind {
            Kind::All => Ok(whole),
            Kind::Dropping { keep, seed } => {
                let tokens = self.whole.tokens();
                if *keep == tokens {
                    return Ok(whole);
                }
                let before = self.before(self.ends.len() - 1);
                let mut finest: Vec<usize> = (before..tokens).collect();
                Random::new(*seed, Purpose::TokenDrop, iteration).shuffle(&mut finest);
                finest.truncate(keep - before);
                finest.sort_unstable();
                let indices: Vec<usize> = (0..before).chain(finest).collect();
                Ok(Tokens { layout: Some(self.whole.of(&indices)?), weights: None })
            }
            Kind::Progressive { .. } => {
                let (scale, share) = self.stage(iteration);
                if scale + 1 == self.ends.len() {
                    return Ok(whole);
                }
                let (before, end) = (self.before(scale), self.ends[scale]);
                // Upstream: each token has the weight 1/L in every stage; the newest scale's tokens start with less.
                #[expect(clippy::cast_precision_loss, reason = "some hundred tokens")]
                let even = end as f64 / self.whole.tokens() as f64;
                let weights =
                    (0..end).map(|token| if token < before { even } else { even * share }).collect();
                let indices: Vec<usize> = (0..end).collect();
                Ok(Tokens { layout: Some(self.whole.of(&indices)?), weights: Some(weights) })
            }
        }
    }

    /// The first token of a scale.
    fn before(&self, scale: usize) -> usize {
        if scale == 0 { 0 } else { self.ends[scale - 1] }
    }

    /// The newest scale of an iteration and the weight of its tokens (upstream: `prog_si`, `prog_wp`).
    fn stage(&self, iteration: u64) -> (usize, f64) {
        let Kind::Progressive { settings, stage_warm_up, .. } = &self.kind else {
            return (self.ends.len() - 1, 1.0);
        };
        let scale = self.newest(iteration);
        if scale == settings.first {
            // The learning-rate warm-up covers the first stage.
            return (scale, 1.0);
        }
        // Scales are only ever added, so binary search finds the first iteration of a stage.
        let (mut low, mut high) = (0, iteration);
        while low < high {
            let middle = low.midpoint(high);
            if self.newest(middle) < scale { low = middle + 1 } else { high = middle }
        }
        #[expect(clippy::cast_precision_loss, reason = "iterations of a run")]
        let since = (iteration - low + 1) as f64;
        let share = if *stage_warm_up > 0.0 { (since / stage_warm_up).min(1.0) } else { 1.0 };
        (scale, share.max(SMALLEST_SHARE))
    }

    fn newest(&self, iteration: u64) -> usize {
        let last = self.ends.len() - 1;
        let Kind::Progressive { settings, warm_up, iterations, .. } = &self.kind else { return last };
        #[expect(clippy::cast_precision_loss, reason = "iterations of a run")]
        let now = iteration as f64;
        let end = iterations * settings.share;
        if now <= *warm_up {
            return settings.first;
        }
        if now >= end {
            return last;
        }
        let progress = ((now - warm_up) / (end - warm_up)).clamp(0.0, 1.0);
        #[expect(clippy::cast_precision_loss, reason = "a few scales")]
        let more = (progress * (last - settings.first) as f64).round_ties_even();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most the number of scales"
        )]
        let more = more as usize;
        settings.first + more
    }
}

/// The smallest weight of a new scale's tokens, as upstream.
const SMALLEST_SHARE: f64 = 0.01;
