//! Training steps of both networks, figure by figure.

use alchemist_engine::{
    rater::bilevel::{Bilevel, BilevelSettings, MicroBatch, StepRates, StepReport},
    tokens::batch::Batch,
    training::optimizer::AdamWSettings,
};

use super::*;

/// How near a run is to the manifest's figures: in f64 to those of f64.
const LIMIT_F64: f64 = 1e-7;
/// The same of the norms of gradients. The released code keeps some numbers in f32 even then (its `rater_loss` is 5e-8 off the
/// sum of its parts): its norms are up to 3.9e-7 from those of PyTorch in f64 throughout, and up to 9.7e-7 from those here.
/// Such differences grow from step to step as those of f32 do, of which a share is allowed where it is more.
const LIMIT_F64_NORMS: f64 = 3e-6;
const NOISE_SHARE: f64 = 0.1;
/// In f32, three times what separates the manifest's own figures of f32 and f64, but no less than this.
const LEAST_LIMIT_F32: f64 = 1e-5;
const NOISE_TIMES: f64 = 3.0;
/// In f32 where the manifest has no figures of f64.
const LIMIT_F32: f64 = 5e-4;

/// Figures of a step by their names.
type Figures = BTreeMap<&'static str, Vec<f64>>;

/// The figures in a manifest: one number or one per sample.
const FIGURES: [&str; 9] = [
    "val_loss",
    "weighted_train_loss",
    "rater_loss",
    "train_loss_per_sample",
    "score_for_proxy",
    "rating_weight",
    "rater_grad_norm_preclip",
    "proxy_grad_norm_preclip",
    "proxy_total_loss",
];

/// Those among its `metrics`; percentages are compared as shares.
const METRICS: [(&str, f64); 3] = [("Lt", 1.0), ("Accm", 0.01), ("Acct", 0.01)];

/// Those of them that are norms of gradients.
const NORMS: [&str; 2] = ["rater_grad_norm_preclip", "proxy_grad_norm_preclip"];

/// What is not compared where the proxy is frozen: the released code sets its loss to 0.
const OF_THE_PROXY: [&str; 2] = ["proxy_grad_norm_preclip", "proxy_total_loss"];

struct Run {
    key: &'static str,
    rater_regularization: bool,
    freeze_proxy: bool,
}

const RUNS: [Run; 3] = [
    Run { key: "steps", rater_regularization: false, freeze_proxy: false },
    Run { key: "steps_rater_reg", rater_regularization: true, freeze_proxy: false },
    Run { key: "steps_fixVar", rater_regularization: false, freeze_proxy: true },
];

/// The figures that a manifest has of a step.
fn told(step: &Value) -> Figures {
    let numbers = |value: &Value| match value {
        Value::Array(items) => items.iter().map(Value::as_f64).collect(),
        value => value.as_f64().map(|value| vec![value]),
    };
    let own = FIGURES.into_iter().filter_map(|name| Some((name, numbers(&step[name])?)));
    let metrics = METRICS.into_iter().filter_map(|(name, _)| Some((name, numbers(&step["metrics"][name])?)));
    own.chain(metrics).collect()
}

/// The figures of a step that was run.
fn found(report: &StepReport) -> Figures {
    let one = |value: f64| vec![value];
    [
        ("val_loss", one(report.validation_loss)),
        ("weighted_train_loss", one(report.weighted_train_loss)),
        ("rater_loss", one(report.rater_loss)),
        ("train_loss_per_sample", report.train_loss.clone()),
        ("score_for_proxy", report.score.clone()),
        ("rating_weight", report.weight.clone()),
        ("rater_grad_norm_preclip", one(report.rater_gradient_norm)),
        ("proxy_grad_norm_preclip", one(report.proxy_gradient_norm)),
        ("proxy_total_loss", one(report.proxy_loss)),
        ("Lt", one(report.validation_tail_loss)),
        ("Accm", one(report.validation_accuracy)),
        ("Acct", one(report.validation_tail_accuracy)),
    ]
    .into()
}

/// The worst relative error of a step's figures, without or of its norms, and which figure it is.
fn worst(found: &Figures, expected: &Figures, run: &Run, norms: bool) -> (f64, &'static str) {
    let mut worst = (0.0f64, "");
    for (&name, expected) in expected {
        if run.freeze_proxy && OF_THE_PROXY.contains(&name) || NORMS.contains(&name) != norms {
            continue;
        }
        let found = &found[name];
        assert_eq!(found.len(), expected.len(), "{name}");
        let share = METRICS.iter().find(|(metric, share)| *metric == name && *share < 1.0);
        for (found, expected) in found.iter().zip(expected) {
            let scale = share.map_or(expected.abs().max(1e-12), |(_, share)| 1.0 / share);
            let error = (found - expected).abs() / scale;
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error > worst.0 {
                worst = (error, name);
            }
        }
    }
    worst
}

fn bilevel(fixture: &Fixture, run: &Run, dtype: DType) -> Option<Bilevel> {
    let weights = |key: &str| {
        let path = fixture.manifest["initial_weights"][key].as_str();
        let Some(path) = path else {
            lacks(fixture, &format!("initial_weights.{key}"));
            return None;
        };
        tensors_at(fixture, &fixture.folder.join(path))
    };
    let (proxy_weights, rater_weights) = (weights("proxy")?, weights("rater")?);
    let (proxy, mut proxy_parameters) =
        Proxy::new(&backbone(fixture, &proxy_weights, true), DType::F32, 0).unwrap();
    let (rater, mut rater_parameters) =
        Rater::new(&backbone(fixture, &rater_weights, true), DType::F32, 0).unwrap();
    load(&mut proxy_parameters, &proxy_weights);
    load(&mut rater_parameters, &rater_weights);
    let [proxy_parameters, rater_parameters] =
        [proxy_parameters, rater_parameters].map(|parameters| parameters.cast(dtype).unwrap());
    let optimizer = &fixture.manifest["optimizer"];
    let number = |value: &Value| value.as_f64().expect("an optimizer setting is a number");
    let optimizers = AdamWSettings {
        beta1: number(&optimizer["betas"][0]),
        beta2: number(&optimizer["betas"][1]),
        epsilon: number(&optimizer["eps"]),
        clip: Some(number(&optimizer["grad_clip"])),
    };
    let mut bilevel = Bilevel::new(
        (proxy, proxy_parameters),
        (rater, rater_parameters),
        optimizers,
        BilevelSettings {
            rater_regularization: run.rater_regularization,
            freeze_proxy: run.freeze_proxy,
            drop_path: false,
            ..BilevelSettings::released()
        },
    );
    if let Some(device) = device() {
        bilevel.move_to(device, DType::F32).unwrap();
    }
    Some(bilevel)
}

fn batch(fixture: &Fixture, batches: &Tensors, prefix: &str, dtype: DType) -> Option<Batch> {
    let last_scale = fixture.patch_nums().last().map_or(0, |side| side * side);
    let cast = |tensor: &Tensor| match tensor.dtype() {
        DType::U32 => tensor.clone(),
        _ => tensor.cast(dtype).unwrap(),
    };
    let names = ["idx_BL", "x_BLCv_wo_first_l"].map(|name| format!("{prefix}{name}"));
    let [codes, input] = all_of(fixture, batches, names.each_ref().map(String::as_str))?;
    let TextStates { states, mask, pooled } = text(fixture, batches, prefix)?;
    Some(Batch {
        codes: codes.clone(),
        input: Some(cast(input)),
        through: None,
        text: TextStates { states: cast(&states), mask: cast(&mask), pooled: cast(&pooled) },
        last_scale,
    })
}

/// Runs the steps of a manifest and compares each with what it tells of them; what comes of the networks.
fn follow(
    fixture: &Fixture,
    batches: &Tensors,
    run: &Run,
    dtype: DType,
    steps: &[Value],
    limits: [f64; 2],
) -> Option<Bilevel> {
    let optimizer = &fixture.manifest["optimizer"];
    let number = |value: &Value| value.as_f64().expect("a rate is a number");
    let rates = StepRates {
        upper_level_weight: number(&fixture.manifest["ul_weight"]),
        learning_rate: number(&optimizer["lr"]),
        weight_decay: number(&optimizer["weight_decay"]),
        warm_up: false,
    };
    let mut bilevel = bilevel(fixture, run, dtype)?;
    let mut most = [(0.0f64, ""); 2];
    for (at, step) in steps.iter().enumerate() {
        let micro = MicroBatch {
            train: batch(fixture, batches, &format!("step{at}.train."), dtype)?,
            validation: batch(fixture, batches, &format!("step{at}.val."), dtype)?,
            prior: None,
        };
        let report = bilevel.step(&[micro], rates, at as u64).unwrap();
        for (norms, most) in [false, true].into_iter().zip(&mut most) {
            let error = worst(&found(&report), &told(step), run, norms);
            *most = if error.0 > most.0 { error } else { *most };
        }
    }
    for ((error, figure), limit) in most.into_iter().zip(limits) {
        report(fixture, &format!("{} {}, {dtype:?} ({figure})", steps.len(), run.key), error, limit);
    }
    Some(bilevel)
}

/// The worst absolute error of a network's weights; `None`, which is said, where the set does not tell them.
fn final_weights_error(fixture: &Fixture, parameters: &Parameters, net: &str) -> Option<f64> {
    let full = fixture.folder.join(format!("final_{net}.safetensors"));
    let full = if full.exists() { read_tensors(&full) } else { Tensors::new() };
    let digests = &fixture.manifest[format!("final_{net}_digest")];
    let (mut worst, mut compared) = (0.0f64, 0);
    for (_, name, value) in parameters.iter() {
        let scale = value.to_f64_vec().unwrap().iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let error = match (full.get(name), digests.get(name)) {
            (Some(expected), _) => relative_error(value, expected) * scale,
            (None, Some(digest)) => digest_error(value, digest) * scale,
            (None, None) => continue,
        };
        compared += 1;
        worst = worst.max(error);
    }
    let untold = parameters.len() - compared;
    if untold > 0 {
        lacks(fixture, &format!("{untold} of {} final weights of the {net}", parameters.len()));
    }
    (compared > 0).then_some(worst)
}

#[test]
fn training_steps_match_the_released_code() {
    for fixture in fixtures("rater_train") {
        let Some(batches) = tensors(&fixture, "batches.safetensors") else { continue };
        for run in &RUNS {
            let Some(steps) = fixture.manifest[run.key].as_array() else {
                lacks(&fixture, run.key);
                continue;
            };
            let exact = fixture.manifest[format!("{}_f64", run.key)].as_array();
            let noise = exact.map(|exact| {
                let noise = steps.iter().zip(exact).flat_map(|(step, exact)| {
                    [false, true].map(|norms| worst(&told(step), &told(exact), run, norms).0)
                });
                noise.fold(0.0, f64::max)
            });
            let limit = noise.map_or(LIMIT_F32, |noise| LEAST_LIMIT_F32.max(NOISE_TIMES * noise));
            // A device computes in f32.
            if let (Some(exact), Some(noise), None) = (exact, noise, device()) {
                let limits = [LIMIT_F64, LIMIT_F64_NORMS.max(NOISE_SHARE * noise)];
                follow(&fixture, &batches, run, DType::F64, exact, limits);
            }
            let Some(bilevel) = follow(&fixture, &batches, run, DType::F32, steps, [limit; 2]) else {
                continue;
            };
            if run.key == "steps" {
                for (net, parameters) in
                    [("rater", &bilevel.rater_parameters), ("proxy", &bilevel.proxy_parameters)]
                {
                    let key = format!("f32_vs_f64_final_{net}_max_abs");
                    let Some(floor) = fixture.manifest[&key].as_f64() else {
                        lacks(&fixture, &key);
                        continue;
                    };
                    let Some(error) = final_weights_error(&fixture, parameters, net) else { continue };
                    let limit = floor * tolerance::PARITY_FINAL_WEIGHTS;
                    report(&fixture, &format!("final {net} weights (absolute)"), error, limit);
                }
            }
        }
    }
}
