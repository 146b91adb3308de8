//! Checkpoints that the released code wrote, tensor for tensor.

use alchemist_engine::weights::{Value, Weights};

use super::{digest_error, fixtures, report, tolerance};
use crate::common::Fixture;

/// The only checkpoint of a fixture.
fn checkpoint(fixture: &Fixture) -> Weights {
    let files = std::fs::read_dir(&fixture.folder).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "pth")).collect();
    assert_eq!(found.len(), 1, "{} has one checkpoint", fixture.name());
    Weights::open(&found[0]).unwrap()
}

/// Every tensor of `digests` (name to digest) against the file, which holds no others.
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
    assert_eq!(weights.len(), count, "{} holds as many tensors as its manifest", fixture.name());
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
        other => panic!("no configuration holds {other}"),
    }
}

#[test]
fn the_raters_checkpoint() {
    for fixture in fixtures("ar_ckpt") {
        let checkpoint = checkpoint(&fixture);
        let rater = checkpoint.within("trainer.varRater_wo_ddp").without_module();
        let tensors = fixture.manifest["rater_tensors"].as_object().unwrap();
        for (name, expected) in tensors {
            let entry = rater.entry(name).unwrap_or_else(|| panic!("the checkpoint lacks {name}"));
            assert_eq!(serde_json::json!(entry.shape), expected["shape"], "{name}");
        }
        compare(&fixture, &rater, tensors.iter().map(|(name, expected)| (name, &expected["digest"])));
        let configuration = checkpoint.within("trainer.config");
        for (key, expected) in fixture.manifest["trainer_config"].as_object().unwrap() {
            assert_eq!(configuration.value(key).map(json).as_ref(), Some(expected), "trainer.config.{key}");
        }
        for key in ["epoch", "iter"] {
            assert!(matches!(checkpoint.value(key), Some(Value::Int(0..))), "{key} is a count");
        }
    }
}

#[test]
fn the_image_tokenizers_shared_storages() {
    for fixture in fixtures("vqvae_tiny") {
        let weights = checkpoint(&fixture).without_module();
        let digests = fixture.manifest["weight_digest"].as_object().unwrap();
        assert_eq!(Some(digests.len() as u64), fixture.manifest["n_tensors"].as_u64());
        compare(&fixture, &weights, digests.iter());
    }
}
