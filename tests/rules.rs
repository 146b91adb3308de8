//! The rater's rules: each constant against what it stands for, and what a step does with it.

mod common;
#[path = "../examples/own_rule/matching.rs"]
mod matching;
#[path = "rules/page.rs"]
mod page;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        Accumulate, DType, Gradients, Parameters, Tape, Tensor,
        ops::{
            pyramid::Reach,
            rater_loss::{RaterLoss, RaterLossFactors, RegressionTargets, linear_combination, standardize},
        },
    },
    models::{BackboneConfig, Initialization, Mode, Proxy, Rater, Rope, Weighing},
    rater::{
        bilevel::{Bilevel, BilevelSettings, MicroBatch, Prior, StepRates},
        rules::{ALIGNMENT, EXCESS, Geometry, RaterObjective, RuleSettings, Scaling},
    },
    tokens::batch::Batch,
    training::{
        optimizer::{AdamW, AdamWSettings},
        parameter_groups::decays,
    },
};
use common::{normal, relative_error};

const SAMPLES: usize = 6;
const TOKENS: usize = 14;

fn backbone() -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: 7,
        code_channels: 3,
        text_channels: 5,
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: true,
        rope: Some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: true,
        logit_norm: true,
        shared_aln: true,
        cross_attention: true,
        drop_path: 0.0,
        cross_from_first_sample: false,
        initialization: Initialization { std: 0.3, head: 1.0, aln: 0.5, aln_gamma: 0.5 },
    }
}

fn batch(stream: u64, samples: usize) -> Batch {
    let codes = (0..samples * TOKENS).map(|at| ((at * 5 + stream as usize) % 7).min(3 + at % 4) as u32);
    Batch {
        codes: Tensor::new(&[samples, TOKENS], codes.collect::<Vec<u32>>()).unwrap(),
        input: Some(normal(&[samples, TOKENS - 1, 3], 100 + stream, DType::F64)),
        through: None,
        text: TextStates {
            states: normal(&[samples, 4, 5], 200 + stream, DType::F64),
            mask: Tensor::new(&[samples, 4], vec![1u32; samples * 4]).unwrap(),
            pooled: normal(&[samples, 5], 300 + stream, DType::F64),
        },
        last_scale: 9,
    }
}

fn micro() -> MicroBatch {
    MicroBatch { train: batch(0, SAMPLES), validation: batch(7, SAMPLES - 1), prior: None }
}

/// Both networks in f64.
fn bilevel(rule: RuleSettings) -> Bilevel {
    let (proxy, proxy_parameters) = Proxy::new(&backbone(), DType::F64, 1).unwrap();
    let (rater, rater_parameters) = Rater::new(&backbone(), DType::F64, 2).unwrap();
    let optimizers = AdamWSettings { clip: None, ..AdamWSettings::default() };
    let settings = BilevelSettings {
        weighing: Weighing::Logits { temperature: 0.5 },
        rater_reach: Reach::Before,
        drop_path: false,
        rule,
        ..BilevelSettings::default()
    };
    Bilevel::new((proxy, proxy_parameters), (rater, rater_parameters), optimizers, settings)
}

const RATES: StepRates =
    StepRates { upper_level_weight: 0.5, learning_rate: 1e-3, weight_decay: 0.0, warm_up: false };

fn alignment() -> RuleSettings {
    RuleSettings { rule: &ALIGNMENT, ..RuleSettings::default() }
}

fn losses(proxy: &Proxy, parameters: &Parameters, batch: &Batch) -> Vec<f64> {
    let mut tape = Tape::inference(parameters);
    let input = batch.input().unwrap();
    let loss = proxy.loss(&mut tape, input, &batch.text, &batch.codes, 0.0, Mode::Evaluate).unwrap();
    loss.sample_loss.value().to_f64_vec().unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The gradient of `Σ_i seed_i ℓ_i`.
fn gradient(proxy: &Proxy, parameters: &Parameters, batch: &Batch, seeds: &[f64]) -> Gradients {
    let mut tape = Tape::new(parameters);
    let input = batch.input().unwrap();
    let loss = proxy.loss(&mut tape, input, &batch.text, &batch.codes, 0.0, Mode::Evaluate).unwrap();
    let mut visitor = Accumulate::default();
    let seeds = Tensor::new(&[seeds.len()], seeds.to_vec()).unwrap();
    tape.backward(vec![(&loss.sample_loss, seeds)], &[], &mut visitor).unwrap();
    visitor.gradients
}

/// Each training sample's product with the validation gradient, in the geometry of the settings, and its squared norm: from a
/// backward pass of its own.
fn one_by_one(bilevel: &Bilevel) -> Vec<[f64; 2]> {
    let (proxy, parameters, optimizer) =
        (&bilevel.proxy, &bilevel.proxy_parameters, &bilevel.proxy_optimizer);
    let micro = micro();
    let numbers = |gradients: Gradients| -> Vec<f64> {
        gradients.iter().flatten().flat_map(|gradient| gradient.to_f64_vec().unwrap()).collect()
    };
    let count = SAMPLES - 1;
    let mut v = numbers(gradient(proxy, parameters, &micro.validation, &vec![1.0 / count as f64; count]));
    if bilevel.settings.rule.geometry == Geometry::AdamW {
        let [inverse, epsilon] = optimizer.second_moment_factors();
        let second = optimizer.second_moments().iter().flat_map(|moment| moment.to_f64_vec().unwrap());
        v.iter_mut().zip(second).for_each(|(v, second)| *v /= (second * inverse).sqrt() + epsilon);
    }
    let sum = |left: &[f64], right: &[f64]| -> f64 { left.iter().zip(right).map(|(l, r)| l * r).sum() };
    let of = |at: usize| {
        let seeds: Vec<f64> = (0..SAMPLES).map(|sample| if sample == at { 1.0 } else { 0.0 }).collect();
        let own = numbers(gradient(proxy, parameters, &micro.train, &seeds));
        [sum(&own, &v), sum(&own, &own)]
    };
    (0..SAMPLES).map(of).collect()
}

fn correlation(left: &[f64], right: &[f64]) -> f64 {
    let (left_mean, right_mean) = (mean(left), mean(right));
    let products = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        left.iter().zip(right).map(|(left, right)| f(left - left_mean, right - right_mean)).sum()
    };
    products(&|left, right| left * right)
        / (products(&|left, _| left * left) * products(&|_, right| right * right)).sqrt()
}

/// The rule against truth: after one real step of SGD, how the validation loss changes with each weight.
#[test]
fn alignment_is_what_the_validation_loss_gains_from_a_weight() {
    let mut bilevel = bilevel(alignment());
    let (proxy, parameters) = (bilevel.proxy.clone(), bilevel.proxy_parameters.clone());
    let micro = micro();
    let report = bilevel.step(std::slice::from_ref(&micro), RATES, 0).unwrap();
    let rate = 1e-2;
    let after = |weights: &[f64]| {
        let step = gradient(&proxy, &parameters, &micro.train, weights);
        let mut moved = parameters.clone();
        for ((value, _), step) in moved.values_mut().zip(&step) {
            let step = step.as_ref().unwrap().to_f64_vec().unwrap();
            for (value, step) in value.as_mut_slice::<f64>().unwrap().iter_mut().zip(step) {
                *value -= rate * step;
            }
        }
        mean(&losses(&proxy, &moved, &micro.validation))
    };
    let weights = vec![1.0 / SAMPLES as f64; SAMPLES];
    let slopes: Vec<f64> = (0..SAMPLES)
        .map(|sample| {
            let shifted = |by: f64| {
                let mut weights = weights.clone();
                weights[sample] += by;
                after(&weights)
            };
            (shifted(1e-4) - shifted(-1e-4)) / 2e-4
        })
        .collect();
    let correlation = correlation(&slopes, &report.constant);
    assert!(correlation >= 0.999, "{slopes:?} against {:?}: {correlation}", report.constant);
    for (slope, constant) in slopes.iter().zip(&report.constant) {
        approx::assert_relative_eq!(*slope, rate * constant, max_relative = 0.1, epsilon = 1e-4);
    }
    for (product, constant) in report.product.iter().zip(&report.constant) {
        assert_eq!(-product, *constant);
    }
}

/// One backward pass gives the products and the same proxy gradient that two give.
#[test]
fn the_proxy_learns_the_same_under_every_rule() {
    let step = |rule: RuleSettings, norms: bool| {
        let mut bilevel = bilevel(rule);
        bilevel.settings.record_norms = norms;
        let report = bilevel.step(&[micro()], RATES, 0).unwrap();
        (bilevel.proxy_parameters, report)
    };
    let (plain, released) = step(RuleSettings::default(), false);
    let (aligned, report) = step(alignment(), true);
    let (normed, _) = step(RuleSettings::default(), true);
    for other in [&aligned, &normed] {
        for ((_, name, plain), (_, _, other)) in plain.iter().zip(other.iter()) {
            assert!(relative_error(other, plain) < 1e-6, "{name}");
        }
    }
    approx::assert_relative_eq!(
        report.proxy_gradient_norm,
        released.proxy_gradient_norm,
        max_relative = 1e-10
    );
    for (found, expected) in report.train_loss.iter().zip(&released.train_loss) {
        approx::assert_relative_eq!(found, expected, max_relative = 1e-12);
    }
    assert!(released.product.is_empty() && released.gradient_norm.is_empty());
    assert_eq!((report.product.len(), report.gradient_norm.len()), (SAMPLES, SAMPLES));
    // Of each sample alone.
    for (norm, [_, squares]) in report.gradient_norm.iter().zip(one_by_one(&self::bilevel(alignment()))) {
        approx::assert_relative_eq!(*norm, squares.sqrt(), max_relative = 1e-10);
    }
}

#[test]
fn a_reference_proxy_goes_on_with_the_weighted_training_loss_alone() {
    let rule = RuleSettings { rule: &EXCESS, ..RuleSettings::default() };
    let mut bilevel = bilevel(rule);
    let refused = bilevel.step(&[micro()], RATES, 0).unwrap_err().to_string();
    assert!(refused.contains("`excess` needs a reference proxy, and there is none"), "{refused}");

    bilevel.begin_reference();
    let first = bilevel.step(&[micro()], RATES, 0).unwrap();
    assert!(first.constant.iter().all(|constant| *constant == 0.0), "both proxies began as one");
    let (proxy, start) = (bilevel.proxy.clone(), self::bilevel(rule).proxy_parameters);
    let mut expected = start.clone();
    let settings = AdamWSettings { clip: None, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(&expected, decays, settings);
    optimizer.prepare(RATES.learning_rate, RATES.weight_decay).unwrap();
    optimizer.update(&mut expected, &gradient(&proxy, &start, &micro().train, &first.weight)).unwrap();
    let reference = &bilevel.reference.as_ref().unwrap().parameters;
    for ((_, name, found), (_, _, expected)) in reference.iter().zip(expected.iter()) {
        assert!(relative_error(found, expected) < 1e-10, "{name}");
    }
    let reference = reference.clone();
    let here = bilevel.proxy_parameters.clone();
    let second = bilevel.step(&[micro()], RATES, 1).unwrap();
    let train = &micro().train;
    let (own, other) = (losses(&proxy, &here, train), losses(&proxy, &reference, train));
    for (at, constant) in second.constant.iter().enumerate() {
        approx::assert_relative_eq!(*constant, own[at] - other[at], max_relative = 1e-9, epsilon = 1e-12);
    }
    assert!(second.constant.iter().any(|constant| *constant != 0.0));
}

#[test]
fn in_the_warm_up_the_proxy_learns_alone() {
    for rule in [RuleSettings::default(), alignment()] {
        let mut bilevel = bilevel(rule);
        let before = bilevel.clone();
        let report = bilevel.step(&[micro()], StepRates { warm_up: true, ..RATES }, 0).unwrap();
        assert!(bilevel.rater_parameters == before.rater_parameters);
        assert!(report.constant.is_empty() && report.score.is_empty() && report.product.is_empty());
        let equal = vec![1.0 / SAMPLES as f64; SAMPLES];
        assert_eq!(report.weight, equal);
        approx::assert_relative_eq!(report.proxy_loss, mean(&report.train_loss), max_relative = 1e-12);
        let mut expected = before.proxy_parameters.clone();
        let mut optimizer = before.proxy_optimizer.clone();
        optimizer.prepare(RATES.learning_rate, RATES.weight_decay).unwrap();
        let gradient = gradient(&before.proxy, &before.proxy_parameters, &micro().train, &equal);
        optimizer.update(&mut expected, &gradient).unwrap();
        for ((_, name, found), (_, _, expected)) in bilevel.proxy_parameters.iter().zip(expected.iter()) {
            assert!(relative_error(found, expected) < 1e-10, "{name}");
        }
    }
}

/// Taught by regression, the logits come to the standardized averages, and the proxy is trained with equal weights.
#[test]
fn regression_teaches_the_rater_what_each_sample_is_worth() {
    let rule = RuleSettings { objective: RaterObjective::Regression, ..alignment() };
    let mut bilevel = bilevel(rule);
    let refused = bilevel.step(&[micro()], RATES, 0).unwrap_err().to_string();
    assert!(refused.contains("needs running averages, but a batch has none"), "{refused}");
    // Averages that a new number does not change: the targets stand still.
    let averages = [3.0, -1.0, 0.5, 2.0, -2.5, 0.0];
    let prior = Prior {
        averages: averages.iter().map(|&average| [average, 0.0]).collect(),
        mean: 0.25,
        inverse_deviation: 0.5,
    };
    let micro = MicroBatch { prior: Some(prior), ..micro() };
    let rates = StepRates { learning_rate: 1e-2, ..RATES };
    let mut reports = Vec::new();
    for step in 0..150 {
        reports.push(bilevel.step(std::slice::from_ref(&micro), rates, step).unwrap());
    }
    let (first, last) = (&reports[0], &reports[reports.len() - 1]);
    for (target, average) in last.target.iter().zip(averages) {
        approx::assert_relative_eq!(*target, (average - 0.25) * 0.5, epsilon = 1e-12);
    }
    assert!(last.rater_loss < 1e-2 * first.rater_loss, "{} after {}", last.rater_loss, first.rater_loss);
    assert_eq!(first.weight, vec![1.0 / SAMPLES as f64; SAMPLES]);
    assert_eq!(first.score, first.logit);

    // With a share of the new number in the average, the number is -c.
    let constants = Tensor::new(&[2], vec![-4.0, f64::NAN]).unwrap();
    let targets = RegressionTargets {
        averages: Tensor::new(&[2, 2], vec![1.0, 0.5, 1.0, 0.5]).unwrap(),
        corpus: Tensor::new(&[3], vec![1.0, 2.0, 0.25]).unwrap(),
    };
    let logits = Tensor::new(&[2, 1], vec![3.0, 3.0]).unwrap();
    let [d, t] = targets.d_logits(&logits, &constants).unwrap();
    assert_eq!(t.to_f64_vec().unwrap()[0], (1.0 + 0.5 * 4.0 - 1.0) * 2.0);
    assert_eq!(d.to_f64_vec().unwrap(), [2.0 * 0.25 * (3.0 - 4.0), 0.0]);
}

/// A constant that is no number counts nowhere, and neither does its sample's weight.
#[test]
fn what_is_no_number_is_left_out() {
    let constants = Tensor::new(&[4], vec![1.0, f64::NAN, 3.0, f64::INFINITY]).unwrap();
    let factors = RaterLossFactors { seed: 1.0, constant: 2.0, entropy: 0.0 };
    let weights = Tensor::new(&[4, 1], vec![0.25; 4]).unwrap();
    let d = RaterLoss::new(factors).unwrap().d_weights(&constants, &weights).unwrap();
    // The mean of the others stands in.
    assert_eq!(d.to_f64_vec().unwrap(), [2.0, 4.0, 6.0, 4.0]);
    let scaled = standardize(&constants, true).unwrap().to_f64_vec().unwrap();
    assert_eq!((scaled[0], scaled[2]), (-1.0, 1.0));
    assert!(scaled[1].is_nan() && scaled[3].is_infinite());
    let centerd = standardize(&Tensor::new(&[3], vec![2.0, 2.0, 2.0]).unwrap(), true).unwrap();
    assert_eq!(centerd.to_f64_vec().unwrap(), [0.0; 3]);
    let sum = linear_combination(&[(1.0, &constants), (-1.0, &constants)]).unwrap().to_f64_vec().unwrap();
    assert_eq!((sum[0], sum[2]), (0.0, 0.0));
    assert!(linear_combination(&[]).is_err());
}

/// A training sample that has no loss: it is named, the rater learns from the others, and the proxy waits for the next batch.
#[test]
fn one_sample_without_a_loss_does_not_end_a_run() {
    for rule in [RuleSettings::default(), alignment()] {
        let mut bilevel = bilevel(rule);
        // A channel of the text that is 0 but for one sample, which only the proxy cannot bear.
        for (parameters, weight) in
            [(&mut bilevel.proxy_parameters, 1e300), (&mut bilevel.rater_parameters, 0.0)]
        {
            for block in 0..2 {
                let id = parameters.id(&format!("blocks.{block}.cross_attn.mat_kv.weight")).unwrap();
                let weights = parameters.value_mut(id).0.as_mut_slice::<f64>().unwrap();
                weights.iter_mut().skip(4).step_by(5).for_each(|value| *value = weight);
            }
        }
        let mut sound = micro();
        for batch in [&mut sound.train, &mut sound.validation] {
            let states = batch.text.states.as_mut_slice::<f64>().unwrap();
            states.iter_mut().skip(4).step_by(5).for_each(|value| *value = 0.0);
        }
        let mut spoilt = sound.clone();
        spoilt.train.text.states.as_mut_slice::<f64>().unwrap()[2 * 4 * 5 + 4] = 1e10;
        let before = bilevel.clone();
        // In the warm-up, too, it is named, and the proxy waits.
        let mut warming = bilevel.clone();
        let report =
            warming.step(std::slice::from_ref(&spoilt), StepRates { warm_up: true, ..RATES }, 0).unwrap();
        assert_eq!(report.left_out, [2], "{:?}", report.train_loss);
        assert!(warming.proxy_parameters == before.proxy_parameters, "the proxy waits");
        let report = bilevel.step(&[spoilt], RATES, 0).unwrap();
        assert_eq!(report.left_out, [2], "{:?}", report.train_loss);
        assert!(bilevel.proxy_parameters == before.proxy_parameters, "the proxy waits");
        assert!(bilevel.rater_parameters != before.rater_parameters, "the rater learns from the others");
        for (_, name, value) in bilevel.rater_parameters.iter() {
            assert!(value.to_f64_vec().unwrap().iter().all(|value| value.is_finite()), "{name}");
        }
        let again = bilevel.step(&[sound], RATES, 1).unwrap();
        assert!(again.left_out.is_empty() && again.proxy_loss.is_finite());
    }
}

#[test]
fn scaling_is_of_the_batch() {
    let constants = |scaling: Scaling| {
        let report = bilevel(RuleSettings { scaling, ..alignment() }).step(&[micro()], RATES, 0).unwrap();
        report.constant
    };
    let plain = constants(Scaling::None);
    let center = mean(&plain);
    let spread = mean(&plain.iter().map(|value| (value - center).powi(2)).collect::<Vec<f64>>()).sqrt();
    for (at, value) in plain.iter().enumerate() {
        approx::assert_relative_eq!(constants(Scaling::Center)[at], value - center, max_relative = 1e-9);
        let expected = (value - center) / spread;
        approx::assert_relative_eq!(constants(Scaling::Standardize)[at], expected, max_relative = 1e-9);
    }
}

/// Before AdamW has moments it has no direction; afterwards the products are with it.
#[test]
fn the_geometry_of_adamw_begins_with_its_moments() {
    let rule = RuleSettings { geometry: Geometry::AdamW, ..alignment() };
    let mut bilevel = bilevel(rule);
    let first = bilevel.step(&[micro()], RATES, 0).unwrap();
    assert!(first.product.iter().all(|product| *product == 0.0));
    let before = bilevel.clone();
    let aware = bilevel.step(&[micro()], RATES, 1).unwrap();
    let [inverse, _] = before.proxy_optimizer.second_moment_factors();
    assert!((inverse - 1.0 / 0.05).abs() < 1e-9, "after one update, 1 - 0.95 is what is there of a moment");
    for (product, [expected, _]) in aware.product.iter().zip(one_by_one(&before)) {
        approx::assert_relative_eq!(*product, expected, max_relative = 1e-8);
    }
}

#[test]
fn batches_that_cannot_be_compared_are_refused() {
    let refused = |micro: MicroBatch| bilevel(alignment()).step(&[micro], RATES, 0).unwrap_err().to_string();
    let empty = Batch { codes: Tensor::zeros(&[0, TOKENS], DType::U32), ..batch(7, 1) };
    let said = refused(MicroBatch { validation: empty, ..micro() });
    assert!(said.contains("a validation batch has codes of shape [0, 14]"), "{said}");
    let short = Batch { codes: Tensor::zeros(&[2, 5], DType::U32), ..batch(7, 2) };
    let said = refused(MicroBatch { validation: short, ..micro() });
    assert!(said.contains("14 tokens, but validation samples 5"), "{said}");
}

/// The rater alone comes to the standardized averages, of the samples that have one; the proxy stays as it was.
#[test]
fn the_rater_alone_learns_the_averages() {
    let rule = RuleSettings { objective: RaterObjective::Regression, ..alignment() };
    let mut trained = bilevel(rule);
    let values: Vec<f64> = (0..SAMPLES).map(|at| 3.0 + (at as f64 * 1.7).sin()).collect();
    let prior = |last: f64| Prior {
        averages: (0..SAMPLES).map(|at| [if at + 1 == SAMPLES { last } else { values[at] }, 0.3]).collect(),
        mean: 3.0,
        inverse_deviation: 2.0,
    };
    let before = trained.clone();
    let first = trained.rater_step(&[(batch(0, SAMPLES), prior(f64::NAN))], [1e-2, 0.0], 0).unwrap();
    let expected = std::iter::zip(&first.logit, &values[..SAMPLES - 1])
        .map(|(logit, value)| (logit - 2.0 * (value - 3.0)).powi(2))
        .sum::<f64>()
        / SAMPLES as f64;
    approx::assert_relative_eq!(first.loss, expected, max_relative = 1e-9);
    for step in 1..400 {
        trained.rater_step(&[(batch(0, SAMPLES), prior(f64::NAN))], [3e-3, 0.0], step).unwrap();
    }
    let last = trained.rater_step(&[(batch(0, SAMPLES), prior(f64::NAN))], [0.0, 0.0], 400).unwrap();
    assert!(last.loss < 1e-2 * first.loss, "{} after {}", last.loss, first.loss);
    for ((_, name, now), (_, _, then)) in trained.proxy_parameters.iter().zip(before.proxy_parameters.iter())
    {
        assert_eq!(now, then, "the proxy's {name} has changed");
    }
    // A sample without an average does not pull; with one it does.
    let moved = |last: f64| {
        let mut rater = before.clone();
        rater.rater_step(&[(batch(0, SAMPLES), prior(last))], [1e-2, 0.0], 0).unwrap().gradient_norm
    };
    assert!((moved(f64::NAN) - moved(100.0)).abs() > 1.0);

    // Half of a batch and the other half are the whole.
    let halves = |count: usize| -> f64 {
        let mut rater = before.clone();
        let twice = vec![(batch(0, SAMPLES), prior(4.0)); count];
        rater.rater_step(&twice, [1e-2, 0.0], 0).unwrap().gradient_norm
    };
    approx::assert_relative_eq!(halves(1), halves(2), max_relative = 1e-9);

    let short = Prior { averages: vec![[0.0, 0.0]; 2], ..prior(1.0) };
    let said = trained.rater_step(&[(batch(0, SAMPLES), short)], [1e-2, 0.0], 0).unwrap_err().to_string();
    assert!(said.contains("2 running averages for"), "{said}");
    assert!(trained.rater_step(&[], [1e-2, 0.0], 0).is_err());
    let endless = Prior { mean: f64::INFINITY, ..prior(1.0) };
    let said = trained.rater_step(&[(batch(0, SAMPLES), endless)], [1e-2, 0.0], 0).unwrap_err().to_string();
    assert!(said.contains("not finite at step 0"), "{said}");
}
