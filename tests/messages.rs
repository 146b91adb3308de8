//! What the program says when something is wrong: one line that names the file or the argument, says every cause once, and is nothing
//! but text. [`provoked`] is the list of all provoked errors.
#![cfg(unix)]

mod every_command;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Output,
};

use every_command::{COMMANDS, Place};

/// An error and what its message must hold.
struct Provoked {
    arguments: Vec<String>,
    code: i32,
    words: Vec<String>,
}

/// Commands with a `FILE` that is an input.
const INPUTS: &[&str] = &[
    "train --config FILE --out out",
    "train --config config.json --data FILE --out out",
    "train --config config.json --validation FILE --out out",
    "fit --config FILE --out out",
    "fit --config config.json --data FILE --out out",
    "fit --config config.json --weights FILE --out out",
    "encode --config FILE --out out",
    "encode --config config.json --data FILE --out out",
    "encode --run FILE --data data/train.csv --out out",
    "score --checkpoint FILE --data data/train.csv --out out.csv",
    "score --checkpoint run --data FILE --out out.csv",
    "score --checkpoint weights.pth --config FILE --data data/train.csv --out out.csv",
    "attribute --checkpoint FILE --data data/train.csv --validation data/validation.csv --out out.csv",
    "attribute --checkpoint run --data FILE --validation data/validation.csv --out out.csv",
    "attribute --checkpoint run --data data/train.csv --validation FILE --out out.csv",
    "select --ratings FILE --keep 50% --out out.csv",
    "select --ratings FILE.parquet --keep 50% --out out.csv",
    "select --ratings ratings.csv --keep 50% --data FILE --out out.csv",
    "pack --data FILE --format csv --out out.csv",
    "plant --data FILE --out out",
    "sample --checkpoint FILE --prompt x --out out",
    "sample --checkpoint model --prompts FILE --out out",
    "sample --checkpoint model --layout geneval --prompts FILE --out out",
    "measure --generated FILE --reference data/validation.csv --checkpoint run",
    "measure --generated data/train.csv --reference FILE --checkpoint run",
    "measure --generated data/train.csv --reference data/validation.csv --checkpoint FILE",
    "measure --generated data/train.csv --reference data/validation.csv --config FILE",
    "measure --generated data/train.csv --reference data/validation.csv --features inception --inception FILE",
    "measure --generated data/train.csv --clip FILE",
    "compare --config FILE --out out",
    "compare --config config.json --data FILE --out out",
    "report --of FILE",
    "report --of run --ratings FILE",
    "report --of run --ratings ratings.csv --data FILE --out out.html",
    "export --checkpoint FILE --out out.pth",
    "inspect FILE",
    "inspect weights.pth --against FILE",
    "inspect weights.pth --config FILE",
    "convert FILE out.safetensors",
];

/// Other mistakes: a command, and what its message must hold.
const MISTAKES: &[(&str, &[&str])] = &[
    ("train --config config.json --set bs=0 --out out", &["--set", "bs"]),
    ("train --config config.json --set bs=many --out out", &["--set", "bs"]),
    ("train --config config.json --set nokey=1 --out out", &["--set", "nokey"]),
    ("train --config config.json --set bs --out out", &["--set", "bs"]),
    ("train --config config.json --set columns.caption=text --out out", &["data/train.csv", "`text`"]),
    ("train --config config.json --set columns.image=path --out out", &["data/train.csv", "`path`"]),
    ("train --config config.json --out run", &["run", "--resume"]),
    ("train --config config.json --out data", &["data", "--out"]),
    ("train --config config.json --out run/config.json", &["run/config.json"]),
    ("train --resume nothing", &["nothing"]),
    ("train --config config.json --set ep=3 --out run --resume", &["run", "ep"]),
    ("fit --config config.json --set pg=0.5 --set pg0=9 --out out", &["pg0"]),
    ("encode --config config.json --out data", &["data", "--out"]),
    ("score --checkpoint run --data data/train.csv --out ratings.csv", &["ratings.csv", "--overwrite"]),
    ("score --checkpoint run --data data/train.csv --out out.xlsx", &["out.xlsx"]),
    ("score --checkpoint run/checkpoints/step-9 --data data/train.csv --out out.csv", &["step-9"]),
    ("score --checkpoint model --data data/train.csv --out out.csv", &["model"]),
    (
        "attribute --checkpoint model --data data/train.csv --validation data/validation.csv --out out.csv",
        &["model"],
    ),
    (
        "select --ratings ratings.csv --keep 50% --rating-column stars --out out.csv",
        &["ratings.csv", "`stars`"],
    ),
    ("select --ratings ratings.csv --keep 50% --out out.txt", &["out.txt"]),
    (
        "select --ratings ratings.csv --keep 50% --out nowhere/deep/out.csv",
        &["nowhere/deep/out.csv", "create it first"],
    ),
    (
        "train --config config.json --set data_args.val_csv_path=null --set bs=500 --out out",
        &["--validation", "--set bs="],
    ),
    ("train --config config.json --data /dev/stdin --out out", &["/dev/stdin", "not a regular file"]),
    ("report --of run --ratings others.csv --out out.html", &["data/train.csv", "`another`", "--data"]),
    ("select --ratings ratings.csv --keep 50% --strategy block --out out.csv", &["--offset"]),
    ("pack --data data/train.csv --format csv --out out.parquet", &["out.parquet"]),
    ("pack --data data/train.csv --format csv --out ratings.csv", &["ratings.csv"]),
    (
        "pack --data data/train.csv --format csv --image-column image --out out.csv",
        &["data/train.csv", "`image`"],
    ),
    ("plant --data data/train.csv --flaws noise=lots --out out", &["noise", "lots"]),
    ("plant --data data/train.csv --flaws moths=5% --out out", &["moths"]),
    ("plant --data data/plain.csv --flaws wrong_count=5% --out out", &["`wrong_count`", "`demo`"]),
    (
        "plant --data data/plain.csv --flaws noise=5% --category-column kind --out out",
        &["data/plain.csv", "`kind`"],
    ),
    ("sample --checkpoint model --out out", &["prompt"]),
    ("sample --checkpoint model --prompt x --out data", &["data"]),
    ("sample --checkpoint run --prompt x --out out", &["run"]),
    ("measure --generated data/train.csv --reference data/validation.csv", &["--config", "--checkpoint"]),
    ("measure --generated data/train.csv --reference data/validation.csv --features clip", &["--clip"]),
    ("compare --config config.json --keep none --out out", &["none"]),
    ("compare --config config.json --ratings stars --out out", &["stars"]),
    ("compare --config config.json --samplers dice --out out", &["dice"]),
    ("report --of run --sheets loss", &["--sheets"]),
    ("export --checkpoint run --out nowhere/out.pth", &["nowhere/out.pth"]),
    ("convert weights.pth out.bmp", &["out.bmp"]),
    ("convert weights.pth weights.pth", &["weights.pth", "is an input"]),
    ("convert weights.pth out.pth --within nothing", &["weights.pth", "nothing"]),
];

/// What lies in an input's place.
const BAD: [&str; 7] = ["missing", "folder", "empty", "binary", "nul", "unreadable", "nowhere/missing"];

fn make_bad_files(place: &Place) {
    fs::create_dir(place.path("bad")).unwrap();
    for name in ["", ".parquet"] {
        fs::create_dir(place.path(&format!("bad/folder{name}"))).unwrap();
        fs::write(place.path(&format!("bad/empty{name}")), "").unwrap();
        let bytes: Vec<u8> =
            (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
        fs::write(place.path(&format!("bad/binary{name}")), bytes).unwrap();
        fs::write(place.path(&format!("bad/nul{name}")), [0; 64]).unwrap();
        let unreadable = place.path(&format!("bad/unreadable{name}"));
        fs::write(&unreadable, "id,image_save_path,caption\n").unwrap();
        fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
    }
}

/// All errors that are provoked, in a place with bad files.
fn provoked(place: &Place) -> Vec<Provoked> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut all = Vec::new();
    for input in INPUTS {
        for bad in BAD {
            // Whoever may read everything reads this, too.
            if bad == "unreadable" && fs::read(place.path("bad/unreadable")).is_ok() {
                continue;
            }
            let path = format!("bad/{bad}");
            let arguments = words(&input.replace("FILE", &path));
            // Beside the weights of a CLIP lies its configuration, which is read first.
            let named = if input.contains("--clip") { "bad/".to_owned() } else { path };
            all.push(Provoked { arguments, code: 1, words: vec![named] });
        }
    }
    for (mistake, expected) in MISTAKES {
        let expected = expected.iter().map(|word| (*word).to_owned()).collect();
        all.push(Provoked { arguments: words(mistake), code: 1, words: expected });
    }
    all
}

/// The message of a command that fails as it should: one line on stderr, of which the rest is warnings.
#[track_caller]
fn message(output: &Output, about: &[String]) -> String {
    let errors = String::from_utf8(output.stderr.clone()).expect("stderr is text");
    assert_eq!(output.status.code(), Some(1), "{about:?}: {errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{about:?}: {errors}");
    assert!(errors.ends_with(&format!("{}\n", lines[0])), "{about:?}: the error is not last: {errors}");
    is_text(&errors, about);
    lines[0].to_owned()
}

/// No panic, and nothing that acts on a terminal.
#[track_caller]
fn is_text(said: &str, about: &[String]) {
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{about:?}: {said}");
    let acts = |character: char| {
        (character.is_control() && character != '\n') || ('\u{202a}'..='\u{202e}').contains(&character)
    };
    assert!(!said.contains(acts), "{about:?}: {said:?}");
}

#[test]
fn every_provoked_error_is_one_line_that_names_what_it_is_about() {
    let place = Place::new();
    make_bad_files(&place);
    fs::write(place.path("others.csv"), "id,rating\nanother,1\nstranger,2\n").unwrap();
    let there = place.everything();
    let mut faults = Vec::new();
    for Provoked { arguments, code, words } in provoked(&place) {
        let output = place.program(&arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
        let line = lines.first().copied().unwrap_or_default();
        let mut fault = |what: &str| faults.push(format!("{what}: {}: {errors}", arguments.join(" ")));
        if output.status.code() != Some(code) || lines.len() != 1 {
            fault(&format!("{:?} with {} lines", output.status, lines.len()));
        }
        for word in words.iter().filter(|word| !line.contains(*word)) {
            fault(&format!("`{word}` is not named"));
        }
        let causes: Vec<&str> = line.split(": ").collect();
        if causes.windows(2).any(|pair| pair[0] == pair[1]) || line.matches("(os error").count() > 1 {
            fault("a cause is named twice");
        }
        if line.contains("``") || line.contains("  ") || line.contains(" : ") || line.ends_with(": ") {
            fault("something is named by nothing");
        }
        if errors.contains("panicked") || errors.contains(|one: char| one.is_control() && one != '\n') {
            fault("more than text");
        }
        // A refused command leaves nothing but the list of what it could not use.
        let left = place.everything().into_iter().filter(|path| !there.contains(path));
        let left: Vec<_> = left.filter(|path| !path.to_string_lossy().contains("failed.csv")).collect();
        if !left.is_empty() && !place.path("out/failed.csv").exists() {
            fault(&format!("{left:?} is left"));
        }
        place.clear("out");
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Wrong arguments are said by clap, with exit code 2.
#[test]
fn wrong_arguments_are_one_error_each_and_nothing_but_text() {
    let place = Place::untrained();
    for arguments in [
        &["train"][..],
        &["nothing"],
        &["select", "--ratings", "r.csv", "--keep", "0%", "--out", "o.csv"],
        &["select", "--ratings", "r.csv", "--keep", "x\u{1b}[2J", "--out", "o.csv"],
        &["score", "--batch", "0"],
        &["inspect", "a", "\u{1b}]0;title\u{7}\u{202e}"],
        &["--threads", "many", "devices"],
        &["plant", "--data", "d.csv", "--out", "o", "--mixture", "everything"],
        &["plant", "--data", "d.csv", "--out", "o", "--mixture", "text", "--flaws", "noise=5%"],
    ] {
        let output = place.program(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{errors}");
        is_text(&errors, &[]);
    }
}

/// Ids, columns, captions, paths and names of tensors come from others.
#[test]
fn nothing_in_a_file_or_a_name_acts_on_the_terminal() {
    const EVIL: &str = "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}gpj\u{7f}\r";
    let place = Place::new();
    let evil_file = format!("{EVIL}.csv");
    let quoted = |text: &str| format!("\"{text}\"");
    fs::write(
        place.path("evil.csv"),
        format!("id,image_save_path,caption,{0}\n{0},{0}.png,{0},1\n", quoted(EVIL)),
    )
    .unwrap();
    fs::write(place.path(&evil_file), "id,rating\na,b\n").unwrap();
    fs::write(place.path("doubled.csv"), format!("{0},{0}\n1,2\n", quoted(EVIL))).unwrap();
    let tensor = serde_json::json!({EVIL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {EVIL: EVIL}});
    let header = tensor.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 4]);
    fs::write(place.path("evil.safetensors"), bytes).unwrap();
    let mut shown = 0;
    for arguments in [
        &["inspect", "evil.safetensors"][..],
        &["inspect", "evil.safetensors", "--against", "weights.pth"],
        &["inspect", &evil_file],
        &["convert", "evil.safetensors", "evil.pth", "-vv"],
        &["select", "--ratings", &evil_file, "--keep", "1", "--out", "out.csv"],
        &["select", "--ratings", "doubled.csv", "--keep", "1", "--out", "out.csv"],
        &["select", "--ratings", "evil.csv", "--keep", "1", "--rating-column", EVIL, "--out", "out.csv"],
        &["score", "--checkpoint", "run", "--data", "evil.csv", "--out", "out2.csv"],
        &["pack", "--data", "evil.csv", "--format", "webdataset", "--out", "out3"],
        &["plant", "--data", "evil.csv", "--out", "out4"],
        &["train", "--config", "config.json", "--data", "evil.csv", "--out", "out5"],
        &["report", "--of", EVIL],
        &["train", "--config", "config.json", "--set", EVIL, "--out", "out6"],
    ] {
        let output = place.program(arguments).output().unwrap();
        let about: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        is_text(&said, &about);
        shown += usize::from(said.contains("\\u{1b}[2J"));
    }
    assert!(shown >= 7, "the text is shown, escaped, in {shown} of them");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    for (at, given) in COMMANDS.iter().enumerate() {
        for (line, verbose) in [
            // stdout and stderr are pipes that nobody reads, or closed, or read for a line.
            ("\"$@\" | true; exit ${PIPESTATUS[0]}", false),
            ("\"$@\" 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", true),
            ("\"$@\" | head -1; exit ${PIPESTATUS[0]}", false),
            ("\"$@\" >&-", false),
            ("\"$@\" 2>&-", true),
        ] {
            let out = format!("pipe{at}");
            let mut arguments = given.to(&out);
            arguments.extend(verbose.then(|| "-vv".to_owned()));
            let output = place.shell(line, &arguments).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{} by `{line}`: {errors}", given.name);
            assert!(!errors.contains("panicked"), "{} by `{line}`: {errors}", given.name);
            place.clear(&out);
        }
    }
    let help = place.shell("\"$@\" | true; exit ${PIPESTATUS[0]}", &["compare", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
}

#[test]
fn a_stdout_that_cannot_be_written_to_is_named() {
    let place = Place::new();
    if !place.path("/dev/full").exists() {
        return;
    }
    for (at, given) in COMMANDS.iter().enumerate() {
        let out = format!("full{at}");
        let arguments = given.to(&out);
        let output = place.shell("\"$@\" >/dev/full", &arguments).output().unwrap();
        let line = message(&output, &arguments);
        assert!(line.contains("cannot write stdout: No space left"), "{}: {line}", given.name);
        place.clear(&out);
        // There is nobody to tell that nobody can be told.
        let output = place.shell("\"$@\" -vv 2>/dev/full", &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", given.name);
        place.clear(&out);
    }
    let output = place.shell("\"$@\" >/dev/full", &["--help"]).output().unwrap();
    assert!(message(&output, &[]).contains("cannot write stdout"));
}

/// One rule for every command that reads images: no output, a list of all rows, one line with the first reasons, exit code 1.
#[test]
fn when_no_row_can_be_used_every_command_says_why() {
    let place = Place::new();
    let mut table = "id,image_save_path,caption\n".to_owned();
    for row in 0..24 {
        let path = if row < 20 { format!("nowhere/{row}.png") } else { "data".to_owned() };
        table.push_str(&format!("{row},{path},caption {row}\n"));
    }
    fs::write(place.path("wrong.csv"), table).unwrap();
    symlink(place.path("nowhere/0.png"), place.path("nowhere-link")).unwrap();
    let commands: &[(&str, &str, Option<&str>)] = &[
        ("train --config config.json --data wrong.csv --out OUT", "OUT/failed.csv", None),
        ("train --config config.json --validation wrong.csv --out OUT", "OUT/failed.csv", None),
        ("fit --config config.json --data wrong.csv --out OUT", "OUT/failed.csv", None),
        ("encode --config config.json --data wrong.csv --out OUT", "OUT/failed.csv", None),
        ("encode --run run --data wrong.csv --out OUT", "OUT/failed.csv", None),
        ("score --checkpoint run --data wrong.csv --out OUT.csv", "OUT.failed.csv", Some("OUT.csv")),
        (
            "attribute --checkpoint run --data wrong.csv --validation data/validation.csv --out OUT.csv",
            "OUT.failed.csv",
            Some("OUT.csv"),
        ),
        ("plant --data wrong.csv --out OUT", "", Some("OUT/corpus.csv")),
        ("compare --config config.json --data wrong.csv --out OUT", "OUT/tokens/failed.csv", None),
        ("pack --data wrong.csv --format webdataset --out OUT", "", None),
        ("measure --generated wrong.csv --reference data/validation.csv --checkpoint run", "", None),
    ];
    for (at, (command, list, output)) in commands.iter().enumerate() {
        let out = format!("all-failed-{at}");
        let named = |name: &str| place.path(&name.replace("OUT", &out));
        let arguments: Vec<String> = command.replace("OUT", &out).split(' ').map(str::to_owned).collect();
        let line = message(&place.program(&arguments).output().unwrap(), &arguments);
        assert!(line.contains("can be used: ") && line.contains("rows: "), "{command}: {line}");
        assert!(line.contains("none of ") || line.contains("left for validation"), "{command}: {line}");
        if !list.is_empty() {
            assert!(line.contains("nowhere/") && line.contains("failed.csv"), "{command}: {line}");
            let rows = fs::read_to_string(named(list)).unwrap().lines().count();
            assert!(rows > 10, "{command}: {rows} lines in its list");
        }
        if let Some(output) = output {
            assert!(!named(output).exists(), "{command} has written {output}");
        }
    }
}

/// Byte order marks and line ends of other systems are no part of a text.
#[test]
fn text_files_are_read_as_people_save_them() {
    let place = Place::new();
    let config = fs::read_to_string(place.path("config.json")).unwrap();
    fs::write(place.path("marked.json"), format!("\u{feff}{}", config.replace(',', ",\r\n"))).unwrap();
    place.succeed(&["train", "--config", "marked.json", "--out", "marked"]);
    fs::write(place.path("prompts.txt"), "\u{feff}a red circle\r\n\r\n  a blue square \r\n\r\n\r\n").unwrap();
    place.succeed(&[
        "sample",
        "--checkpoint",
        "model",
        "--prompts",
        "prompts.txt",
        "--out",
        "marked-samples",
    ]);
    let table = fs::read_to_string(place.path("marked-samples/samples.csv")).unwrap();
    let prompts: Vec<&str> = table.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
    assert_eq!(prompts, ["a red circle", "a blue square"]);
    fs::write(
        place.path("prompts.jsonl"),
        "\u{feff}{\"prompt\": \"a red circle\", \"tag\": 1}\r\n\r\n{\"prompt\": \"a fox\", \"tag\": 2}\r\n",
    )
    .unwrap();
    let geneval = [
        "sample",
        "--checkpoint",
        "model",
        "--layout",
        "geneval",
        "--each",
        "1",
        "--prompts",
        "prompts.jsonl",
        "--out",
        "g",
    ];
    place.succeed(&geneval);
    let metadata = fs::read_to_string(place.path("g/00000/metadata.jsonl")).unwrap();
    assert_eq!(metadata, "{\"prompt\": \"a red circle\", \"tag\": 1}\n");
    let marked = place.path("g/00001/metadata.jsonl");
    fs::write(&marked, "\u{feff}{\"prompt\": \"a fox\", \"tag\": 2}\r\n").unwrap();
    let metadata_read = place.program(&[
        "measure",
        "--generated",
        "g",
        "--reference",
        "data/validation.csv",
        "--checkpoint",
        "run",
    ]);
    let mut metadata_read = metadata_read;
    assert!(metadata_read.output().unwrap().status.success());
}

/// A file that may not grow is said like any other error, although the system sends a signal for it.
#[test]
fn a_limit_on_the_size_of_files_is_named() {
    let place = Place::new();
    let export = ["export", "--checkpoint", "run", "--out", "limited.pth"];
    let output = place.shell("ulimit -f 1 && exec \"$@\"", &export).output().unwrap();
    let line = message(&output, &[]);
    assert!(line.contains("limited.pth") && line.contains("File too large"), "{line}");
    assert!(place.leftovers().is_empty());
}

/// Memory that the process may not have is said before it is used: a failed allocation would end the program.
#[cfg(target_os = "linux")]
#[test]
fn a_tensor_that_memory_does_not_hold_is_named() {
    const VARIABLE: &str = "ALCHEMIST_TEST_WIDE_TENSOR";
    if let Some(path) = std::env::var_os(VARIABLE) {
        let weights = alchemist_engine::weights::Weights::open(std::path::Path::new(&path)).unwrap();
        let refused = weights.read("w").unwrap_err().to_string();
        assert!(
            refused.contains("wide.safetensors: not enough memory: 2.0 GiB were requested for tensor w"),
            "{refused}"
        );
        return;
    }
    // 16-bit floats, which are widened when they are read.
    let floats = 1_usize << 29;
    let tensor =
        serde_json::json!({"w": {"dtype": "F16", "shape": [floats], "data_offsets": [0, 2 * floats]}});
    let header = tensor.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.safetensors");
    fs::write(&path, &bytes).unwrap();
    let sparse = fs::OpenOptions::new().write(true).open(&path).unwrap();
    sparse.set_len((bytes.len() + 2 * floats) as u64).unwrap();
    // This very test, where the file fits into the address space and its floats do not.
    let output = std::process::Command::new("bash")
        .args(["-c", "ulimit -v 2500000 && exec \"$@\"", "bash"])
        .arg(std::env::current_exe().unwrap())
        .args(["a_tensor_that_memory_does_not_hold_is_named", "--exact", "--test-threads=1"])
        .env(VARIABLE, &path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A table of the three columns alone.
#[cfg(target_os = "linux")]
fn plain_table() -> String {
    let rows = (0..40).map(|row| format!("{row},data/train/{row:06}.png,caption {row}\n"));
    "id,image_save_path,caption\n".to_owned() + &rows.collect::<String>()
}

/// Where memory runs out, whatever takes the last of it: the program says how much was requested and ends with exit code 1, by no signal.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_allocation_is_said_and_ends_with_one() {
    let place = Place::new();
    fs::write(place.path("table.csv"), plain_table()).unwrap();
    let mut said = 0;
    for kilobytes in (30_000..150_000).step_by(10_000) {
        let limited = format!("ulimit -v {kilobytes} && exec \"$@\"");
        if !place.shell(&limited, &["--version"]).output().unwrap().status.success() {
            continue;
        }
        let plant = ["plant", "--data", "table.csv", "--flaws", "noise=10%", "--out", "planted"];
        let output = place.shell(&limited, &plant).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{kilobytes}: {:?} {text}", output.status);
        said += usize::from(text.contains("memory allocation of ") && output.status.code() == Some(1));
        fs::remove_dir_all(place.path("planted")).ok();
    }
    assert!(said > 0, "no limit was one in which the program starts and does not end");
}

/// An image that memory does not hold ends the job and is named: with more memory the result would be another.
#[cfg(target_os = "linux")]
#[test]
fn an_image_that_memory_does_not_hold_is_named() {
    let place = Place::new();
    // The size stands in the header; of the pixels there is only the beginning.
    let mut header = b"IHDR".to_vec();
    header.extend([9000_u32, 9000].iter().flat_map(|side| side.to_be_bytes()));
    header.extend([8, 2, 0, 0, 0]);
    let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [header, b"IDAT\x78\x01".to_vec()] {
        image.extend(u32::try_from(chunk.len() - 4).unwrap().to_be_bytes());
        image.extend(&chunk);
        image.extend(crc32fast::hash(&chunk).to_be_bytes());
    }
    fs::write(place.path("large.png"), image).unwrap();
    fs::write(place.path("table.csv"), plain_table() + "large,large.png,a large one\n").unwrap();
    let plant = ["plant", "--data", "table.csv", "--flaws", "noise=10%", "--out", "planted"];
    let output = place.shell("ulimit -v 600000 && exec \"$@\"", &plant).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let expected = "large.png: not enough memory: 618.0 MiB were requested for its 9000 x 9000 pixels";
    assert!(text.contains(expected), "{text}");
    assert!(!place.path("planted").exists(), "nothing is left");
}
