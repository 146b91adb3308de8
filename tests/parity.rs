//! The released code's numbers. `ALCHEMIST_FIXTURES=DIR` names another folder of fixture sets; every one found is run.

#![expect(clippy::print_stdout, reason = "the figures are what the test is run for")]

#[path = "parity/codes.rs"]
mod codes;
mod common;
#[path = "parity/encoders.rs"]
mod encoders;
#[path = "pyramid/left_over.rs"]
mod left_over;
#[path = "parity/meta_gradient.rs"]
mod meta_gradient;
#[path = "parity/released.rs"]
mod released;
#[path = "parity/schedules.rs"]
mod schedules;
#[path = "parity/text_encoders.rs"]
mod text_encoders;
#[path = "parity/vqvae.rs"]
mod vqvae;
#[path = "parity/weights.rs"]
mod weights;

use std::{collections::BTreeMap, path::PathBuf};

use alchemist_engine::{
    config::RuleSettings,
    encode::{TextStates, pyramid::Reach},
    engine::{Accumulate, DType, Parameters, Tape, Tensor},
    models::{BackboneConfig, Initialisation, Mode, Proxy, Rater, Rope, Weighing},
    rate::bilevel::{Bilevel, BilevelSettings, MicroBatch, RecordedStep, StepRates, StepReport},
    train::{
        batch::Batch,
        optimizer::{AdamW, AdamWSettings},
    },
};
use common::{
    Fixture, device, digest_error, near, parameters_near, read_tensors, relative_error, text_near, tolerance,
};
use serde_json::Value;

type Tensors = BTreeMap<String, Tensor>;

/// All fixture folders below the chosen folder whose name begins with `kind`.
fn fixtures(kind: &str) -> Vec<Fixture> {
    fn walk(folder: PathBuf, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        if folder.join("manifest.json").exists() {
            found.push(folder);
            return;
        }
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            walk(entry.path(), found);
        }
    }
    let mut found = Vec::new();
    walk(fixture_root(), &mut found);
    found.sort();
    let of_kind =
        |folder: &PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind));
    let fixtures: Vec<Fixture> =
        found.iter().filter(|folder| of_kind(folder)).map(|folder| Fixture::open(folder)).collect();
    // A folder of other sets need not hold one of every kind, but the copies do.
    assert!(
        !fixtures.is_empty() || named_root().is_some() && !found.is_empty(),
        "no fixture {kind}* in {}",
        fixture_root().display()
    );
    if fixtures.is_empty() {
        println!("parity {kind}*: no set of this kind in {}", fixture_root().display());
    }
    fixtures
}

/// The folder that the user names.
fn named_root() -> Option<PathBuf> {
    std::env::var_os("ALCHEMIST_FIXTURES").map(PathBuf::from)
}

fn fixture_root() -> PathBuf {
    named_root().unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"))
}

fn report(fixture: &Fixture, what: &str, worst: f64, limit: f64) {
    println!("parity {:<24} {what:<42} worst {worst:.2e} (limit {limit:.0e})", fixture.name());
    assert!(worst <= limit, "{}: {what} is off by {worst:e}, more than {limit:e}", fixture.name());
}

/// The backbone that the manifest and the weights describe.
fn backbone(fixture: &Fixture, weights: &Tensors, first_sample: bool) -> BackboneConfig {
    let flag = |key: &str| fixture.manifest["config"][key].as_bool().unwrap_or(false);
    let heads = weights["blocks.0.attn.scale_mul_1H11"].dim(1);
    BackboneConfig {
        patch_nums: fixture.patch_nums(),
        vocabulary: fixture.size("V"),
        code_channels: weights["word_embed.weight"].dim(1),
        text_channels: weights["encoder_proj.weight"].dim(1),
        depth: (0..).take_while(|at| weights.contains_key(&format!("blocks.{at}.ffn.fc1.weight"))).count(),
        width: weights["pos_start"].dim(2),
        heads,
        mlp_ratio: fixture.number("mlp_ratio"),
        attention_l2_norm: flag("attn_l2_norm"),
        rope: flag("rope")
            .then(|| Rope { theta: fixture.number("rope_theta"), norm: fixture.number("rope_norm") }),
        level_embedding: flag("lvl_emb"),
        logit_norm: flag("enable_logit_norm"),
        shared_aln: flag("shared_aln"),
        cross_attention: true,
        drop_path: 0.0,
        cross_from_first_sample: first_sample,
        initialisation: Initialisation { std: -1.0, head: 0.02, aln: 0.5, aln_gamma: 5e-5 },
    }
}

/// Sets every parameter from released weights; what is left over must be what the released code never uses.
fn load(parameters: &mut Parameters, weights: &Tensors) {
    for (name, value) in weights {
        if name != "class_emb.weight" && !name.ends_with(".zero_k_bias") {
            parameters.set(name, value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    for (_, name, _) in parameters.iter() {
        assert!(weights.contains_key(name), "the fixture lacks {name}");
    }
}

fn text(inputs: &Tensors, prefix: &str) -> TextStates {
    TextStates {
        states: inputs[&format!("{prefix}encoder_hidden_states")].clone(),
        mask: inputs[&format!("{prefix}encoder_attention_mask")].clone(),
        pooled: inputs[&format!("{prefix}pooled")].clone(),
    }
}

/// The worst error over all gradients, full or digested, whichever the fixture holds.
fn worst_gradient(fixture: &Fixture, parameters: &Parameters, gradients: &[Option<Tensor>]) -> f64 {
    let full = fixture.folder.join("grads.safetensors");
    let full = if full.exists() { read_tensors(&full) } else { Tensors::new() };
    let digests = &fixture.manifest["grad_digest"];
    let (mut worst, mut compared) = (0.0f64, 0);
    for (id, name, _) in parameters.iter() {
        let found = gradients[id.0].as_ref().unwrap_or_else(|| panic!("{name} has no gradient"));
        let error = match (full.get(name), digests.get(name)) {
            (Some(expected), _) => relative_error(found, expected),
            (None, Some(digest)) => digest_error(found, digest),
            (None, None) => panic!("the fixture says nothing of the gradient of {name}"),
        };
        compared += 1;
        worst = worst.max(error);
    }
    assert_eq!(compared, parameters.len(), "every gradient is compared");
    worst
}

#[test]
fn proxy_matches_the_released_code() {
    for fixture in fixtures("proxy") {
        let (weights, inputs, outputs) = (
            fixture.tensors("weights.safetensors"),
            fixture.tensors("inputs.safetensors"),
            fixture.tensors("outputs.safetensors"),
        );
        let (x, text) = (&near(&inputs["x_BLCv_wo_first_l"]), text_near(&text(&inputs, "")));
        let codes = &near(&outputs["gt_BL"]);
        for first_sample in [true, false] {
            let (proxy, mut parameters) =
                Proxy::new(&backbone(&fixture, &weights, first_sample), DType::F32, 0).unwrap();
            load(&mut parameters, &weights);
            let parameters = parameters_near(parameters);
            let (prefix, kind) = if first_sample { ("", "released") } else { ("fixedcross_", "default") };
            let mut tape = Tape::new(&parameters);
            let logits = proxy.logits(&mut tape, x, &text, Mode::Evaluate).unwrap();
            if let Some(expected) = outputs.get(&format!("{prefix}logits")) {
                let error = relative_error(logits.value(), expected);
                report(
                    &fixture,
                    &format!("logits, {kind} cross-attention"),
                    error,
                    tolerance::PARITY_FORWARD,
                );
            }
            let mut tape = Tape::new(&parameters);
            let loss = proxy.loss(&mut tape, x, &text, codes, 0.0, Mode::Evaluate).unwrap();
            if let Some(expected) = outputs.get(&format!("{prefix}loss_per_sample")) {
                let error = relative_error(loss.sample_loss.value(), expected);
                report(
                    &fixture,
                    &format!("loss per sample, {kind} cross-attention"),
                    error,
                    tolerance::PARITY_FORWARD,
                );
            }
            if !first_sample {
                continue;
            }
            let error = relative_error(&loss.token_loss, &outputs["loss_per_token"]);
            report(&fixture, "loss per token", error, tolerance::PARITY_FORWARD);
            let batch = codes.dim(0);
            let mut visitor = Accumulate::default();
            let seeds = Tensor::new(&[batch], vec![1.0 / batch as f32; batch]).unwrap();
            tape.backward(vec![(&loss.sample_loss, near(&seeds))], &[], &mut visitor).unwrap();
            let worst = worst_gradient(&fixture, &parameters, &visitor.gradients);
            report(&fixture, "gradients of the mean loss", worst, tolerance::PARITY_GRADIENT);
            if let Some(expected) = outputs.get("loss_per_token_label_smooth_0p1") {
                let mut tape = Tape::inference(&parameters);
                let loss = proxy.loss(&mut tape, x, &text, codes, 0.1, Mode::Evaluate).unwrap();
                let error = relative_error(&loss.token_loss, expected);
                report(&fixture, "loss per token, smoothing 0.1", error, tolerance::PARITY_FORWARD);
            }
        }
    }
}

#[test]
fn rater_matches_the_released_code() {
    for fixture in fixtures("rater_").into_iter().filter(|fixture| !fixture.name().starts_with("rater_train"))
    {
        let (weights, inputs, outputs) = (
            fixture.tensors("weights.safetensors"),
            fixture.tensors("inputs.safetensors"),
            fixture.tensors("outputs.safetensors"),
        );
        let (x, text) = (&near(&inputs["x_BLCv_wo_first_l"]), text_near(&text(&inputs, "")));
        for first_sample in [true, false] {
            let (rater, mut parameters) =
                Rater::new(&backbone(&fixture, &weights, first_sample), DType::F32, 0).unwrap();
            load(&mut parameters, &weights);
            let parameters = parameters_near(parameters);
            let (prefix, kind) = if first_sample { ("", "released") } else { ("fixedcross_", "default") };
            let mut tape = Tape::new(&parameters);
            let rated = rater.forward(&mut tape, x, &text, Weighing::Released, Mode::Evaluate).unwrap();
            for (what, found) in
                [("score", &rated.score), ("pooled_features", &rated.pooled), ("batch_score", &rated.group)]
            {
                if let Some(expected) = outputs.get(&format!("{prefix}{what}")) {
                    let error = relative_error(found.value(), expected);
                    report(
                        &fixture,
                        &format!("{what}, {kind} cross-attention"),
                        error,
                        tolerance::PARITY_FORWARD,
                    );
                }
            }
            if !first_sample {
                continue;
            }
            if let Some(expected) = outputs.get("rating_weight_softmax") {
                let error = relative_error(rated.weight.value(), expected);
                report(&fixture, "weights", error, tolerance::PARITY_FORWARD);
            }
            let mut visitor = Accumulate::default();
            let seeds = vec![(&rated.score, near(&outputs["grad_vector"]))];
            tape.backward(seeds, &[], &mut visitor).unwrap();
            let worst = worst_gradient(&fixture, &parameters, &visitor.gradients);
            report(&fixture, "gradients of the score", worst, tolerance::PARITY_GRADIENT);
        }
    }
}

/// Released parameter groups (upstream.md, C2).
fn decays(name: &str, shape: &[usize]) -> bool {
    alchemist_engine::train::parameter_groups::decays(name, shape)
}

struct Run {
    rater_regularisation: bool,
    freeze_proxy: bool,
}

fn bilevel(fixture: &Fixture, run: &Run) -> Bilevel {
    let weights = |key: &str| {
        let path = fixture.manifest["initial_weights"][key].as_str().expect("the manifest names the weights");
        read_tensors(&fixture.folder.join(path))
    };
    let (proxy_weights, rater_weights) = (weights("proxy"), weights("rater"));
    let (proxy, mut proxy_parameters) =
        Proxy::new(&backbone(fixture, &proxy_weights, true), DType::F32, 0).unwrap();
    let (rater, mut rater_parameters) =
        Rater::new(&backbone(fixture, &rater_weights, true), DType::F32, 0).unwrap();
    load(&mut proxy_parameters, &proxy_weights);
    load(&mut rater_parameters, &rater_weights);
    let optimizer = &fixture.manifest["optimizer"];
    let number = |value: &Value| value.as_f64().expect("an optimizer setting is a number");
    let settings = AdamWSettings {
        beta1: number(&optimizer["betas"][0]),
        beta2: number(&optimizer["betas"][1]),
        epsilon: number(&optimizer["eps"]),
        clip: Some(number(&optimizer["grad_clip"])),
    };
    let mut bilevel = Bilevel {
        proxy,
        proxy_optimizer: AdamW::new(&proxy_parameters, decays, settings),
        proxy_parameters,
        rater,
        rater_optimizer: AdamW::new(&rater_parameters, decays, settings),
        rater_parameters,
        settings: BilevelSettings {
            weighing: Weighing::Released,
            weighted_mean: true,
            label_smoothing: 0.0,
            rater_regularisation: run.rater_regularisation,
            freeze_proxy: run.freeze_proxy,
            frozen_proxy_decays: true,
            two_rater_passes: true,
            rater_reach: Reach::Before,
            drop_path: false,
            recompute: false,
            cuda_graph: true,
            rule: RuleSettings::default(),
            record_norms: false,
            seed: 0,
        },
        reader: None,
        reference: None,
        recorded: RecordedStep::default(),
    };
    if let Some(device) = device() {
        bilevel.move_to(device, DType::F32).unwrap();
    }
    bilevel
}

fn batch(batches: &Tensors, prefix: &str, last_scale: usize) -> Batch {
    Batch {
        codes: batches[&format!("{prefix}idx_BL")].clone(),
        input: Some(batches[&format!("{prefix}x_BLCv_wo_first_l")].clone()),
        through: None,
        text: text(batches, prefix),
        last_scale,
    }
}

/// The worst relative error of one step's figures.
fn step_error(found: &StepReport, expected: &Value) -> f64 {
    let one = |found: f64, expected: &Value| {
        let expected = expected.as_f64().expect("a figure is a number");
        (found - expected).abs() / expected.abs().max(1e-12)
    };
    let many = |found: &[f64], expected: &Value| {
        let expected = expected.as_array().expect("figures of a batch are a list");
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).map(|(found, expected)| one(*found, expected)).fold(0.0, f64::max)
    };
    let metrics = &expected["metrics"];
    [
        one(found.validation_loss, &expected["val_loss"]),
        one(found.weighted_train_loss, &expected["weighted_train_loss"]),
        one(found.rater_loss, &expected["rater_loss"]),
        many(&found.train_loss, &expected["train_loss_per_sample"]),
        many(&found.score, &expected["score_for_proxy"]),
        many(&found.weight, &expected["rating_weight"]),
        one(found.validation_tail_loss, &metrics["Lt"]),
        (found.validation_accuracy - metrics["Accm"].as_f64().unwrap()).abs() / 100.0,
        (found.validation_tail_accuracy - metrics["Acct"].as_f64().unwrap()).abs() / 100.0,
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

fn final_weights_error(fixture: &Fixture, parameters: &Parameters, net: &str) -> f64 {
    let full = fixture.folder.join(format!("final_{net}.safetensors"));
    let full = if full.exists() { read_tensors(&full) } else { Tensors::new() };
    let digests = &fixture.manifest[format!("final_{net}_digest")];
    let mut worst = 0.0f64;
    for (_, name, value) in parameters.iter() {
        let scale = value.to_f64_vec().unwrap().iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let error = match (full.get(name), digests.get(name)) {
            (Some(expected), _) => relative_error(value, expected) * scale,
            (None, Some(digest)) => digest_error(value, digest) * scale,
            (None, None) => panic!("the fixture says nothing of the final {net} {name}"),
        };
        worst = worst.max(error);
    }
    worst
}

#[test]
fn training_steps_match_the_released_code() {
    for fixture in fixtures("rater_train") {
        let batches = fixture.tensors("batches.safetensors");
        let last_scale = fixture.patch_nums().last().map_or(0, |side| side * side);
        let optimizer = &fixture.manifest["optimizer"];
        let rates = StepRates {
            upper_level_weight: fixture.manifest["ul_weight"].as_f64().unwrap(),
            learning_rate: optimizer["lr"].as_f64().unwrap(),
            weight_decay: optimizer["weight_decay"].as_f64().unwrap(),
            warm_up: false,
        };
        let runs = [
            ("steps", Run { rater_regularisation: false, freeze_proxy: false }),
            ("steps_rater_reg", Run { rater_regularisation: true, freeze_proxy: false }),
            ("steps_fixVar", Run { rater_regularisation: false, freeze_proxy: true }),
        ];
        for (key, run) in runs {
            let Some(steps) = fixture.manifest[key].as_array() else { continue };
            let mut bilevel = bilevel(&fixture, &run);
            let mut worst = 0.0f64;
            for (at, expected) in steps.iter().enumerate() {
                let micro = MicroBatch {
                    train: batch(&batches, &format!("step{at}.train."), last_scale),
                    validation: batch(&batches, &format!("step{at}.val."), last_scale),
                    prior: None,
                };
                let found = bilevel.step(&[micro], rates, at as u64).unwrap();
                worst = worst.max(step_error(&found, expected));
                if !run.freeze_proxy {
                    let norm = expected["proxy_grad_norm_preclip"].as_f64().unwrap();
                    worst = worst.max((found.proxy_gradient_norm - norm).abs() / norm);
                    let loss = expected["proxy_total_loss"].as_f64().unwrap();
                    worst = worst.max((found.proxy_loss - loss).abs() / loss);
                }
            }
            report(&fixture, &format!("{} {key}", steps.len()), worst, tolerance::PARITY_LOSS);
            if key == "steps" {
                for (net, parameters) in
                    [("rater", &bilevel.rater_parameters), ("proxy", &bilevel.proxy_parameters)]
                {
                    let floor = fixture.manifest[format!("f32_vs_f64_final_{net}_max_abs")].as_f64().unwrap();
                    let error = final_weights_error(&fixture, parameters, net);
                    let limit = floor * tolerance::PARITY_FINAL_WEIGHTS;
                    report(&fixture, &format!("final {net} weights (absolute)"), error, limit);
                }
            }
        }
    }
}

fn sizes(list: &Value) -> Vec<usize> {
    let list = list.as_array().expect("a list of sizes");
    list.iter().map(|size| size.as_u64().expect("a size is a number") as usize).collect()
}

/// A digest says what the tensor says: of the right tensor nothing is off, and every kind of mistake shows.
#[test]
fn digests_find_what_full_tensors_find() {
    for (stream, count) in [1usize, 7, 16, 300, 4096].into_iter().enumerate() {
        let tensor = common::normal(&[count], 40 + stream as u64, DType::F64);
        let digest = common::digest(&tensor);
        assert!(digest_error(&tensor, &digest) < 1e-12);
        let values = tensor.to_f64_vec().unwrap();
        let scale = values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        // The last number wrong, all numbers a little too large, and two halves changed places.
        let mut one = values.clone();
        one[count - 1] += 10.0 * scale;
        let larger = values.iter().map(|value| value * 1.01).collect();
        let mut turned = values.clone();
        turned.rotate_left(count / 2);
        for (mistake, needs) in [(one, 1), (larger, 1), (turned, 2)] {
            if count >= needs {
                let found = digest_error(&Tensor::new(&[count], mistake).unwrap(), &digest);
                assert!(
                    found > tolerance::PARITY_GRADIENT,
                    "a mistake in {count} numbers moves it by {found:e}"
                );
            }
        }
    }
}
