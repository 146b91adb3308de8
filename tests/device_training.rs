//! Training on a device follows training on the CPU: same models, same tape, same random choices. On the emulator,
//! so that it is tested on any machine, unless `ALCHEMIST_DEVICE` names a card.
#![cfg(feature = "emulator")]

mod common;

use alchemist_engine::{
    encode::TextStates,
    engine::{
        DType, ParameterId, Tensor,
        cuda::Device,
        ops::pyramid::{CodeReader, PyramidQuantizer, Reach},
    },
    models::{BackboneConfig, Initialization, Proxy, Rater, Rope, Weighing},
    rater::{
        bilevel::{Bilevel, BilevelSettings, MicroBatch, Prior, StepRates, StepReport},
        rules::{ALIGNMENT, EXCESS, Geometry, LOSS, RaterObjective, RuleSettings, Scaling},
    },
    tokens::batch::Batch,
    training::optimizer::AdamWSettings,
};
use common::normal;

const VOCABULARY: usize = 11;
const TOKENS: usize = 14;
const BATCH: usize = 3;

/// What differs between cases.
#[derive(Clone, Copy)]
struct Case {
    depth: usize,
    shared_aln: bool,
    rope: bool,
    first_sample: bool,
    drop_path: bool,
    micro_batches: usize,
    recompute: bool,
    cuda_graph: bool,
    rule: RuleSettings,
    record_norms: bool,
}

const PLAIN: Case = Case {
    depth: 2,
    shared_aln: false,
    rope: true,
    first_sample: false,
    drop_path: true,
    micro_batches: 2,
    recompute: false,
    cuda_graph: true,
    rule: RULE,
    record_norms: false,
};

/// The released rule.
const RULE: RuleSettings = RuleSettings {
    rule: &LOSS,
    geometry: Geometry::Sgd,
    scaling: Scaling::None,
    objective: RaterObjective::Reweight,
};

fn backbone(case: &Case, depth: usize) -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: VOCABULARY,
        code_channels: 6,
        text_channels: 12,
        depth,
        width: 16,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: true,
        rope: case.rope.then_some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding: true,
        logit_norm: true,
        shared_aln: case.shared_aln,
        cross_attention: true,
        drop_path: 0.4,
        cross_from_first_sample: case.first_sample,
        initialization: Initialization { std: 0.2, head: 0.5, aln: 0.5, aln_gamma: 0.5 },
    }
}

fn bilevel(case: &Case) -> Bilevel {
    let (proxy, proxy_parameters) = Proxy::new(&backbone(case, case.depth), DType::F32, 1).unwrap();
    let (rater, rater_parameters) = Rater::new(&backbone(case, case.depth), DType::F32, 2).unwrap();
    let optimizers = AdamWSettings { clip: Some(0.5), ..AdamWSettings::default() };
    let settings = BilevelSettings {
        weighing: Weighing::Logits { temperature: 1.0 },
        label_smoothing: 0.1,
        rater_regularization: true,
        two_rater_passes: true,
        rater_reach: Reach::Before,
        drop_path: case.drop_path,
        recompute: case.recompute,
        cuda_graph: case.cuda_graph,
        rule: case.rule,
        record_norms: case.record_norms,
        seed: 7,
        ..BilevelSettings::default()
    };
    Bilevel::new((proxy, proxy_parameters), (rater, rater_parameters), optimizers, settings)
}

fn batch(stream: u64) -> Batch {
    let codes = (0..BATCH * TOKENS).map(|at| ((at as u64 * 7 + stream * 3) % VOCABULARY as u64) as u32);
    Batch {
        codes: Tensor::new(&[BATCH, TOKENS], codes.collect::<Vec<u32>>()).unwrap(),
        input: Some(normal(&[BATCH, TOKENS - 1, 6], 100 + stream, DType::F32)),
        through: None,
        text: TextStates {
            states: normal(&[BATCH, 5, 12], 200 + stream, DType::F32),
            mask: Tensor::new(&[BATCH, 5], vec![1u32, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0]).unwrap(),
            pooled: normal(&[BATCH, 12], 300 + stream, DType::F32),
        },
        last_scale: 9,
    }
}

const RATES: StepRates =
    StepRates { upper_level_weight: 0.5, learning_rate: 3e-3, weight_decay: 0.05, warm_up: false };

fn micro_batches(case: &Case, step: u64) -> Vec<MicroBatch> {
    let micro = |at: usize| {
        let stream = 2 * (step * case.micro_batches as u64 + at as u64);
        MicroBatch { train: batch(stream), validation: batch(stream + 1), prior: None }
    };
    (0..case.micro_batches).map(micro).collect()
}

fn step(bilevel: &mut Bilevel, case: &Case, rates: StepRates, step: u64) -> StepReport {
    bilevel.step(&micro_batches(case, step), rates, step).unwrap()
}

fn steps(bilevel: &mut Bilevel, case: &Case, range: std::ops::Range<u64>) -> Vec<StepReport> {
    range.map(|at| step(bilevel, case, RATES, at)).collect()
}

#[track_caller]
fn assert_same_weights(left: &Bilevel, right: &Bilevel) {
    for (left, right) in
        [(&left.proxy_parameters, &right.proxy_parameters), (&left.rater_parameters, &right.rater_parameters)]
    {
        for ((_, name, left), (_, _, right)) in left.iter().zip(right.iter()) {
            assert_eq!(left.to_host().unwrap(), right.to_host().unwrap(), "{name}");
        }
    }
}

/// The worst relative difference of all losses and norms, with and without those of single samples.
fn difference(found: &[StepReport], expected: &[StepReport]) -> f64 {
    let figures = |report: &StepReport| {
        let mut figures = vec![
            report.validation_loss,
            report.validation_tail_loss,
            report.weighted_train_loss,
            report.proxy_loss,
            report.rater_loss,
            report.proxy_gradient_norm,
            report.rater_gradient_norm,
        ];
        figures.extend(&report.train_loss);
        figures.extend(&report.weight);
        figures
    };
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        for (found, expected) in figures(found).into_iter().zip(figures(expected)) {
            let error = (found - expected).abs() / expected.abs();
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    worst
}

fn losses_alone(reports: &[StepReport]) -> Vec<StepReport> {
    let alone = |report: &StepReport| StepReport {
        proxy_gradient_norm: 1.0,
        rater_gradient_norm: 1.0,
        ..report.clone()
    };
    reports.iter().map(alone).collect()
}

/// Of each test's own, as a device that records one test's work takes no upload of another's.
fn device() -> Device {
    common::open_device().unwrap_or_else(|| Device::emulated().expect("the emulator"))
}

fn on_device(case: &Case, compute: DType, count: u64) -> (Bilevel, Vec<StepReport>) {
    let mut bilevel = bilevel(case);
    bilevel.move_to(&device(), compute).unwrap();
    let reports = steps(&mut bilevel, case, 0..count);
    (bilevel, reports)
}

#[test]
fn in_f32_the_device_follows_the_processor() {
    for case in [
        PLAIN,
        Case { shared_aln: true, micro_batches: 1, ..PLAIN },
        Case { rope: false, first_sample: true, drop_path: false, micro_batches: 1, ..PLAIN },
    ] {
        let expected = steps(&mut bilevel(&case), &case, 0..3);
        let (_, found) = on_device(&case, DType::F32, 3);
        let (losses, all) =
            (difference(&losses_alone(&found), &losses_alone(&expected)), difference(&found, &expected));
        println!("shared_aln {}: losses {losses:.1e}, with norms {all:.1e}", case.shared_aln);
        assert!(losses <= 1e-5, "losses differ by {losses:e}");
        assert!(all <= 1e-4, "losses and norms differ by {all:e}");
    }
}

/// Every rule, in the forms that differ on a device: what is measured of each sample, and what the rater learns from it.
#[test]
fn every_rule_is_the_same_on_a_device() {
    let alignment = RuleSettings { rule: &ALIGNMENT, ..RULE };
    let excess = RuleSettings { rule: &EXCESS, scaling: Scaling::Center, ..RULE };
    let taught =
        RuleSettings { objective: RaterObjective::Regression, geometry: Geometry::AdamW, ..alignment };
    let scaled = RuleSettings { scaling: Scaling::Standardize, ..alignment };
    for (rule, shared_aln, count) in
        [(excess, false, 1), (scaled, true, 1), (taught, false, 2), (RULE, false, 1)]
    {
        let case = Case { rule, shared_aln, depth: 1, micro_batches: count, record_norms: true, ..PLAIN };
        let run = |compute: Option<DType>, steps: u64| {
            let mut bilevel = bilevel(&case);
            if rule.rule.needs().reference {
                bilevel.begin_reference();
            }
            if let Some(compute) = compute {
                bilevel.move_to(&device(), compute).unwrap();
            }
            let one = |at: u64| {
                let mut micro = micro_batches(&case, at);
                for micro in &mut micro {
                    let averages = vec![[0.25, 0.5]; BATCH];
                    micro.prior = Some(Prior { averages, mean: 0.1, inverse_deviation: 2.0 });
                }
                bilevel.step(&micro, RATES, at).unwrap()
            };
            // The second step is recorded, and the third replayed from the recording.
            (0..steps).map(one).collect::<Vec<StepReport>>()
        };
        let expected = run(None, 3);
        // In 16 bits the first step alone: AdamW makes whole steps of small differences.
        for (compute, bound, steps) in [(DType::F32, 2e-4, 3), (DType::Bf16, 8e-2, 1), (DType::F16, 2e-2, 1)]
        {
            let found = run(Some(compute), steps);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                for (what, found, expected) in [
                    ("losses", &found.train_loss, &expected.train_loss),
                    ("reference losses", &found.reference_loss, &expected.reference_loss),
                    ("products", &found.product, &expected.product),
                    ("norms", &found.gradient_norm, &expected.gradient_norm),
                    ("targets", &found.target, &expected.target),
                    ("logits", &found.logit, &expected.logit),
                    (
                        "rater's gradient",
                        &vec![found.rater_gradient_norm],
                        &vec![expected.rater_gradient_norm],
                    ),
                ] {
                    assert_eq!(found.len(), expected.len(), "{what}");
                    // AdamW makes whole steps of small differences in the rater's gradient, too.
                    let of_rater = ["logits", "rater's gradient"].contains(&what);
                    if found.is_empty() || (of_rater && at > 0) {
                        continue;
                    }
                    let tensor = |values: &[f64]| Tensor::new(&[values.len()], values.to_vec()).unwrap();
                    let error = common::relative_error(&tensor(found), &tensor(expected));
                    // AdamW's direction divides by moments that may be next to nothing.
                    let direction =
                        rule.geometry == Geometry::AdamW && ["products", "targets"].contains(&what);
                    let bound = if direction { f64::max(bound, 5e-2) } else { bound };
                    assert!(error <= bound, "{rule:?}, {compute:?}, step {at}: {what} are off by {error:e}");
                }
            }
        }
    }
}

#[test]
fn in_16_bits_the_losses_stay_close() {
    let case = Case { micro_batches: 1, ..PLAIN };
    let expected = steps(&mut bilevel(&case), &case, 0..3);
    for (compute, bound) in [(DType::Bf16, 1e-2), (DType::F16, 2e-3)] {
        let (bilevel, found) = on_device(&case, compute, 3);
        let worst = difference(&losses_alone(&found), &losses_alone(&expected));
        println!("{compute:?}: {worst:.1e}");
        assert!(worst <= bound, "{compute:?}: losses differ by {worst:e}");
        assert_eq!(bilevel.proxy_optimizer.loss_scale().is_some(), compute == DType::F16);
    }
}

#[test]
fn recomputing_and_repeating_change_no_bit() {
    let case = Case { shared_aln: true, micro_batches: 1, ..PLAIN };
    let (kept, first) = on_device(&case, DType::Bf16, 2);
    let (again, second) = on_device(&Case { recompute: true, ..case }, DType::Bf16, 2);
    assert_eq!(first, second);
    assert_same_weights(&kept, &again);
}

#[test]
fn batches_that_came_ahead_change_no_bit() {
    let case = PLAIN;
    let mut ahead = bilevel(&case);
    ahead.move_to(&device(), DType::Bf16).unwrap();
    let mut plain = ahead.clone();
    let mut next = micro_batches(&case, 0);
    for at in 0..4 {
        let expected = step(&mut plain, &case, RATES, at);
        let fetch = |bilevel: &Bilevel| {
            micro_batches(&case, at + 1).into_iter().map(|micro| bilevel.ahead(micro)).collect()
        };
        let (report, fetched) = ahead.step_while(&next, RATES, at, fetch).unwrap();
        assert_eq!(report, expected, "step {at}");
        assert!(next[0].train.codes.device().is_some() || at == 0);
        next = fetched;
    }
    assert_same_weights(&ahead, &plain);
}

/// Batches without an input: a device makes it from the codes, and trains as with the host's.
#[test]
fn codes_are_enough_for_a_device() {
    let quantizer =
        PyramidQuantizer::new(&[1, 2, 3], &normal(&[VOCABULARY, 6], 9, DType::F32), Vec::new()).unwrap();
    let case = Case { depth: 1, micro_batches: 1, ..PLAIN };
    let run = |on_device: bool| -> Vec<StepReport> {
        let device = device();
        let mut bilevel = bilevel(&case);
        bilevel.move_to(&device, DType::F32).unwrap();
        if on_device {
            bilevel.reader = Some(CodeReader::new(&quantizer, &device, BATCH).unwrap());
        }
        let of = |stream: u64| {
            let batch = Batch { input: None, ..batch(stream) };
            if on_device { batch } else { batch.with_input(&quantizer).unwrap() }
        };
        let micro = |step: u64| MicroBatch { train: of(2 * step), validation: of(2 * step + 1), prior: None };
        (0..3).map(|step| bilevel.step(&[micro(step)], RATES, step).unwrap()).collect()
    };
    let worst = difference(&run(true), &run(false));
    assert!(worst <= 1e-5, "losses differ by {worst:e}");

    let mut without = bilevel(&case);
    without.move_to(&device(), DType::F32).unwrap();
    let batch = Batch { input: None, ..batch(0) };
    let micro = MicroBatch { train: batch.clone(), validation: batch, prior: None };
    let message = without.step(&[micro], RATES, 0).unwrap_err().to_string();
    assert!(message.contains("has not been computed from the codes"), "{message}");
}

#[test]
fn recomputing_needs_less_memory() {
    let step_bytes = |recompute: bool| {
        let case =
            Case { depth: 4, recompute, micro_batches: 1, drop_path: false, cuda_graph: false, ..PLAIN };
        let device = device();
        let mut bilevel = bilevel(&case);
        bilevel.move_to(&device, DType::Bf16).unwrap();
        let held = device.memory().used_bytes;
        device.reset_peak_memory();
        step(&mut bilevel, &case, RATES, 0);
        device.memory().peak_bytes - held
    };
    let (kept, again) = (step_bytes(false), step_bytes(true));
    println!("a step takes {kept} bytes in addition to weights and moments, {again} when blocks run again");
    assert!(10 * again <= 9 * kept, "{again} bytes are hardly less than {kept}");
}

/// Steps 0 to 7 with the weight of the validation loss going from 0 to a half and to 1, as from epoch to epoch, and learning
/// rates that never come again; gives whether a graph was kept after each.
fn scheduled(bilevel: &mut Bilevel, case: &Case) -> (Vec<StepReport>, Vec<bool>) {
    let one = |at: u64| {
        let upper_level_weight = [0.0, 0.0, 0.5, 0.5, 0.25, 1.0, 1.0, 1.0][at as usize];
        let rates = StepRates { upper_level_weight, learning_rate: 1e-3 * (at + 1) as f64, ..RATES };
        let report = step(bilevel, case, rates, at);
        (report, bilevel.recorded.is_recorded())
    };
    (0..8).map(one).unzip()
}

#[test]
fn a_replayed_step_is_the_step_to_the_bit() {
    let cases = [
        (Case { depth: 1, ..PLAIN }, DType::F32),
        (Case { shared_aln: true, micro_batches: 1, recompute: true, ..PLAIN }, DType::F16),
    ];
    for (case, compute) in cases {
        let run = |cuda_graph: bool| {
            let case = Case { cuda_graph, ..case };
            let mut bilevel = bilevel(&case);
            bilevel.move_to(&device(), compute).unwrap();
            let (reports, recorded) = scheduled(&mut bilevel, &case);
            (bilevel, reports, recorded)
        };
        let (launched, expected, never) = run(false);
        let (replayed, found, recorded) = run(true);
        assert_eq!(never, [false; 8]);
        // The first step of each kind is launched, the second recorded.
        assert_eq!(recorded, [false, true, false, true, true, false, true, true]);
        assert_eq!(found, expected);
        assert_same_weights(&replayed, &launched);
    }
}

/// A graph writes weights in place; they are not those of a copy, nor of a state put back.
#[test]
fn a_graph_keeps_off_what_became_another_networks() {
    let case = Case { micro_batches: 1, ..PLAIN };
    let (mut own, _) = on_device(&case, DType::Bf16, 3);
    assert!(own.recorded.is_recorded());
    let mut copy = own.clone();
    assert!(!copy.recorded.is_recorded());
    let before = copy.proxy_parameters.value(ParameterId(0)).to_host().unwrap();
    let expected = steps(&mut own, &case, 3..6);
    assert_eq!(copy.proxy_parameters.value(ParameterId(0)).to_host().unwrap(), before);
    assert_ne!(own.proxy_parameters.value(ParameterId(0)).to_host().unwrap(), before);
    assert_eq!(steps(&mut copy, &case, 3..6), expected);
    assert_same_weights(&own, &copy);

    let name = own.proxy_parameters.name(ParameterId(0)).to_owned();
    own.proxy_parameters.set(&name, &before).unwrap();
    copy.proxy_parameters.set(&name, &before).unwrap();
    copy.settings.cuda_graph = false;
    assert_eq!(steps(&mut own, &case, 6..9), steps(&mut copy, &case, 6..9));
    assert_same_weights(&own, &copy);
}

#[test]
fn an_overflow_is_skipped_with_scaled_losses_and_stops_without() {
    let case = Case { micro_batches: 1, drop_path: false, ..PLAIN };
    let overflowing = |compute: DType| {
        let mut bilevel = bilevel(&case);
        let name = "blocks.1.ffn.fc2.weight";
        let value = bilevel.proxy_parameters.value(bilevel.proxy_parameters.id(name).unwrap());
        let large = vec![3e38f32; value.len()];
        let large = Tensor::new(value.shape(), large).unwrap();
        bilevel.proxy_parameters.set(name, &large).unwrap();
        bilevel.move_to(&device(), compute).unwrap();
        bilevel
    };
    let micro = [MicroBatch { train: batch(0), validation: batch(1), prior: None }];

    let mut scaled = overflowing(DType::F16);
    let before = scaled.proxy_parameters.value(ParameterId(0)).to_host().unwrap();
    let report = scaled.step(&micro, RATES, 0).unwrap();
    assert!(!report.proxy_gradient_norm.is_finite());
    let scale = scaled.proxy_optimizer.loss_scale().unwrap();
    assert_eq!((scale.factor(), scale.skipped(), scaled.proxy_optimizer.steps()), (1024.0, 1, 0));
    let after = scaled.proxy_parameters.value(ParameterId(0)).to_host().unwrap();
    assert_eq!(before, after);

    let message = overflowing(DType::F32).step(&micro, RATES, 4).unwrap_err().to_string();
    assert!(message.contains("step 4") && message.contains("first in the tensor"), "{message}");
    assert!(message.contains("pos_start"), "{message}");
}

/// Weights and state taken to the host and back between two steps change nothing.
#[test]
fn a_state_that_was_saved_goes_on_as_if_nothing_had_been() {
    let case = Case { micro_batches: 1, ..PLAIN };
    let (whole, expected) = on_device(&case, DType::F16, 3);
    let (first, _) = on_device(&case, DType::F16, 2);
    let mut second = bilevel(&case);
    second.move_to(&device(), DType::F16).unwrap();
    for (into, into_optimizer, from, from_optimizer) in [
        (
            &mut second.proxy_parameters,
            &mut second.proxy_optimizer,
            &first.proxy_parameters,
            &first.proxy_optimizer,
        ),
        (
            &mut second.rater_parameters,
            &mut second.rater_optimizer,
            &first.rater_parameters,
            &first.rater_optimizer,
        ),
    ] {
        for (id, name, value) in from.iter() {
            into.set(name, &value.to_host().unwrap()).unwrap();
            let (moment, square) = from_optimizer.moments(id);
            into_optimizer.restore(id, &moment.to_host().unwrap(), &square.to_host().unwrap()).unwrap();
        }
        into_optimizer.set_steps(from_optimizer.steps());
        into_optimizer.set_loss_scale(from_optimizer.loss_scale());
    }
    assert_eq!(steps(&mut second, &case, 2..3)[..], expected[2..]);
    for ((_, name, left), (_, _, right)) in whole.rater_parameters.iter().zip(second.rater_parameters.iter())
    {
        assert_eq!(left.to_host().unwrap(), right.to_host().unwrap(), "{name}");
    }
}

#[test]
fn tensors_of_two_places_do_not_meet() {
    let device = device();
    let case = Case { micro_batches: 1, ..PLAIN };
    let (proxy, parameters) = Proxy::new(&backbone(&case, 1), DType::F32, 1).unwrap();
    let parameters = parameters.to_device(&device, DType::F32).unwrap();
    let batch = batch(0);
    let mut tape = alchemist_engine::engine::Tape::inference(&parameters);
    let mode = alchemist_engine::models::Mode::Evaluate;
    let input = batch.input().unwrap();
    let message = proxy.logits(&mut tape, input, &batch.text, mode).unwrap_err().to_string();
    let place = format!("is on {}", device.facts().name);
    assert!(message.contains(&place), "{message}");
    let tensor = input.to_device(&device).unwrap();
    assert!(tensor.as_slice::<f32>().unwrap_err().to_string().contains(&place));
    assert!(input.buffer::<f32>().unwrap_err().to_string().contains("on the host"));
    assert_eq!(tensor.to_host().unwrap(), *input);
    assert!(normal(&[2], 1, DType::F64).to_device(&device).is_err());
}

/// The rater's own steps, with what it sees made of the codes on the device, are those of the CPU.
#[test]
fn the_rater_alone_is_the_same_on_a_device() {
    let taught = RuleSettings { objective: RaterObjective::Regression, ..RULE };
    let case = Case { rule: taught, depth: 1, micro_batches: 2, ..PLAIN };
    let codebook = normal(&[VOCABULARY, 6], 7, DType::F32);
    let quantizer = PyramidQuantizer::new(&[1, 2, 3], &codebook, Vec::new()).unwrap();
    let run = |compute: Option<DType>| {
        let mut bilevel = bilevel(&case);
        bilevel.settings.rater_reach = Reach::Through;
        if let Some(compute) = compute {
            let device = device();
            bilevel.move_to(&device, compute).unwrap();
            bilevel.reader = Some(CodeReader::new(&quantizer, &device, BATCH).unwrap());
        }
        let of = |stream: u64| {
            let batch = Batch { input: None, ..batch(stream) };
            let batch = match compute {
                Some(_) => batch,
                None => batch.with_reach(&quantizer, Reach::Through).unwrap(),
            };
            let average = |at: usize| if at == 1 { f64::NAN } else { at as f64 };
            let averages = (0..BATCH).map(|at| [average(at), 0.0]).collect();
            (batch, Prior { averages, mean: 1.0, inverse_deviation: 0.8 })
        };
        let step =
            |step: u64| bilevel.rater_step(&[of(2 * step), of(2 * step + 1)], [3e-3, 0.05], step).unwrap();
        (0..3).map(step).collect::<Vec<_>>()
    };
    let expected = run(None);
    for (compute, tolerance) in [(DType::F32, 1e-4), (DType::Bf16, 5e-2)] {
        for (found, expected) in run(Some(compute)).iter().zip(&expected) {
            approx::assert_relative_eq!(found.loss, expected.loss, max_relative = tolerance);
            approx::assert_relative_eq!(
                found.gradient_norm,
                expected.gradient_norm,
                max_relative = tolerance
            );
        }
    }
}
