//! Files that want to run code, that lie, or that are no weights: each is an error that says so, and nothing worse.

use std::{fs, path::Path};

use alchemist_engine::weights::Weights;

use super::forged::{Forged, archive_of, checkpoint, dict_of, tensor};

/// Opens a file of these bytes and reads all of it; the error.
fn error_of(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    fs::write(&path, bytes).unwrap();
    error_of_path(&path)
}

fn error_of_path(path: &Path) -> Option<String> {
    let read = || {
        let weights = Weights::open(path)?;
        weights.names().try_for_each(|name| weights.read(name).map(drop))
    };
    read().err().map(|error: alchemist_engine::Error| error.to_string())
}

#[track_caller]
fn refused(bytes: &[u8], says: &[&str]) {
    let error = error_of(bytes).expect("the file is refused");
    for part in says {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
    assert!(error.len() < 1500, "the message is {} bytes long", error.len());
}

fn short(text: &str) -> Vec<u8> {
    [&[0x8c, text.len() as u8], text.as_bytes()].concat()
}

const CODE: &str = "tries to run code";

/// Names that only harmful pickles need are refused wherever they are, called or not.
#[test]
fn a_pickle_that_wants_to_run_code_is_refused_by_name() {
    let system = [
        b"\x80\x04".to_vec(),
        short("posix"),
        short("system"),
        b"\x93".to_vec(),
        short("ls"),
        b"\x85R.".to_vec(),
    ];
    let nested = dict_of(b"cos\nsystem\nX\x02\0\0\0ls\x85R");
    let in_an_object = dict_of(b"cargparse\nNamespace\n)\x81}X\x01\0\0\0acsubprocess\nPopen\nsb");
    let cases: [(&[u8], &str); 21] = [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "os.system"),
        (&system.concat(), "posix.system"),
        (b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R.", "__builtin__.eval"),
        (b"cbuiltins\nexec\n.", "builtins.exec"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"(S'ls'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'ls'\no.", "os.system"),
        (b"cos\nsystem\n)\x81.", "os.system"),
        (b"\x80\x04cos\nsystem\n)}\x92.", "os.system"),
        (b"csubprocess\nPopen\n.", "subprocess.Popen"),
        (b"cos.path\nexists\n.", "os.path.exists"),
        (b"cimportlib\nimport_module\n.", "importlib.import_module"),
        (&nested, "os.system"),
        (&in_an_object, "subprocess.Popen"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x02.", "EXT2"),
        (b"\x80\x02\x84\x01\x02\x03\x04.", "EXT4"),
        (b"Pstorage\n.", "PERSID"),
        (b"ctorch\nSize\n}b.", "BUILD"),
        (b"K\x01)R.", "a call of something"),
        (b"K\x01)\x81.", "a call of something"),
    ];
    for (pickle, what) in cases {
        refused(&checkpoint(pickle), &[CODE, what, "is refused"]);
    }
}

/// What a name that is not understood would make is an opaque object. Whatever it is, nothing is called: a program that
/// would leave a file behind leaves none.
#[test]
fn objects_are_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left");
    let path = folder.path().join("file.pth");
    let opens = |value: &[u8]| {
        let both = [&tensor(b"K\x10", b"K\0", b"K\x04", b"K\x01")[..], b"sX\x01\0\0\0o", value].concat();
        fs::write(&path, checkpoint(&dict_of(&both))).unwrap();
        let weights = Weights::open(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(weights.names().collect::<Vec<_>>(), ["x"]);
        assert_eq!(weights.read("x").unwrap().as_slice::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0]);
        weights.value("o").unwrap().to_string()
    };
    let name = left.to_str().unwrap();
    let text = [&[b'X', name.len() as u8, 0, 0, 0], name.as_bytes()].concat();
    let touch = |module: &[u8]| [b"c", module, b"\n", &text, b"\x85R"].concat();
    let cases: [(Vec<u8>, &str); 13] = [
        (touch(b"pathlib\nPath.touch"), "<pathlib.Path.touch>"),
        (touch(b"my.module\nrun"), "<my.module.run>"),
        // By each instruction that makes objects, with state, items and calls of what was made.
        (b"cmy\nC\n)\x81}X\x01\0\0\0aK\x01sb".to_vec(), "<my.C>"),
        (b"cmy\nC\n)}\x92".to_vec(), "<my.C>"),
        (b"(cmy\nC\nK\x01o".to_vec(), "<my.C>"),
        (b"(K\x01imy\nC\n".to_vec(), "<my.C>"),
        (b"cmy\nC\n)R)R)R".to_vec(), "<my.C>"),
        (b"cmy\nC\n)R(K\x01K\x02e".to_vec(), "<my.C>"),
        (b"cmy\nC\n)R(K\x01K\x02u".to_vec(), "<my.C>"),
        (b"cmy\nC\n".to_vec(), "<my.C>"),
        (b"ccollections\nnamedtuple\n".to_vec(), "<collections.namedtuple>"),
        (b"cmy\x1b[31m\nC\n)R".to_vec(), "<my\u{fffd}[31m.C>"),
        (b"ccollections\ndeque\n)R(cmy\nC\n)RK\x01e".to_vec(), "[<my.C>, 1]"),
    ];
    for (value, is) in cases {
        assert_eq!(opens(&value), is);
    }
    assert!(!left.exists());
    // A tensor of a form that is not read says so, and only when it is asked for.
    assert_eq!(
        opens(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"),
        "<torch._utils._rebuild_sparse_tensor, a tensor that is not read>"
    );
    // A file that is one object as a whole is refused by its name.
    for pickle in
        [&b"cmy\nC\n)R."[..], b"cmy\nC\n.", b"cmy\nC\n)\x81}b.", b"ctorch.storage\n_load_from_bytes\n)R."]
    {
        refused(
            &checkpoint(pickle),
            &["is one object of", "is refused; nothing of it was run", "state_dict()"],
        );
    }
}

#[test]
fn code_is_refused_in_the_older_stream_too() {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let stream =
        [&magic[..], b"\x80\x02M\xe9\x03.", system, b"\x80\x02cos\nsystem\n)R.", b"\x80\x02]."].concat();
    refused(&stream, &[CODE, "os.system"]);
    refused(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", &["not a PyTorch checkpoint"]);
}

#[test]
fn a_list_of_names_is_not_a_way_round() {
    // Names on the list, called with what they do not take.
    for pickle in [
        &b"ctorch._utils\n_rebuild_tensor_v2\n)R."[..],
        b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)NtR.",
        b"ctorch\nFloatStorage\n)R.",
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"ctorch\nSize\nK\x01\x85R.",
    ] {
        refused(&checkpoint(pickle), &[]);
    }
    // Marks that PyTorch does not know, or that such numbers do not have, could mean other numbers.
    let marked = |marks: &[u8]| {
        let plain = tensor(b"K\x10", b"K\0", b"K\x04", b"K\x01");
        // Before the call's end: `…, hooks, marks)`.
        let (arguments, end) = plain.split_at(plain.len() - 2);
        checkpoint(&dict_of(&[arguments, marks, end].concat()))
    };
    assert_eq!(error_of(&marked(b"}X\x03\0\0\0neg\x88s")), None);
    assert_eq!(error_of(&marked(b"}X\x03\0\0\0neg\x89s")), None);
    assert_eq!(error_of(&marked(b"N")), None);
    refused(&marked(b"}X\x04\0\0\0conj\x88s"), &["tensor x", "conjugate view, which the dtype f32"]);
    refused(&marked(b"}X\x05\0\0\0other\x88s"), &["unknown tensor flag", "other"]);
    refused(&marked(b"}X\x03\0\0\0negK\x01s"), &["unknown tensor flag"]);
    refused(&marked(b"]"), &[]);
}

/// Chains of calls of what was called before, and many mentions of one long name, cost no more than their length.
#[test]
fn objects_are_bounded() {
    let chain = [&b"cmy\nC\n"[..], &b")R".repeat(40_000)].concat();
    let listed = [&b"](cmy\nC\nq\0"[..], &b"h\0)R".repeat(20_000), b"e"].concat();
    for value in [chain, listed] {
        let pickle = dict_of(&value);
        let start = std::time::Instant::now();
        let _ = error_of(&checkpoint(&pickle));
        assert!(start.elapsed().as_secs() < 60, "{} bytes took {:?}", pickle.len(), start.elapsed());
    }
    let name = "n".repeat(1000);
    let long =
        [b"](c", name.as_bytes(), b"\n", name.as_bytes(), b"\nq\0", &b"h\0".repeat(1000), b"e"].concat();
    assert_eq!(error_of(&checkpoint(&dict_of(&long))), None);
}

#[test]
fn bombs_do_not_go_off() {
    let deep = [&b"\x80\x02"[..], &b"]".repeat(5000), &b"a".repeat(4999), b"."].concat();
    refused(&checkpoint(&deep), &[]);
    let nested = [&b"\x80\x02"[..], &b"}X\x01\0\0\0x".repeat(2000), b"}", &b"s".repeat(2000), b"."].concat();
    refused(&checkpoint(&nested), &["deep"]);
    refused(&checkpoint(&b"(".repeat(200_000)), &["nested"]);
    refused(&checkpoint(&b"N".repeat(200_000)), &["stack"]);
    refused(&checkpoint(&b"]0".repeat(200_000)), &["more values than its length allows"]);
    // Forty dicts, each holding the one before twice.
    let mut laughs = b"\x80\x02}q\0X\x01\0\0\0xK\x01s0".to_vec();
    for at in 1..40u8 {
        laughs.extend(
            [b"}q", &[at][..], b"X\x01\0\0\0ah", &[at - 1], b"sX\x01\0\0\0bh", &[at - 1], b"s0"].concat(),
        );
    }
    laughs.extend(b"h\x27.");
    refused(&checkpoint(&laughs), &["more often than its length allows"]);
    // A list that holds itself.
    refused(&checkpoint(b"\x80\x02]q\0h\0a."), &[]);
    refused(&checkpoint(b"\x80\x02}q\0X\x01\0\0\0xh\0s."), &["deep"]);
    let remembered = b"\x80\x02Nr\xff\xff\xff\x7f.";
    refused(&checkpoint(remembered), &["stores memo entry"]);
    refused(&checkpoint(b"h\x05."), &["missing memo entry"]);
    // One long list, turned into dicts again and again.
    let mut copies = b"\x80\x02]q\0(".to_vec();
    copies.extend(b"NN\x86".repeat(1000));
    copies.extend(b"e");
    copies.extend(b"ccollections\nOrderedDict\nh\0\x85R0".repeat(1000));
    copies.extend(b"N.");
    refused(&checkpoint(&copies), &["copies more"]);
}

#[test]
fn lengths_that_lie_are_found() {
    refused(&checkpoint(b"\x80\x02X\xff\xff\xff\xffabc."), &["truncated"]);
    refused(&checkpoint(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc."), &["truncated"]);
    refused(&checkpoint(b"\x80\x02\x8b\xff\xff\xff\x7f."), &["an integer of"]);
    refused(&checkpoint(b"\x80\x02\x8b\xff\xff\xff\xff."), &["an integer of"]);
    refused(&checkpoint(b"\x80\x09N."), &["protocol"]);
    refused(&checkpoint(b"\x80\x02"), &["truncated"]);
    refused(&checkpoint(b""), &["truncated"]);
    for damaged in [
        &b"."[..],
        b"a.",
        b"s.",
        b"t.",
        b"0.",
        b"\x85.",
        b"R.",
        b"Q.",
        b"b.",
        b"\x93.",
        b"\xff.",
        b"(.",
        b"]K\x01K\x02s.",
    ] {
        refused(&checkpoint(damaged), &[]);
    }
}

#[test]
fn tensors_stay_within_their_storages() {
    let good = dict_of(&tensor(b"K\x10", b"K\0", b"K\x04K\x04", b"K\x04K\x01"));
    assert_eq!(error_of(&checkpoint(&good)), None);
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let large = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    let cases: [([&[u8]; 4], &str); 12] = [
        ([b"K\x10", b"K\x01", b"K\x04K\x04", b"K\x04K\x01"], "exceeds"),
        ([b"K\x10", b"K\0", b"K\x11", b"K\x01"], "exceeds"),
        ([b"K\x10", b"K\0", b"K\x02", b"K\x10"], "exceeds"),
        ([b"K\x10", huge, b"K\x02", b"K\x01"], "exceeds"),
        ([b"K\x10", b"K\0", b"K\x02", huge], "exceeds"),
        ([b"K\x10", b"J\xff\xff\xff\xff", b"K\x02", b"K\x01"], "negative"),
        ([b"K\x10", b"K\0", b"J\xff\xff\xff\xff", b"K\x01"], "negative"),
        ([b"K\x10", b"K\0", b"K\x02", b"J\xff\xff\xff\xff"], "negative"),
        ([b"K\x10", b"K\0", b"K\x02", b""], "strides"),
        ([b"K\x11", b"K\0", b"K\x02", b"K\x01"], "elements of 4 bytes"),
        ([huge, b"K\0", b"K\x02", b"K\x01"], "elements of 4 bytes"),
        ([b"K\x10", b"K\0", &[large.as_slice(), large, large].concat(), b"K\0K\0K\0"], "overflows"),
    ];
    for ([numbers, offset, shape, strides], says) in cases {
        refused(&checkpoint(&dict_of(&tensor(numbers, offset, shape, strides))), &[says]);
    }
    // Of one number, expanded: listed, but not read into memory.
    let expanded = checkpoint(&dict_of(&tensor(b"K\x10", b"K\0", b"J\0\0\0\x40", b"K\0")));
    refused(&expanded, &["tensor x", "expanded"]);
    let dimensions = dict_of(&tensor(b"K\x10", b"K\0", &b"K\x01".repeat(65), &b"K\x01".repeat(65)));
    refused(&checkpoint(&dimensions), &["dimensions"]);
    let missing = tensor(b"K\x10", b"K\0", b"K\x02", b"K\x01")
        .iter()
        .map(|&byte| if byte == b'0' { b'7' } else { byte })
        .collect::<Vec<_>>();
    refused(&checkpoint(&dict_of(&missing)), &["storage 7 is missing"]);
    let twice = [
        &b"\x80\x02}(X\x01\0\0\0x"[..],
        &tensor(b"K\x10", b"K\0", b"K\x02", b"K\x01"),
        b"X\x01\0\0\0x",
        &tensor(b"K\x10", b"K\0", b"K\x02", b"K\x01"),
        b"u.",
    ]
    .concat();
    refused(&checkpoint(&twice), &["two tensors have the name x"]);
}

#[test]
fn expanded_tensors_are_not_written_without_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    let payload = |shape: &[u8]| {
        fs::write(&path, checkpoint(&dict_of(&tensor(b"K\x10", b"K\0", shape, b"K\0")))).unwrap();
        Weights::open(&path).unwrap().payload("x")
    };
    // A number 2³⁰ times is 4 GiB.
    let error = payload(b"J\0\0\0\x40").unwrap_err().to_string();
    assert!(error.contains("file.pth: tensor x is expanded"), "{error}");
    assert_eq!(payload(b"M\xe8\x03").unwrap().entry().shape, [1000]);
}

#[test]
fn tensors_that_share_numbers_are_not_written_without_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    // So many tensors, each of the same number 60,000 times: each is small, and all are 240 kB times their count.
    let shared = |count: u8| {
        let one = tensor(b"K\x10", b"K\0", b"M\x60\xea", b"K\0");
        let named = |at: u8| [&b"X\x01\0\0\0"[..], &[b'0' + at], &one].concat();
        let all = (0..count).flat_map(named).collect::<Vec<_>>();
        fs::write(&path, checkpoint(&[&b"\x80\x02}("[..], &all, b"u."].concat())).unwrap();
        Weights::open(&path).unwrap().payloads()
    };
    assert_eq!(shared(4).unwrap().len(), 4);
    let error = shared(9).unwrap_err().to_string();
    assert!(
        error.contains("file.pth: its 9 tensors share storage") && error.contains("2160000 bytes"),
        "{error}"
    );
}

#[test]
fn archives_that_lie_are_found() {
    let pickle = dict_of(&tensor(b"K\x10", b"K\0", b"K\x04", b"K\x01"));
    let numbers = [0u8; 64];
    let with = |change: &dyn Fn(&mut Forged<'_>)| {
        let mut entries = [Forged::honest("a/data.pkl", &pickle), Forged::honest("a/data/0", &numbers)];
        change(&mut entries[1]);
        archive_of(&entries, false)
    };
    assert_eq!(error_of(&with(&|_| {})), None);
    refused(&with(&|entry| entry.said_size = Some(1 << 30)), &["a/data/0", "is not where"]);
    refused(&with(&|entry| entry.said_size = Some(u32::MAX)), &[]);
    refused(&with(&|entry| entry.said_place = Some(0)), &["a/data/0", "is not where"]);
    refused(&with(&|entry| entry.said_place = Some(u32::MAX)), &[]);
    refused(&with(&|entry| entry.method = 8), &["compressed"]);
    refused(&with(&|entry| entry.flags = 1), &["encrypted"]);
    refused(&with(&|entry| entry.name = "a/data.pkl"), &["two entries"]);
    refused(&with(&|entry| entry.name = "b/data.pkl"), &["both"]);
    refused(&archive_of(&[Forged::honest("a/numbers", &numbers)], false), &["without data.pkl"]);
    let script = [Forged::honest("a/data.pkl", &pickle), Forged::honest("a/constants.pkl", b"")];
    refused(&archive_of(&script, false), &["TorchScript"]);
    let order = [Forged::honest("a/data.pkl", &pickle), Forged::honest("a/byteorder", b"middle")];
    refused(&archive_of(&order, false), &["byte order"]);
    // An entry that claims the one behind it too, in whose bytes there is a second header of the right name.
    let mut inner = archive_of(&[Forged::honest("a/data/0", &numbers)], false);
    inner.truncate(30 + 8 + 64);
    let mut overlapping = [
        Forged::honest("a/data.pkl", &pickle),
        Forged::honest("a/cover", &inner),
        Forged::honest("a/data/0", &numbers),
    ];
    overlapping[2].said_place = Some(30 + 10 + pickle.len() as u32 + 30 + 7);
    refused(&archive_of(&overlapping, false), &["overlap"]);
}

#[test]
fn wide_archives_are_read() {
    let pickle = dict_of(&tensor(b"K\x10", b"K\0", b"K\x04", b"K\x01"));
    let entries = [Forged::honest("data.pkl", &pickle), Forged::honest("data/0", &[0; 64])];
    let wide = archive_of(&entries, true);
    assert_eq!(error_of(&wide), None);
    for length in (0..wide.len()).step_by(7) {
        refused(&wide[..length], &[]);
    }
}

#[test]
fn every_cut_is_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures_made");
    for name in ["nested_zip.pth", "nested_legacy.pth", "kinds_legacy.pth"] {
        let whole = fs::read(folder.join(name)).unwrap();
        for length in (0..whole.len()).step_by(97) {
            refused(&whole[..length], &["file.pth"]);
        }
    }
    refused(&fs::read(folder.join("nested_zip.pth")).unwrap()[..1000], &["truncated"]);
}

#[test]
fn files_that_are_no_weights_are_recognized() {
    refused(b"", &["empty", "download"]);
    refused(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", &["HTML page", "download"]);
    refused(b"\n <HTML>Sign in</HTML>", &["HTML page"]);
    refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        &["Git LFS pointer", "git lfs pull"],
    );
    refused(b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", &["XML"]);
    refused(b"\x89HDF\r\n\x1a\n", &["HDF5"]);
    refused(b"GGUF\x03\0\0\0", &["GGUF"]);
    refused(b"\x1f\x8b\x08\0", &["gzip"]);
    refused(b"some text", &["neither safetensors nor"]);
}

#[test]
fn what_lies_in_the_place_of_an_index_is_recognized() {
    let folder = tempfile::tempdir().unwrap();
    for (content, what) in [
        ("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "an HTML page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
    ] {
        fs::write(folder.path().join("model.safetensors.index.json"), content).unwrap();
        let error = error_of_path(folder.path()).unwrap();
        assert!(error.contains("not an index of shards") && error.contains(what), "{error}");
    }
}

#[test]
fn safetensors_that_lie_are_found() {
    let file = |header: &str, numbers: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; numbers]].concat()
    };
    let good = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_eq!(error_of(&file(good, 8)), None);
    refused(&file(good, 7), &["safetensors"]);
    refused(&file(good, 9), &["safetensors"]);
    for header in [
        r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
        r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,80000000000]}}"#,
        r#"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#,
        r#"{"x":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"x":"#,
    ] {
        refused(&file(header, 8), &["safetensors"]);
    }
    refused(&file(r#"{"x":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}"#, 8), &["F8_E8M0"]);
    let mut long = file(good, 8);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&long, &[]);
    long[..8].copy_from_slice(&1000u64.to_le_bytes());
    refused(&long, &["safetensors"]);
}

#[test]
fn an_index_names_files_of_its_own_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    for outside in ["../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "..", "", "."] {
        fs::write(&path, serde_json::json!({"weight_map": {"x": outside}}).to_string()).unwrap();
        let error = error_of_path(&path).unwrap();
        assert!(error.contains("not a file in the index's own folder; refused"), "{outside}: {error}");
    }
    fs::write(&path, r#"{"weight_map": {"x": "missing.safetensors"}}"#).unwrap();
    assert!(error_of_path(folder.path()).unwrap().contains("missing.safetensors"));
    fs::write(&path, r#"{"other": 1}"#).unwrap();
    assert!(error_of_path(&path).unwrap().contains("weight_map"));
    fs::remove_file(&path).unwrap();
    assert!(error_of_path(folder.path()).unwrap().contains("model.safetensors"));
}
