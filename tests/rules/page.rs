//! docs/rules.md: what it says of the rules holds, and the rule that it adds trains.

use std::fs;

use alchemist_engine::rater::rules::RULES;

use super::{matching::MATCHING, *};

#[test]
fn the_page_has_the_example_and_every_rule() {
    let page = fs::read_to_string("docs/rules.md").unwrap();
    let (_, example) = include_str!("../../examples/own_rule/matching.rs").split_once("\n\n").unwrap();
    assert!(
        page.contains(example),
        "docs/rules.md and examples/own_rule/matching.rs have different examples"
    );
    for rule in RULES {
        assert!(page.contains(&format!("\n| `{rule}` | ")), "docs/rules.md has no line for {rule}");
    }
}

/// In each geometry and for each objective, the constants are those of the formula, with each sample's own gradient.
#[test]
fn the_page_s_rule_trains() {
    for (geometry, objective) in [
        (Geometry::Sgd, RaterObjective::Regression),
        (Geometry::AdamW, RaterObjective::Regression),
        (Geometry::AdamW, RaterObjective::Reweight),
    ] {
        let rule = RuleSettings { geometry, objective, ..RuleSettings::of(&MATCHING) };
        rule.check_geometry().unwrap();
        let mut bilevel = bilevel(rule);
        let prior = Prior { averages: vec![[0.25, 0.5]; SAMPLES], mean: 0.1, inverse_deviation: 2.0 };
        let micro = MicroBatch { prior: Some(prior), ..micro() };
        for step in 0..3 {
            let before = bilevel.clone();
            let report = bilevel.step(std::slice::from_ref(&micro), RATES, step).unwrap();
            assert_eq!(report.constant.len(), SAMPLES);
            for (constant, [product, squared_norm]) in report.constant.iter().zip(one_by_one(&before)) {
                // Before AdamW has moments it has no direction.
                let product = if geometry == Geometry::AdamW && step == 0 { 0.0 } else { product };
                let expected = 0.5 * squared_norm - product;
                approx::assert_relative_eq!(*constant, expected, max_relative = 1e-8, epsilon = 1e-10);
            }
            assert!(bilevel.proxy_parameters != before.proxy_parameters, "the proxy learns");
            assert!(bilevel.rater_parameters != before.rater_parameters, "the rater learns");
        }
    }
    let wrong = RuleSettings { geometry: Geometry::AdamW, ..RuleSettings::of(&EXCESS) };
    let said = wrong.check_geometry().unwrap_err().to_string();
    assert_eq!(said, "is adamw, but the rule `excess` uses no inner products");
}
