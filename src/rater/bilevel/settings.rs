//! The settings of a step, and where they come from.

use crate::{
    config::{Compat, Config, RuleSettings},
    engine::ops::pyramid::Reach,
    models::Weighing,
};

/// What the released code does that the default does not, and the other settings of a step. They are made from a configuration,
/// or from the [default](Self::default) or [released](Self::released) ones with `..`.
#[derive(Clone, Debug, PartialEq)]
pub struct BilevelSettings {
    /// How weights come from the rater's heads.
    pub weighing: Weighing,
    /// Divide the weighted sums by the batch size, as released (upstream.md, A5).
    pub weighted_mean: bool,
    /// Label smoothing (`ls`).
    pub label_smoothing: f64,
    /// Add the released entropy term to the rater's loss (`rater_reg`, upstream.md, A11).
    pub rater_regularization: bool,
    /// Do not train the proxy (`fixVar`).
    pub freeze_proxy: bool,
    /// Let a frozen proxy's weights decay all the same, as released (upstream.md, A10).
    pub frozen_proxy_decays: bool,
    /// Run the rater twice a step with different drop-path masks, as released (upstream.md, A8).
    pub two_rater_passes: bool,
    /// What the rater sees of each scale.
    pub rater_reach: Reach,
    /// Use drop-path.
    pub drop_path: bool,
    /// Keep only each block's input for the backward pass and run the block forward again there.
    pub recompute: bool,
    /// On a device, record a step that comes again and replay it at the cost of one launch.
    pub cuda_graph: bool,
    /// By which rule the rater learns, and how.
    pub rule: RuleSettings,
    /// Measure the norm of each training sample's gradient, whether the rule needs it or not.
    pub record_norms: bool,
    /// The run's seed.
    pub seed: u64,
}

/// The rater's temperature, as `rater_temperature` is where it is not given.
const TEMPERATURE: f64 = 10.0;

impl BilevelSettings {
    /// Those of a run; whether norms are recorded changes from epoch to epoch, and begins with no.
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

    /// As the code was released: with every switch of `compat`, which brings the released rule.
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

/// Without any switch of `compat`; the rule is that of the loss, which asks nothing of the steps before.
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
