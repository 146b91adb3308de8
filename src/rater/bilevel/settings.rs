//! The settings of a step.

use crate::{
    config::{Compat, Config, RuleSettings},
    engine::ops::pyramid::Reach,
    models::Weighing,
};

/// The settings of a step, including the upstream behaviors that are switched on. They come from a configuration, or
/// from the [default](Self::default) or [released](Self::released) settings with `..`.
#[derive(Clone, Debug, PartialEq)]
pub struct BilevelSettings {
    /// How the weights are computed from the rater's heads.
    pub weighing: Weighing,
    /// Divide the weighted sums by the batch size, as upstream (upstream.md, A5).
    pub weighted_mean: bool,
    /// Label smoothing (`ls`).
    pub label_smoothing: f64,
    /// Add the upstream entropy term to the rater's loss (`rater_reg`, upstream.md, A11).
    pub rater_regularization: bool,
    /// Freeze the proxy (`fixVar`).
    pub freeze_proxy: bool,
    /// Apply weight decay to a frozen proxy, as upstream (upstream.md, A10).
    pub frozen_proxy_decays: bool,
    /// Run the rater twice per step with different drop-path masks, as upstream (upstream.md, A8).
    pub two_rater_passes: bool,
    /// The input that the rater reads at each scale.
    pub rater_reach: Reach,
    /// Use drop-path.
    pub drop_path: bool,
    /// Gradient checkpointing: keep only each block's input and recompute the block in the backward pass.
    pub recompute: bool,
    /// On a device, record a repeated step and replay it with one launch.
    pub cuda_graph: bool,
    /// The rule, its scaling and geometry, and the rater's objective.
    pub rule: RuleSettings,
    /// Measure the norm of each training sample's gradient even if the rule does not need it.
    pub record_norms: bool,
    /// The run's seed.
    pub seed: u64,
}

/// The default of `rater_temperature`.
const TEMPERATURE: f64 = 10.0;

impl BilevelSettings {
    /// The settings of a run; recording of norms starts off and is switched per epoch.
    pub(crate) fn from_config(config: &Config) -> Self {
        let training = &config.training;
        Self {
            label_smoothing: training.label_smoothing,
            rater_regularization: training.rater_regularization,
            freeze_proxy: training.freeze_proxy,
            recompute: config.recompute,
            cuda_graph: config.cuda_graph,
            rule: training.rule,
            seed: config.seed,
            ..Self::of(config.compat, training.rater_temperature)
        }
    }

    /// Every switch of `compat` on; this implies the released rule.
    pub fn released() -> Self {
        Self::of(Compat::RELEASED, TEMPERATURE)
    }

    fn of(compat: Compat, temperature: f64) -> Self {
        let weighing =
            if compat.double_softmax { Weighing::Released } else { Weighing::Logits { temperature } };
        Self {
            weighing,
            weighted_mean: compat.weighted_mean,
            label_smoothing: 0.0,
            rater_regularization: false,
            freeze_proxy: false,
            frozen_proxy_decays: compat.frozen_proxy_decays,
            two_rater_passes: compat.two_rater_passes,
            rater_reach: compat.rater_reach(),
            drop_path: true,
            recompute: false,
            cuda_graph: true,
            rule: RuleSettings::default(),
            record_norms: false,
            seed: 0,
        }
    }
}

/// Every switch of `compat` off; the rule is `loss`, which needs no state from earlier steps.
impl Default for BilevelSettings {
    fn default() -> Self {
        Self::of(Compat::default(), TEMPERATURE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_keys_gives_the_defaults() {
        let of = |text: &str| BilevelSettings::from_config(&Config::parse("test", text, &[]).unwrap());
        let seed = of("{}").seed;
        let default = BilevelSettings { seed, ..BilevelSettings::default() };
        assert_eq!(of(r#"{"rule": "loss"}"#), default);
        assert_eq!(of(r#"{"compat": "released"}"#), BilevelSettings { seed, ..BilevelSettings::released() });
        let smoothed = of(r#"{"rule": "loss", "ls": 0.1, "rater_temperature": 2, "rater_reg": true}"#);
        let weighing = Weighing::Logits { temperature: 2.0 };
        let rater_regularization = true;
        assert_eq!(
            smoothed,
            BilevelSettings { label_smoothing: 0.1, weighing, rater_regularization, ..default }
        );
    }
}
