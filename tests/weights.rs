//! Weights in files: what PyTorch wrote is read bit for bit, what is written reads back, and hostile files are refused.

#[path = "weights/forged.rs"]
mod forged;
#[path = "weights/hostile.rs"]
mod hostile;
#[path = "weights/round_trips.rs"]
mod round_trips;

use std::{
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    engine::DType,
    weights::{NumberKind, Weights, write_safetensors},
};
use proptest::prelude::*;
use serde_json::Value as Json;

/// The folder of checkpoints that tests/fixtures_made/make.py made with PyTorch.
pub fn made() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures_made")
}

/// What is in them: file, and name, shape, kind and bytes of every tensor.
pub fn expected() -> serde_json::Map<String, Json> {
    let text = fs::read_to_string(made().join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// All tensors as little-endian bytes, by way of a safetensors file and the format's own reader.
pub fn contents(weights: &Weights) -> Json {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.safetensors");
    write_safetensors(&path, &weights.payloads().unwrap(), &[]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let described = weights.entries().map(|(name, entry)| {
        let bytes = alchemist_engine::files::hexadecimal(file.tensor(name).unwrap().data());
        (
            name.to_owned(),
            serde_json::json!({"shape": entry.shape, "kind": entry.kind.name(), "bytes": bytes}),
        )
    });
    Json::Object(described.collect())
}

/// Whether two contents are the same, tensor by tensor so that a failure names one.
#[track_caller]
pub fn assert_same(found: &Json, expected: &Json, file: &str) {
    let (found, expected) = (found.as_object().unwrap(), expected.as_object().unwrap());
    for (name, tensor) in expected {
        assert_eq!(found.get(name), Some(tensor), "{file}: {name}");
    }
    assert_eq!(found.len(), expected.len(), "{file}: the number of tensors");
}

#[test]
fn checkpoints_of_pytorch_are_read_bit_for_bit() {
    for (file, expected) in expected() {
        let weights = Weights::open(&made().join(&file)).unwrap();
        assert_same(&contents(&weights), &expected, &file);
    }
}

#[test]
fn numbers_and_texts_are_kept_by_name() {
    for file in ["nested_zip.pth", "nested_legacy.pth", "protocol4_zip.pth"] {
        let weights = Weights::open(&made().join(file)).unwrap();
        let value = |name: &str| weights.value(name).map(ToString::to_string);
        let expected = [
            ("epoch", "3"),
            ("best", "12.25"),
            ("name", "\"größe\""),
            ("done", "False"),
            ("nothing", "None"),
            ("huge", "\"0x400000000000000000\""),
            ("trainer.config.patch_nums", "(1, 2, 3)"),
            ("trainer.config.resos", "[16, 32]"),
            ("trainer.config.empty", "{}"),
            ("trainer.config.shape", "(2, 3)"),
            ("trainer.config.kind", "\"torch.float16\""),
            ("trainer.counts.a", "2"),
            ("trainer.parts.2.1", "\"text\""),
        ];
        for (name, is) in expected {
            assert_eq!(value(name).as_deref(), Some(is), "{file}: {name}");
        }
        assert_eq!(value("trainer"), None);
        let config = weights.within("trainer.config");
        assert!(config.is_empty() && config.value("patch_nums").is_some());
    }
}

#[test]
fn numbers_are_read_as_this_program_computes() {
    let weights = Weights::open(&made().join("kinds_zip.pth")).unwrap();
    for (name, entry) in weights.entries() {
        let read = weights.read(name);
        match entry.kind {
            NumberKind::F8E4M3 | NumberKind::F8E5M2 | NumberKind::Complex64 => {
                assert!(read.unwrap_err().to_string().contains(name));
            }
            kind if kind.is_float() => assert_eq!(read.unwrap().dtype(), DType::F32),
            NumberKind::I8 | NumberKind::I16 | NumberKind::I32 | NumberKind::I64 => match read {
                Ok(tensor) => assert_eq!(tensor.dtype(), DType::U32),
                Err(error) => assert!(error.to_string().contains("contains -"), "{error}"),
            },
            _ => assert_eq!(read.unwrap().dtype(), DType::U32),
        }
    }
    assert_eq!(weights.read("bool").unwrap().as_slice::<u32>().unwrap(), [1, 0, 1, 0, 0, 1]);
    let views = Weights::open(&made().join("views_legacy.pth")).unwrap();
    assert_eq!(views.read("part").unwrap().as_slice::<f32>().unwrap()[..4], [25.0, 27.0, 29.0, 30.0]);
    assert_eq!(views.read("one").unwrap().shape(), [0usize; 0]);
    assert_eq!(views.read("none").unwrap().shape(), [0, 4, 5]);
    let error = views.read("bases").unwrap_err().to_string();
    assert!(error.contains("no tensor bases") && error.contains("nearest name is base"), "{error}");
}

#[test]
fn the_wrapper_of_parallel_training_is_taken_off() {
    let weights = Weights::open(&made().join("module_zip.pth")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["module.weight", "module.bias"]);
    let plain = weights.without_module();
    assert_eq!(plain.names().collect::<Vec<_>>(), ["weight", "bias"]);
    assert_eq!(plain.without_module().len(), 2);
    let trained = Weights::open(&made().join("trained_zip.pth")).unwrap();
    assert!(trained.without_module().contains("model.module.0.weight"));
    assert!(trained.within("model").without_module().contains("0.weight"));
    assert!(trained.within("mod").is_empty());
}

#[test]
fn differences_have_the_nearest_names() {
    let weights = Weights::open(&made().join("module_zip.pth")).unwrap().without_module();
    let expected = |list: &[(&str, &[usize])]| {
        weights.compare(list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())))
    };
    assert!(expected(&[("weight", &[2, 2]), ("bias", &[2])]).is_empty());
    let differences = expected(&[("weights", &[2, 2]), ("bias", &[3]), ("scale", &[])]);
    assert_eq!(
        differences.to_string(),
        "2 missing: scale, weights (perhaps weight); 1 surplus: weight (perhaps weights); 1 of another shape: bias is [2] \
         instead of [3]"
    );
}

#[test]
fn a_folder_is_searched_for_the_usual_names() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(made().join("module_zip.pth"), folder.path().join("odd.bin")).unwrap();
    assert_eq!(Weights::open(folder.path()).unwrap().len(), 2);
    fs::copy(made().join("views_zip.pth"), folder.path().join("pytorch_model.bin")).unwrap();
    assert!(Weights::open(folder.path()).unwrap().contains("turned"));
    let index = serde_json::json!({"weight_map": {"base": "pytorch_model.bin", "module.bias": "odd.bin"}});
    let path = folder.path().join("pytorch_model.bin.index.json");
    fs::write(&path, index.to_string()).unwrap();
    assert_eq!(Weights::open(&path).unwrap().names().collect::<Vec<_>>(), ["module.bias", "base"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A changed file is read or refused, whatever is changed.
    #[test]
    fn damage_never_panics(
        seed in 0usize..12,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut files: Vec<_> = expected().into_iter().map(|(file, _)| file).collect();
        files.sort();
        let mut bytes = fs::read(made().join(&files[seed % files.len()])).unwrap();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.pth");
        fs::write(&path, bytes).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            for name in weights.names() {
                let _ = weights.read(name);
            }
        }
    }
}
