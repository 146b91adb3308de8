//! Checkpoints that the released code wrote, tensor for tensor.

use std::path::PathBuf;

use alchemist_engine::weights::{Value, Weights};

use super::{digest_error, fixtures, lacks, report, tolerance};
use crate::common::Fixture;

/// The checkpoint of a fixture: the one that its manifest names, or the only one; `None`, which is said, if there is none.
pub(super) fn file(fixture: &Fixture) -> Option<PathBuf> {
    let files = std::fs::read_dir(&fixture.folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "pth")).collect();
    if let Some(named) = fixture.manifest["pth"].as_str() {
        found = vec![fixture.folder.join(named)];
    }
    match &found[..] {
        [file] if file.exists() => Some(file.clone()),
        files => {
            lacks(fixture, &format!("one checkpoint, but has {}", files.len()));
            None
        }
    }
}

/// Every tensor of `digests` (name to digest) against the file, which contains no others.
fn compare<'a>(
    fixture: &Fixture,
    weights: &Weights,
    digests: impl Iterator<Item = (&'a String, &'a serde_json::Value)>,
) {
    let (mut worst, mut count) = (0.0f64, 0);
    for (name, digest) in digests {
        let tensor = weights.read(name).unwrap();
        worst = worst.max(digest_error(&tensor, digest));
        count += 1;
    }
    assert_eq!(weights.len(), count, "{} contains as many tensors as its manifest", fixture.name());
    report(fixture, &format!("{count} tensors of the checkpoint"), worst, tolerance::PARITY_WEIGHTS);
}

/// A value as the manifest, which is JSON, has it.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::None => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.to_string().into(),
        Value::List(items) | Value::Tuple(items) => items.iter().map(json).collect(),
        other => panic!("no configuration contains {other}"),
    }
}

#[test]
fn the_raters_checkpoint() {
    for fixture in fixtures("ar_ckpt") {
        let Some(file) = file(&fixture) else { continue };
        let checkpoint = Weights::open(&file).unwrap();
        for (key, prefix) in [("rater_tensors", "varRater_wo_ddp"), ("proxy_tensors", "var_wo_ddp")] {
            let network = checkpoint.within(&format!("trainer.{prefix}")).without_module();
            let Some(tensors) = fixture.manifest[key].as_object() else {
                // A proxy may be there or not, and be told of or not.
                if key == "rater_tensors" {
                    lacks(&fixture, key);
                }
                continue;
            };
            for (name, expected) in tensors {
                let entry = network.entry(name).unwrap_or_else(|| panic!("the checkpoint lacks {name}"));
                assert_eq!(serde_json::json!(entry.shape), expected["shape"], "{name}");
            }
            compare(&fixture, &network, tensors.iter().map(|(name, expected)| (name, &expected["digest"])));
        }
        let configuration = checkpoint.within("trainer.config");
        match fixture.manifest["trainer_config"].as_object() {
            None => lacks(&fixture, "trainer_config"),
            Some(expected) => {
                for (key, expected) in expected {
                    let found = configuration.value(key).map(json);
                    assert_eq!(found.as_ref(), Some(expected), "trainer.config.{key}");
                }
            }
        }
        for key in ["epoch", "iter"] {
            assert!(matches!(checkpoint.value(key), Some(Value::Int(0..))), "{key} is a count");
        }
    }
}

#[test]
fn the_image_tokenizers_shared_storages() {
    for fixture in fixtures("vqvae") {
        let Some(file) = file(&fixture) else { continue };
        let weights = Weights::open(&file).unwrap().without_module();
        let Some(digests) = fixture.manifest["weight_digest"].as_object() else {
            lacks(&fixture, "weight_digest");
            continue;
        };
        if let Some(count) = fixture.manifest["n_tensors"].as_u64() {
            assert_eq!(digests.len() as u64, count);
        }
        compare(&fixture, &weights, digests.iter());
    }
}
