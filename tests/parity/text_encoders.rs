//! CLIP's and T5's states and vectors, and CLIP's token ids.

use std::path::{Path, PathBuf};

use alchemist_engine::{
    encode::{
        pretrained::{
            TextNetwork,
            clip::ClipText,
            t5::{Pooling, T5Text},
        },
        tokenizers::TextTokenizer,
    },
    engine::Tensor,
};
use serde_json::Value;

use super::{
    all_of,
    common::{open_device, tolerance},
    compare, fixture_root, fixtures, named_root, tensors,
};

fn sample(at: usize) -> String {
    format!("sample {at}")
}

/// The network where `ALCHEMIST_DEVICE` says, on a device of its own: on the one that tests share, others record their work.
fn placed(network: impl TextNetwork + 'static) -> Box<dyn TextNetwork> {
    match open_device() {
        None => Box::new(network),
        Some(device) => Box::new(network).to_device(&device).unwrap(),
    }
}

#[test]
fn clip_matches_the_released_code() {
    for fixture in fixtures("clip_text") {
        let clip = placed(ClipText::open(&fixture.folder).unwrap());
        let Some(io) = tensors(&fixture, "io.safetensors") else { continue };
        let Some([ids, mask]) = all_of(&fixture, &io, ["input_ids", "attention_mask"]) else { continue };
        for (mask, suffix) in [(Some(mask), ""), (None, "_nomask")] {
            let found = clip.states(ids, mask, &sample).unwrap();
            for (name, found) in [("last_hidden_state", &found.states), ("pooler_output", &found.pooled)] {
                let name = format!("{name}{suffix}");
                compare(&fixture, &name, found, io.get(&name), tolerance::PARITY_FORWARD);
            }
        }
    }
}

#[test]
fn t5_matches_the_released_code() {
    for fixture in fixtures("t5") {
        let Some(io) = tensors(&fixture, "io.safetensors") else { continue };
        let names = ["input_ids", "attention_mask", "last_hidden_state"];
        let Some([ids, mask, states]) = all_of(&fixture, &io, names) else { continue };
        for (pooling, what, expected) in [
            (Pooling::Everything, "pooled_upstream_avgpool", io.get("pooled_upstream_avgpool").cloned()),
            (Pooling::Tokens, "the mean over tokens", Some(mean_over_tokens(states, mask))),
        ] {
            let t5 = placed(T5Text::open(&fixture.folder, pooling).unwrap());
            let found = t5.states(ids, Some(mask), &sample).unwrap();
            let limit = tolerance::PARITY_FORWARD;
            compare(&fixture, "last_hidden_state", &found.states, Some(states), limit);
            compare(&fixture, what, &found.pooled, expected.as_ref(), limit);
        }
    }
}

fn mean_over_tokens(states: &Tensor, mask: &Tensor) -> Tensor {
    let [batch, tokens, channels] = [0, 1, 2].map(|at| states.dim(at));
    let (states, mask) = (states.to_f64_vec().unwrap(), mask.to_f64_vec().unwrap());
    let mean = |sample: usize, channel: usize| {
        let weighted = |at: usize| mask[at] * states[at * channels + channel];
        let places = sample * tokens..(sample + 1) * tokens;
        places.clone().map(weighted).sum::<f64>() / mask[places].iter().sum::<f64>()
    };
    let means = (0..batch).flat_map(|sample| (0..channels).map(move |channel| (sample, channel)));
    Tensor::new(&[batch, channels], means.map(|(sample, channel)| mean(sample, channel)).collect()).unwrap()
}

/// Folders of a vocabulary with expected ids: `clip_tokenizer*` with an `expected.json`, which stands for the manifest.
fn tokenizers() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let is_tokenizer = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("clip_tokenizer");
        if folder.file_name().is_some_and(is_tokenizer) && folder.join("expected.json").exists() {
            found.push(folder.to_path_buf());
            return;
        }
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            walk(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    walk(&fixture_root(), &mut found);
    found.sort();
    assert!(!found.is_empty() || named_root().is_some(), "no tokenizer in {}", fixture_root().display());
    found
}

#[test]
fn clip_cuts_captions_like_the_released_tokenizer() {
    for folder in tokenizers() {
        let expected: Value = read_json(&folder.join("expected.json"));
        let vocabulary: Value = read_json(&folder.join("vocab.json"));
        let prompts: Vec<&str> =
            expected["prompts"].as_array().unwrap().iter().map(|prompt| prompt.as_str().unwrap()).collect();
        let cases = expected.as_object().unwrap().iter().filter(|(_, case)| case["input_ids"].is_array());
        let (mut compared, mut wrong) = (0, Vec::new());
        for (case, of) in cases {
            let length = of["input_ids"][0].as_array().unwrap().len();
            let with_id = |id: &Value| {
                let named = vocabulary.as_object().unwrap().iter().find(|(_, other)| *other == id);
                named.expect("the id is in the vocabulary").0.clone()
            };
            let work = tempfile::tempdir().unwrap();
            for file in ["vocab.json", "merges.txt"] {
                std::fs::copy(folder.join(file), work.path().join(file)).unwrap();
            }
            let special = serde_json::json!({"pad_token": with_id(&of["pad_token_id"])});
            std::fs::write(work.path().join("special_tokens_map.json"), special.to_string()).unwrap();
            let pieces = TextTokenizer::clip(work.path(), Some(length), length).unwrap();
            let found = pieces.encode(&prompts).unwrap();
            let rows = |tensor: &Tensor| -> Vec<Vec<u32>> {
                tensor.as_slice::<u32>().unwrap().chunks(length).map(<[u32]>::to_vec).collect()
            };
            let (ids, mask) = (rows(&found.ids), rows(&found.mask));
            let expected = |name: &str, at: usize| -> Vec<u32> {
                let row = of[name][at].as_array().expect("a row of ids");
                row.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
            };
            for (at, prompt) in prompts.iter().enumerate() {
                if ids[at] != expected("input_ids", at) || mask[at] != expected("attention_mask", at) {
                    wrong.push(format!(
                        "{case}: {prompt:?}: {:?}, not {:?}",
                        ids[at],
                        expected("input_ids", at)
                    ));
                }
                compared += 1;
            }
        }
        let name = folder.file_name().unwrap().to_string_lossy();
        assert!(wrong.is_empty(), "{name}: {} of {compared}: {wrong:#?}", wrong.len());
        println!("parity {name:<24} {compared} captions have the released ids");
        assert!(compared > 0, "{name} contains no ids");
    }
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("a fixture is JSON")
}
