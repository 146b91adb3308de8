//! Weights as people have them: every file gives what `torch.load` gives, or is refused by name. make_weights.py made files and
//! expectations.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::{
    encode::tokenizers::TextTokenizer,
    weights::{Value, Weights, write_safetensors},
};
use serde_json::{Value as Json, json};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/weights").join(name)
}

fn read_json(name: &str) -> Json {
    serde_json::from_slice(&fs::read(file(name)).unwrap()).unwrap()
}

/// All tensors as little-endian bytes, by way of a safetensors file and the format's own reader.
fn contents(weights: &Weights) -> Json {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.safetensors");
    let payloads =
        weights.names().map(|name| (name.to_owned(), weights.payload(name).unwrap())).collect::<Vec<_>>();
    write_safetensors(&path, &payloads, &[]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let described = weights.entries().map(|(name, entry)| {
        let bytes = alchemist_engine::files::hexadecimal(file.tensor(name).unwrap().data());
        (name.to_owned(), json!({"shape": entry.shape, "kind": entry.kind.name(), "bytes": bytes}))
    });
    Json::Object(described.collect())
}

fn open(name: &str) -> Weights {
    Weights::open(&file(name)).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn program(folder: &Path, arguments: &[&str], succeeds: bool) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(output.status.success(), succeeds, "{arguments:?}: {said}");
    said
}

/// Bit for bit, whatever else is in the file, in either form and every protocol.
#[test]
fn every_file_gives_the_tensors_that_pytorch_gives() {
    let expected = read_json("expected.json");
    let expected = expected.as_object().unwrap();
    assert!(expected.len() > 30);
    for (name, tensors) in expected {
        let found = contents(&open(name));
        for (tensor, is) in tensors.as_object().unwrap() {
            assert_eq!(found.get(tensor), Some(is), "{name}: {tensor}");
        }
        assert_eq!(found.as_object().unwrap().len(), tensors.as_object().unwrap().len(), "{name}: {found:#}");
    }
}

/// Floats that are read are those that are written elsewhere: a lazily negated tensor has its sign in both.
#[test]
fn lazy_signs_are_in_the_floats_that_are_read() {
    let weights = open("reported/neg_neg.pth");
    let found = weights.read("n").unwrap();
    for (found, expected) in found.as_slice::<f32>().unwrap().iter().zip([0.2075f32, -0.4019, 0.9890]) {
        assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
    }
    let error = open("reported/neg_conj.pth").read("c").unwrap_err().to_string();
    assert!(error.contains("tensor c has the unsupported dtype complex64"), "{error}");
    let expected = read_json("expected.json");
    for (name, of) in expected["signs.pth"].as_object().unwrap() {
        if of["kind"] == "f32" {
            let read = open("signs.pth").read(name).unwrap();
            let bytes: Vec<u8> =
                read.as_slice::<f32>().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(json!(alchemist_engine::files::hexadecimal(&bytes)), of["bytes"], "{name}");
        }
    }
}

/// Objects are there by the names of their classes, and nothing of them is made.
#[test]
fn objects_beside_tensors_are_opaque() {
    for name in ["objects.pth", "objects_legacy_4.pth"] {
        let weights = open(name);
        for (key, class) in [
            ("args", "argparse.Namespace"),
            ("numpy_scalar", "numpy._core.multiarray.scalar"),
            ("numpy_array", "numpy._core.multiarray._reconstruct"),
            ("numpy_dtype", "numpy.dtype"),
            ("datetime", "datetime.datetime"),
            ("enum", "__main__.Color"),
            ("settings", "__main__.Settings"),
            ("class", "__main__.Settings"),
            ("partial", "functools.partial"),
            ("layout", "torch.serialization._get_layout"),
        ] {
            let Some(Value::Object(found)) = weights.value(key) else {
                panic!("{name}: {key} is {:?}", weights.value(key))
            };
            assert_eq!(&**found, class, "{name}: {key}");
        }
        for (key, is) in
            [("size", "(2, 3)"), ("kind", "\"torch.float16\""), ("device", "\"cpu\""), ("counter.a", "2")]
        {
            assert_eq!(weights.value(key).map(ToString::to_string).as_deref(), Some(is), "{name}: {key}");
        }
        // What is asked for and lies in one is refused, and the object named.
        let error = weights.read("args.weight").unwrap_err().to_string();
        assert!(error.contains("args is an object of argparse.Namespace"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let said = program(folder.path(), &["inspect", file("objects.pth").to_str().unwrap()], true);
    assert!(said.contains("<argparse.Namespace>") && said.contains("model.a.weight"), "{said}");
    program(folder.path(), &["convert", file("objects.pth").to_str().unwrap(), "out.safetensors"], true);
    let copy = contents(&Weights::open(&folder.path().join("out.safetensors")).unwrap());
    assert_eq!(copy, read_json("expected.json")["objects.pth"]);
}

/// Tensors of forms that are not read are in nobody's way, but never left out silently.
#[test]
fn tensors_of_other_forms_are_refused_when_they_are_asked_for() {
    for name in ["unread.pth", "unread_legacy.pth"] {
        let weights = open(name);
        assert!(weights.read("model.a.weight").is_ok());
        for (tensor, class) in
            [("sparse", "_rebuild_sparse_tensor"), ("wide", "128-bit"), ("quantized", "_rebuild_qtensor")]
        {
            let error = weights.read(tensor).unwrap_err().to_string();
            assert!(error.contains(&format!("tensor {tensor} has an unsupported layout")), "{error}");
            assert!(error.contains(class), "{error}");
        }
        let error = weights.payloads().unwrap_err().to_string();
        assert!(error.contains("an unsupported layout"), "{error}");
        assert!(weights.within("model").payloads().is_ok());
    }
    let error = Weights::open(&file("whole_module.pth")).unwrap_err().to_string();
    for part in
        ["whole_module.pth", "one object of __main__.Net", "nothing of it was run", "model.state_dict()"]
    {
        assert!(error.contains(part), "{error}");
    }
}

/// A network is found below the names that training programs give it, under its own.
#[test]
fn networks_are_found_within_their_wrappers() {
    let expected = &read_json("expected.json")["wrapped_plain.pth"];
    let names: Vec<String> = read_json("expected.json").as_object().unwrap().keys().cloned().collect();
    let wrapped: Vec<_> = names.iter().filter(|name| name.starts_with("wrapped_")).collect();
    assert_eq!(wrapped.len(), 12);
    for name in wrapped {
        assert_eq!(&contents(&open(name).network(&["a.weight"])), expected, "{name}");
    }
    for name in ["reported/prefix__orig_mod-.pth", "reported/prefix_module-_orig_mod-.pth"] {
        let weights = open(name);
        assert!(weights.names().all(|name| name.contains("_orig_mod.")), "names are shown as they are");
        assert_eq!(weights.without_module().names().collect::<Vec<_>>(), ["a.weight", "a.bias", "b.weight"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let source = file("wrapped_parallel_compiled.pth");
    program(folder.path(), &["convert", source.to_str().unwrap(), "out.pth", "--without-module"], true);
    assert_eq!(&contents(&Weights::open(&folder.path().join("out.pth")).unwrap()), expected);
    // Without a mark nothing is guessed.
    assert!(open("wrapped_model.pth").network(&["other"]).contains("model.a.weight"));
}

/// The files of a variant, as Hugging Face's libraries name them.
#[test]
fn variants_are_found_in_folders() {
    let plain = open("wrapped_plain.pth");
    let expected = contents(&plain);
    let write = |path: &Path| write_safetensors(path, &plain.payloads().unwrap(), &[]).unwrap();
    for (index, shard) in [
        ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(shard));
        let map: serde_json::Map<String, Json> =
            plain.names().map(|name| (name.to_owned(), json!(shard))).collect();
        fs::write(folder.path().join(index), json!({"weight_map": map}).to_string()).unwrap();
        assert_eq!(contents(&Weights::open(folder.path()).unwrap()), expected, "{index}");
    }
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.bf16.safetensors"));
    write(&folder.path().join("other.safetensors"));
    assert_eq!(contents(&Weights::open(folder.path()).unwrap()), expected);
    write(&folder.path().join("model.fp16.safetensors"));
    let error = Weights::open(folder.path()).unwrap_err().to_string();
    for part in
        ["several variants", "model.bf16.safetensors", "model.fp16.safetensors", "pass the file itself"]
    {
        assert!(error.contains(part), "{error}");
    }
    // One without a variant comes first.
    fs::write(folder.path().join("model.safetensors"), "").unwrap();
    assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("empty"));
}

/// `spiece.model` alone gives the ids of transformers' fast tokenizer.
#[test]
fn t5_pieces_are_those_of_transformers() {
    let expected = read_json("t5/expected.json");
    let texts: Vec<&str> =
        expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    const LENGTH: usize = 256;
    for (case, of) in expected["cases"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(file("t5/spiece.model"), folder.path().join("spiece.model")).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), of["settings"].to_string()).unwrap();
        let words = TextTokenizer::t5(folder.path(), LENGTH).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(json!(words.largest_id() + 1), of["vocabulary"], "{case}");
        let found = words.encode(&texts).unwrap();
        let (ids, mask) = (found.ids.as_slice::<u32>().unwrap(), found.mask.as_slice::<u32>().unwrap());
        for (at, text) in texts.iter().enumerate() {
            let row = at * LENGTH..(at + 1) * LENGTH;
            let length = mask[row.clone()].iter().sum::<u32>() as usize;
            assert_eq!(json!(ids[row.clone()][..length]), of["ids"][at], "{case}: {text:?}");
            assert!(ids[row][length..].iter().all(|&id| id == 0), "padding is <pad>");
        }
    }
}

/// A `spiece.model` that is changed or cut anywhere is read or refused.
#[test]
fn damaged_pieces_never_panic() {
    let whole = fs::read(file("t5/spiece.model")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    let mut refused = 0;
    let mut check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match TextTokenizer::t5(folder.path(), 16) {
            Ok(words) => drop(words.encode(&["a dog", "e\u{301} ™ ﷺ"])),
            Err(error) => {
                assert!(
                    error.to_string().contains("spiece.model") || error.to_string().contains("vocabulary"),
                    "{error}"
                );
                refused += 1;
            }
        }
    };
    for at in (0..whole.len()).step_by(5) {
        check(&whole[..at]);
        for value in [0, 0xff, whole[at] ^ 0x10] {
            let mut changed = whole.clone();
            changed[at] = value;
            check(&changed);
        }
    }
    assert!(refused > 100, "{refused}");
    for (content, what) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"[..], "a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"", "not a SentencePiece model"),
    ] {
        fs::write(&path, content).unwrap();
        let error = TextTokenizer::t5(folder.path(), 16).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}
