//! The released code's numbers. `ALCHEMIST_FIXTURES=DIR` names another folder of fixture sets, as fixtures/README.md describes
//! them; every one found is run, whatever its sizes. What a set lacks is left out and said; the copies here lack nothing.

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
#[path = "parity/other_sets.rs"]
mod other_sets;
#[path = "parity/released.rs"]
mod released;
#[path = "parity/schedules.rs"]
mod schedules;
#[path = "parity/text_encoders.rs"]
mod text_encoders;
#[path = "parity/training.rs"]
mod training;
#[path = "parity/vqvae.rs"]
mod vqvae;
#[path = "parity/weights.rs"]
mod weights;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    encode::TextStates,
    engine::{Accumulate, DType, Parameters, Tape, Tensor},
    models::{BackboneConfig, Initialization, Mode, Proxy, Rater, Rope, Weighing},
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

/// Says that a set lacks something, and a comparison is left out for it. The copies lack nothing.
fn lacks(fixture: &Fixture, what: &str) {
    println!("parity {:<24} skipped: it lacks {what}", fixture.name());
    assert!(named_root().is_some(), "{} lacks {what}", fixture.name());
}

/// The tensors of a set's file; `None`, which is said, if it lacks the file.
fn tensors_at(fixture: &Fixture, path: &Path) -> Option<Tensors> {
    if path.exists() {
        return Some(read_tensors(path));
    }
    lacks(fixture, &path.strip_prefix(&fixture.folder).unwrap_or(path).display().to_string());
    None
}

fn tensors(fixture: &Fixture, file: &str) -> Option<Tensors> {
    tensors_at(fixture, &fixture.folder.join(file))
}

/// The tensors of these names; `None`, which is said, if one is lacking.
fn all_of<'a, const N: usize>(
    fixture: &Fixture,
    tensors: &'a Tensors,
    names: [&str; N],
) -> Option<[&'a Tensor; N]> {
    if let Some(missing) = names.iter().find(|name| !tensors.contains_key(**name)) {
        lacks(fixture, missing);
        return None;
    }
    Some(names.map(|name| &tensors[name]))
}

/// A tensor with the expected one; prints a line if the set has none, as the copies may.
fn compare(fixture: &Fixture, what: &str, found: &Tensor, expected: Option<&Tensor>, limit: f64) {
    match expected {
        Some(expected) => report(fixture, what, relative_error(found, expected), limit),
        None => println!("parity {:<24} skipped: it lacks {what}", fixture.name()),
    }
}

/// The backbone that the weights, and where they do not tell, the manifest describes.
fn backbone(fixture: &Fixture, weights: &Tensors, first_sample: bool) -> BackboneConfig {
    backbone_of(fixture, &|name| weights.get(name).map(|tensor| tensor.shape().to_vec()), first_sample)
}

fn backbone_of(
    fixture: &Fixture,
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    first_sample: bool,
) -> BackboneConfig {
    let config = &fixture.manifest["config"];
    let flag = |key: &str, otherwise: bool| config[key].as_bool().unwrap_or(otherwise);
    let size = |name: &str, dimension: usize| shape(name).map(|shape| shape[dimension]);
    let expect = |name: &str, dimension: usize| {
        size(name, dimension).unwrap_or_else(|| panic!("{} lacks the weights {name}", fixture.name()))
    };
    let width = expect("pos_start", 2);
    let head_side = config["head_dim"].as_u64().map_or(64, |side| side as usize);
    BackboneConfig {
        patch_nums: fixture.patch_nums(),
        vocabulary: size("head_logits.weight", 0).unwrap_or_else(|| fixture.size("V")),
        code_channels: expect("word_embed.weight", 1),
        text_channels: expect("encoder_proj.weight", 1),
        depth: (0..).take_while(|at| shape(&format!("blocks.{at}.ffn.fc1.weight")).is_some()).count(),
        width,
        heads: size("blocks.0.attn.scale_mul_1H11", 1).unwrap_or(width / head_side),
        mlp_ratio: expect("blocks.0.ffn.fc1.weight", 0) as f64 / width as f64,
        attention_l2_norm: shape("blocks.0.attn.scale_mul_1H11").is_some(),
        rope: flag("rope", config["rope_theta"].is_number())
            .then(|| Rope { theta: fixture.number("rope_theta"), norm: fixture.number("rope_norm") }),
        level_embedding: shape("lvl_embed.weight").is_some(),
        logit_norm: flag("enable_logit_norm", true),
        shared_aln: flag("shared_aln", shape("lvl_embed_proj.weight").is_some()),
        cross_attention: true,
        drop_path: 0.0,
        cross_from_first_sample: first_sample,
        initialization: Initialization { std: -1.0, head: 0.02, aln: 0.5, aln_gamma: 5e-5 },
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

fn text(fixture: &Fixture, inputs: &Tensors, prefix: &str) -> Option<TextStates> {
    let names =
        ["encoder_hidden_states", "encoder_attention_mask", "pooled"].map(|name| format!("{prefix}{name}"));
    let [states, mask, pooled] = all_of(fixture, inputs, names.each_ref().map(String::as_str))?;
    Some(TextStates { states: states.clone(), mask: mask.clone(), pooled: pooled.clone() })
}

/// Compares all gradients, full or digested, whichever the fixture holds.
fn compare_gradients(fixture: &Fixture, what: &str, parameters: &Parameters, gradients: &[Option<Tensor>]) {
    let full = fixture.folder.join("grads.safetensors");
    let full = if full.exists() { read_tensors(&full) } else { Tensors::new() };
    let digests = &fixture.manifest["grad_digest"];
    let (mut worst, mut untold) = (0.0f64, Vec::new());
    for (id, name, _) in parameters.iter() {
        let found = gradients[id.0].as_ref().unwrap_or_else(|| panic!("{name} has no gradient"));
        let error = match (full.get(name), digests.get(name)) {
            (Some(expected), _) => relative_error(found, expected),
            (None, Some(digest)) => digest_error(found, digest),
            (None, None) => {
                untold.push(name);
                continue;
            }
        };
        worst = worst.max(error);
    }
    if let Some(first) = untold.first() {
        lacks(fixture, &format!("{} of {} {what}, the first of {first}", untold.len(), parameters.len()));
    }
    if untold.len() < parameters.len() {
        report(fixture, what, worst, tolerance::PARITY_GRADIENT);
    }
}

#[test]
fn proxy_matches_the_released_code() {
    for fixture in fixtures("proxy") {
        let [Some(weights), Some(inputs), Some(outputs)] =
            ["weights", "inputs", "outputs"].map(|file| tensors(&fixture, &format!("{file}.safetensors")))
        else {
            continue;
        };
        let Some([x]) = all_of(&fixture, &inputs, ["x_BLCv_wo_first_l"]) else { continue };
        let Some([codes]) = all_of(&fixture, &outputs, ["gt_BL"]) else { continue };
        let Some(text) = text(&fixture, &inputs, "") else { continue };
        let (x, text, codes) = (&near(x), text_near(&text), &near(codes));
        for first_sample in [true, false] {
            let (proxy, mut parameters) =
                Proxy::new(&backbone(&fixture, &weights, first_sample), DType::F32, 0).unwrap();
            load(&mut parameters, &weights);
            let parameters = parameters_near(parameters);
            let (prefix, kind) = if first_sample { ("", "released") } else { ("fixedcross_", "default") };
            let mut tape = Tape::new(&parameters);
            let logits = proxy.logits(&mut tape, x, &text, Mode::Evaluate).unwrap();
            let what = format!("logits, {kind} cross-attention");
            let expected = outputs.get(&format!("{prefix}logits"));
            compare(&fixture, &what, logits.value(), expected, tolerance::PARITY_FORWARD);
            let mut tape = Tape::new(&parameters);
            let loss = proxy.loss(&mut tape, x, &text, codes, 0.0, Mode::Evaluate).unwrap();
            let what = format!("loss per sample, {kind} cross-attention");
            let expected = outputs.get(&format!("{prefix}loss_per_sample"));
            compare(&fixture, &what, loss.sample_loss.value(), expected, tolerance::PARITY_FORWARD);
            if !first_sample {
                continue;
            }
            let expected = outputs.get("loss_per_token");
            compare(&fixture, "loss per token", &loss.token_loss, expected, tolerance::PARITY_FORWARD);
            let batch = codes.dim(0);
            let mut visitor = Accumulate::default();
            let seeds = Tensor::new(&[batch], vec![1.0 / batch as f32; batch]).unwrap();
            tape.backward(vec![(&loss.sample_loss, near(&seeds))], &[], &mut visitor).unwrap();
            compare_gradients(&fixture, "gradients of the mean loss", &parameters, &visitor.gradients);
            let mut tape = Tape::inference(&parameters);
            let loss = proxy.loss(&mut tape, x, &text, codes, 0.1, Mode::Evaluate).unwrap();
            let (what, limit) = ("loss per token, smoothing 0.1", tolerance::PARITY_FORWARD);
            let expected = outputs.get("loss_per_token_label_smooth_0p1");
            compare(&fixture, what, &loss.token_loss, expected, limit);
        }
    }
}

#[test]
fn rater_matches_the_released_code() {
    for fixture in fixtures("rater_").into_iter().filter(|fixture| !fixture.name().starts_with("rater_train"))
    {
        let [Some(weights), Some(inputs), Some(outputs)] =
            ["weights", "inputs", "outputs"].map(|file| tensors(&fixture, &format!("{file}.safetensors")))
        else {
            continue;
        };
        let Some([x]) = all_of(&fixture, &inputs, ["x_BLCv_wo_first_l"]) else { continue };
        let Some(text) = text(&fixture, &inputs, "") else { continue };
        let (x, text) = (&near(x), text_near(&text));
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
                let expected = outputs.get(&format!("{prefix}{what}"));
                let what = format!("{what}, {kind} cross-attention");
                compare(&fixture, &what, found.value(), expected, tolerance::PARITY_FORWARD);
            }
            if !first_sample {
                continue;
            }
            let expected = outputs.get("rating_weight_softmax");
            compare(&fixture, "weights", rated.weight.value(), expected, tolerance::PARITY_FORWARD);
            let Some([seed]) = all_of(&fixture, &outputs, ["grad_vector"]) else { continue };
            let mut visitor = Accumulate::default();
            tape.backward(vec![(&rated.score, near(seed))], &[], &mut visitor).unwrap();
            compare_gradients(&fixture, "gradients of the score", &parameters, &visitor.gradients);
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
