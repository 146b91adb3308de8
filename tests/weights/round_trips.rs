//! From each form of file into each other one and back, bit for bit.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use alchemist_engine::{
    engine::Tensor,
    weights::{NumberKind, Payload, Value, Weights, write_safetensors, write_torch},
};
use half::{bf16, f16};

use super::{assert_same, contents, expected, made};

const PROGRAM: &str = env!("CARGO_BIN_EXE_alchemist-engine");

fn program(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).current_dir(folder).args(arguments).output().unwrap()
}

#[track_caller]
fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = program(folder, arguments);
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, arguments: &[&str], says: &str) {
    let Output { status, stderr, .. } = program(folder, arguments);
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && stderr.contains(says), "{arguments:?}: {stderr}");
}

#[test]
fn every_form_becomes_every_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (file, expected) in expected() {
        let source = made().join(&file);
        let source = source.to_str().unwrap();
        for target in ["one.safetensors", "one.pth"] {
            succeeds(folder, &["convert", source, target, "--overwrite"]);
            assert_same(&contents(&Weights::open(&folder.join(target)).unwrap()), &expected, &file);
        }
        succeeds(folder, &["convert", "one.safetensors", "two.pth", "--overwrite"]);
        assert_same(&contents(&Weights::open(&folder.join("two.pth")).unwrap()), &expected, &file);
        assert!(fs::read(folder.join("one.pth")).unwrap().starts_with(b"PK"));
    }
}

#[test]
fn shards_hold_all_and_have_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let source = made().join("views_zip.pth");
    let said =
        succeeds(folder, &["convert", source.to_str().unwrap(), "model.safetensors", "--shard-size", "500B"]);
    assert!(said.contains("model-00001-of-0000") && said.contains("model.safetensors.index.json"), "{said}");
    assert!(!folder.join("model.safetensors").exists());
    let expected = &expected()["views_zip.pth"];
    let index = folder.join("model.safetensors.index.json");
    for place in [&index, folder] {
        assert_same(&contents(&Weights::open(place).unwrap()), expected, "shards");
    }
    succeeds(folder, &["convert", ".", "whole.pth"]);
    assert_same(&contents(&Weights::open(&folder.join("whole.pth")).unwrap()), expected, "whole.pth");
    for shard in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = shard.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.starts_with('.') || name.ends_with(".alchemist.json"), "{name} is left over");
        if name.starts_with("model-") {
            let held = Weights::open(&shard).unwrap();
            assert!(held.len() == 1 || held.entries().map(|(_, entry)| entry.bytes()).sum::<usize>() <= 500);
        }
    }
}

#[test]
fn tensors_that_an_index_does_not_name_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let one = Payload::from_tensor(&Tensor::new(&[2], vec![1.0f32, 2.0]).unwrap()).unwrap();
    for (shard, names) in [("1.safetensors", ["a", "b", "c"]), ("2.safetensors", ["a", "d", "e"])] {
        let tensors = names.map(|name| (name.to_owned(), one.clone()));
        write_safetensors(&folder.join(shard), &tensors, &[]).unwrap();
    }
    let inspected = |map: serde_json::Value| {
        let index = serde_json::json!({ "weight_map": map }).to_string();
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let Output { status, stdout, stderr } = program(folder, &["inspect", "."]);
        let errors = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{errors}");
        (String::from_utf8(stdout).unwrap(), errors)
    };
    let (first, second) = ("1.safetensors", "2.safetensors");
    let (said, errors) = inspected(serde_json::json!({"a": first, "c": first, "d": second}));
    let warning = "index.json does not name 2 of the tensors in its shards, the first of them b;";
    assert!(said.contains("3 tensors") && errors.contains(warning), "{said}{errors}");
    // What another shard gives is not missing.
    let (said, errors) =
        inspected(serde_json::json!({"a": first, "b": first, "c": first, "d": second, "e": second}));
    assert!(said.contains("5 tensors") && errors.is_empty(), "{said}{errors}");
}

#[test]
fn parts_are_taken_out_and_put_under_names() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let source = made().join("trained_zip.pth");
    let source = source.to_str().unwrap();
    let rater = ["--within", "model", "--without-module"];
    succeeds(
        folder,
        &[&["convert", source, "rater.pth", "--under", "trainer.varRater_wo_ddp"], &rater[..]].concat(),
    );
    let nested = Weights::open(&folder.join("rater.pth")).unwrap();
    assert!(nested.names().all(|name| name.starts_with("trainer.varRater_wo_ddp.")));
    let own = Weights::open(source.as_ref()).unwrap().within("model").without_module();
    assert_same(&contents(&nested.within("trainer.varRater_wo_ddp")), &contents(&own), "rater.pth");
    succeeds(folder, &[&["convert", source, "half.safetensors", "--dtype", "bf16"], &rater[..]].concat());
    let half = Weights::open(&folder.join("half.safetensors")).unwrap();
    for (name, entry) in half.entries() {
        let original = own.read(name).unwrap();
        if own.entry(name).unwrap().kind == NumberKind::I64 {
            assert_eq!(entry.kind, NumberKind::I64, "{name}");
            continue;
        }
        assert_eq!(entry.kind, NumberKind::Bf16, "{name}");
        let rounded: Vec<f32> =
            original.as_slice::<f32>().unwrap().iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
        assert_eq!(half.read(name).unwrap().as_slice::<f32>().unwrap(), rounded, "{name}");
    }
    fails(folder, &["convert", source, "rater.pth"], "--overwrite");
    fails(folder, &["convert", source, "rater.npz"], "must end in .safetensors");
    fails(
        folder,
        &["convert", source, "x.pth", "--within", "nothing"],
        "contains no tensors with the prefix `nothing`",
    );
    fails(folder, &["convert", source, "x.safetensors", "--under", "a"], "--under");
    fails(folder, &["convert", source, "x.pth", "--shard-size", "1GB"], "--shard-size");
    assert!(!folder.join("x.pth").exists());
}

#[test]
fn inspect_shows_tensors_values_and_differences() {
    let folder = tempfile::tempdir().unwrap();
    let source = made().join("nested_zip.pth");
    let source = source.to_str().unwrap();
    let said = succeeds(folder.path(), &["inspect", source]);
    for part in ["trainer.varRater_wo_ddp.blocks.0.weight  f32   [2, 2]     16", "5 tensors", "(1, 2, 3)"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    let said = succeeds(folder.path(), &["inspect", source, "--against", source]);
    assert_eq!(said, "names and shapes match\n");
    let within = ["--within", "trainer.varRater_wo_ddp.blocks.0", "--against-within", "trainer.parts"];
    let said = succeeds(folder.path(), &[&["inspect", source, "--against", source], &within[..]].concat());
    assert!(said.contains("missing     1.inner") && said.contains("surplus     weight"), "{said}");
}

/// A checkpoint in the released layout, of every kind of value.
fn released() -> Value {
    let held = |tensor: Tensor| Value::Tensor(Payload::from_tensor(&tensor).unwrap());
    let named = |name: &str, value: Value| (name.to_owned(), value);
    let many: Vec<_> = (0..2500).map(|at| named(&format!("many.{at}"), Value::Int(at))).collect();
    let state = vec![
        named(
            "weight",
            held(Tensor::new(&[2, 3], vec![1.5f32, -2.0, 0.0, f32::MAX, f32::MIN_POSITIVE, 3.0]).unwrap()),
        ),
        named("wide", held(Tensor::new(&[2], vec![1.0f64 / 3.0, -1e300]).unwrap())),
        named("half", held(Tensor::new(&[1, 1], vec![f16::from_f32(0.1)]).unwrap())),
        named("brain", held(Tensor::new(&[3], vec![bf16::from_f32(0.1); 3]).unwrap())),
        named("codes", held(Tensor::new(&[4], vec![0u32, 1, 1 << 31, u32::MAX]).unwrap())),
        named("one", held(Tensor::new(&[], vec![7.0f32]).unwrap())),
        named("none", held(Tensor::new(&[0, 2], Vec::<f32>::new()).unwrap())),
    ];
    let config = vec![
        named("patch_nums", Value::Tuple([1, 2, 3, 4].map(Value::Int).to_vec())),
        named("resos", Value::List(vec![Value::Int(-1), Value::Int(1 << 40), Value::Int(i64::MIN)])),
        named("label_smooth", Value::Float(0.1)),
        named("first_prog", Value::Bool(true)),
        named("name", Value::from("größe")),
        named("nothing", Value::None),
        named("counts", Value::Dict(many)),
    ];
    Value::Dict(vec![
        named("epoch", Value::Int(5)),
        named("iter", Value::Int(0)),
        named(
            "trainer",
            Value::Dict(vec![
                named("config", Value::Dict(config)),
                named("varRater_wo_ddp", Value::Ordered(state)),
            ]),
        ),
    ])
}

#[test]
fn a_released_checkpoint_is_written_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ar-ckpt.pth");
    write_torch(&path, &released()).unwrap();
    let weights = Weights::open(&path).unwrap();
    let rater = weights.within("trainer.varRater_wo_ddp");
    let names: Vec<_> = rater.names().collect();
    assert_eq!(names, ["weight", "wide", "half", "brain", "codes", "one", "none"]);
    assert_eq!(rater.read("codes").unwrap().as_slice::<u32>().unwrap(), [0, 1, 1 << 31, u32::MAX]);
    assert_eq!(rater.read("brain").unwrap().as_slice::<f32>().unwrap(), [bf16::from_f32(0.1).to_f32(); 3]);
    assert_eq!(rater.entry("one").unwrap().shape, [0usize; 0]);
    let value = |name: &str| weights.value(name).unwrap().to_string();
    assert_eq!(value("trainer.config.patch_nums"), "(1, 2, 3, 4)");
    assert_eq!(value("trainer.config.resos"), "[-1, 1099511627776, -9223372036854775808]");
    assert_eq!(value("trainer.config.counts.many.2499"), "2499");
    assert_eq!(weights.values().count(), 2 + 6 + 2500);
}

#[test]
#[ignore = "needs a Python with PyTorch 2.4 or newer, named by PYTHON: `scripts/weights.sh` installs one and runs it"]
fn pytorch_opens_what_is_written() {
    const CHECK: &str = r#"
import sys, torch
found = torch.load(sys.argv[1], weights_only=True)
assert list(found) == ["epoch", "iter", "trainer"] and found["epoch"] == 5, found
config, state = found["trainer"]["config"], found["trainer"]["varRater_wo_ddp"]
assert type(state).__name__ == "OrderedDict"
assert config["patch_nums"] == (1, 2, 3, 4) and config["resos"] == [-1, 1 << 40, -(1 << 63)]
assert config["label_smooth"] == 0.1 and config["first_prog"] is True and config["name"] == "größe"
assert config["nothing"] is None and config["counts"]["many.2499"] == 2499 and len(config["counts"]) == 2500
assert state["weight"].tolist()[0] == [1.5, -2.0, 0.0] and state["weight"].shape == (2, 3)
assert state["wide"].dtype == torch.float64 and state["wide"].tolist() == [1 / 3, -1e300]
assert state["half"].dtype == torch.float16 and state["brain"].dtype == torch.bfloat16
assert state["codes"].dtype == torch.uint32 and state["codes"].tolist() == [0, 1, 1 << 31, (1 << 32) - 1]
assert state["one"].shape == () and state["none"].shape == (0, 2)
mapped = torch.load(sys.argv[1], weights_only=True, mmap=True)
assert torch.equal(mapped["trainer"]["varRater_wo_ddp"]["weight"], state["weight"])
for pair in sys.argv[2:]:
    source, copy = pair.split("=")
    old, new = torch.load(source, weights_only=False), torch.load(copy, weights_only=True)
    def flat(prefix, value, into):
        if isinstance(value, torch.Tensor): into[prefix] = value.detach()
        elif isinstance(value, dict):
            for key, item in value.items(): flat(f"{prefix}.{key}" if prefix else str(key), item, into)
        elif isinstance(value, (list, tuple)):
            for at, item in enumerate(value): flat(f"{prefix}.{at}", item, into)
        return into
    old = flat("", old, {})
    assert list(old) == list(new), (list(old), list(new))
    for name in old:
        one, two = old[name].contiguous(), new[name]
        assert one.shape == two.shape and one.dtype == two.dtype, name
        assert one.numel() == 0 or torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8)), name
print("all equal")
"#;
    let python = std::env::var("PYTHON").expect("PYTHON names a Python with PyTorch");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ar-ckpt.pth");
    write_torch(&path, &released()).unwrap();
    let mut command = Command::new(python);
    command.arg("-c").arg(CHECK).arg(&path);
    for (file, _) in expected() {
        let source = made().join(&file);
        succeeds(folder.path(), &["convert", source.to_str().unwrap(), &file]);
        // PyTorch 2.15 cannot load the older stream that it writes of the newest kinds; the archive holds the same.
        let source = made().join(file.replace("_legacy", "_zip"));
        command.arg(format!("{}={}", source.display(), folder.path().join(&file).display()));
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}
