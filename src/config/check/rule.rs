//! The keys of the rater's rule.

use std::str::FromStr;

use super::{Checker, ConfigKey, Field, KEY, RawConfig, Text};
use crate::{
    config::{Compat, RaterObjective, RuleEntry, RuleSettings, Scaling, rules},
    error::Result,
};

/// The default for `regression`; measured in `docs/comparison.md`.
const RATER_ONLY_EPOCHS: i64 = 4;

/// The checked keys.
pub(super) struct RuleKeys {
    pub(super) settings: RuleSettings,
    pub(super) proxy_warmup_epochs: u64,
    pub(super) average_from_epoch: u64,
    pub(super) rater_only_epochs: u64,
    pub(super) record_every: Option<u64>,
    pub(super) record_norms: bool,
}

/// A name from a list; the default is written back.
fn named<T: FromStr<Err = crate::Error> + ToString>(
    checker: &Checker<'_>,
    raw: &mut RawConfig,
    field: &Field<Text>,
    default: T,
) -> Result<T> {
    let name = field.of(raw).get_or_insert_with(|| default.to_string()).clone();
    name.parse().or_else(|error: crate::Error| checker.refuse(field, error.to_string()))
}

/// Checks the keys; some defaults depend on the rule.
pub(super) fn check(checker: &Checker<'_>, raw: &mut RawConfig, compat: Compat) -> Result<RuleKeys> {
    let released = compat.loss_rule || compat.cross_attention_first_sample;
    let default: &'static RuleEntry = match (released, compat.validation_epoch) {
        (true, _) => &rules::LOSS,
        // A rule that uses a validation set.
        (false, true) => &rules::EXCESS,
        (false, false) => &rules::NORM_GAIN,
    };
    let RuleSettings { rule, geometry, scaling, objective } =
        RuleSettings::of(named(checker, raw, &KEY.rule, default)?);
    let needs = rule.needs();
    let settings = RuleSettings {
        rule,
        geometry: named(checker, raw, &KEY.rule_geometry, geometry)?,
        scaling: named(checker, raw, &KEY.rule_scaling, scaling)?,
        objective: named(checker, raw, &KEY.rater_objective, objective)?,
    };
    if let Err(error) = settings.check_geometry() {
        return checker.refuse(&KEY.rule_geometry, error.to_string());
    }
    let epochs = raw.ep.unwrap_or(1).max(1);
    let last = epochs - 1;
    raw.proxy_warmup_epochs.get_or_insert(i64::from(needs.reference && epochs > 1));
    let warm_up = checker.value_in(raw, &KEY.proxy_warmup_epochs, KEY.proxy_warmup_epochs.up_to(last))?;
    raw.average_from_epoch.get_or_insert(warm_up.max(i64::from(epochs > 1)));
    let from = checker.value_in(raw, &KEY.average_from_epoch, KEY.average_from_epoch.up_to(last))?;
    let default = if settings.objective == RaterObjective::Regression { RATER_ONLY_EPOCHS } else { 0 };
    raw.rater_only_epochs.get_or_insert(default);
    let alone = checker.value(raw, &KEY.rater_only_epochs)?;
    if alone > 0 && settings.objective != RaterObjective::Regression {
        return checker.refuse(
            &KEY.rater_only_epochs,
            format!("is {alone}, but needs averages to train on; set rater_objective to regression"),
        );
    }
    let every = checker.value(raw, &KEY.record_every)?.unsigned_abs();
    // On by default where per-sample gradients are possible, unless the rule needs only the loss.
    let per_sample = !compat.cross_attention_first_sample && needs.norms_by_default();
    let norms = *raw.record_norms.get_or_insert(per_sample && every > 0);
    if compat.cross_attention_first_sample && (needs.own_gradients() || norms) {
        let key: &ConfigKey = if needs.own_gradients() { &KEY.rule } else { &KEY.record_norms };
        return checker.refuse(
            key,
            "needs per-sample gradients, but under compat.cross_attention_first_sample every sample's loss depends on \
             the first of its batch; switch it off, or set rule to loss",
        );
    }
    if needs.caption_gain {
        check_caption_gain(checker, &settings, alone, compat)?;
    }
    Ok(RuleKeys {
        settings,
        proxy_warmup_epochs: warm_up.unsigned_abs(),
        average_from_epoch: from.unsigned_abs(),
        rater_only_epochs: alone.unsigned_abs(),
        record_every: (every > 0).then_some(every),
        record_norms: norms,
    })
}

/// Refuses what contradicts a rule whose raters learn from cross-fitted gains.
fn check_caption_gain(
    checker: &Checker<'_>,
    RuleSettings { rule, objective, scaling, .. }: &RuleSettings,
    rater_only_epochs: i64,
    compat: Compat,
) -> Result<()> {
    let trained_after = format!("the rule `{rule}` trains the rater after the captions are evaluated");
    if *objective != RaterObjective::Regression {
        return checker.refuse(
            &KEY.rater_objective,
            format!("is {objective}, but {trained_after}; set it to regression, or choose another rule"),
        );
    }
    if rater_only_epochs == 0 {
        return checker.refuse(
            &KEY.rater_only_epochs,
            format!("is 0, but {trained_after}; set it to at least 1, or choose another rule"),
        );
    }
    if *scaling != Scaling::None {
        return checker.refuse(
            &KEY.rule_scaling,
            format!(
                "is {scaling}, but the rule `{rule}` has no constants of a batch; set it to none, or choose another rule"
            ),
        );
    }
    if compat.cross_attention_first_sample || compat.validation_epoch {
        return checker.refuse(
            &KEY.rule,
            format!(
                "is {rule}, which compares captions of single samples, so compat.cross_attention_first_sample and \
                 compat.validation_epoch must be off"
            ),
        );
    }
    Ok(())
}
