//! Every command that README.md and docs/*.md show is run, in its order, in a folder for each document: with the program of
//! this build, on small data and small networks. What a document shows as printed is compared by its shape: numbers may
//! differ, words and layout may not. The tables below are all that is done differently than written.
#![cfg(unix)]

#[path = "documented/links.rs"]
mod links;
#[path = "documented/pages.rs"]
mod pages;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use alchemist_engine::{
    cli::Cli,
    data::{
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
};
use clap::Parser;
use pages::{Shown, shape, shown};
use serde_json::{Value, json};

/// Commands that are not run: how they begin or, after `…`, what they hold; and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo test", "this is a test"),
    ("cargo fmt", "a step of .ci/run"),
    ("ALCHEMIST_DEVICE=emulated cargo test", "a step of .ci/run"),
    ("python3 scripts/corpora/", "they need packages of Debian or npm; `openclipart/` is generated instead"),
    ("…ckpt_path=vae_ch160v4096z32.pth", "it needs the released weights"),
    ("img2dataset --url_list", "it downloads; `pack` writes the shards instead"),
];

/// What is changed in a command: a part of it, what stands there instead, and why.
const CHANGED: &[(&str, &str, &str)] = &[
    (
        "alchemist-engine demo",
        "alchemist-engine demo --set ep=1 --set depth=1 --set raterDepth=1 --set proxy_width=64 --set pn=1_2_3 \
         --set bs=64 --set rater_only_epochs=1 --set crossfit.epochs=2",
        "its configuration is built in; with sizes like those of `small` it takes seconds",
    ),
    ("--seeds 5", "--seeds 1 --keep 50% --equal steps", "a twentieth of the time"),
    ("--seeds 3 --keep 20%,50%", "--seeds 1 --keep 50%", "a sixth of the time"),
    (
        "--out runs/comparison-mismatch",
        "--out runs/comparison-mismatch --seeds 1 --keep 50% --equal steps --ratings clarity --samplers top-k",
        "a hundredth of the time",
    ),
    ("rule=matching", "rule=alignment", "the reader of that page adds the rule"),
    (
        "--set rule=gain",
        "--set rule=gain --set rater_only_epochs=1 --set crossfit.epochs=2",
        "the rule trains the rater last, so not for 0 epochs; a tenth of the time",
    ),
    ("--device cuda", "--device cpu", "a machine may have no GPU"),
    (
        "--out runs/int",
        "--out runs/int --set rater_only_epochs=5000",
        "it must not end before it is interrupted",
    ),
];

/// Commands that are run before the one that begins so, and why the document does not show them.
const BEFORE: &[(&str, &str, &str)] = &[
    (
        "alchemist-engine inspect ar-ckpt-ep0.pth --within",
        "alchemist-engine export --checkpoint runs/first --out ar-ckpt-ep0.pth && \
         alchemist-engine convert ar-ckpt-ep0.pth b.pth && alchemist-engine convert b.pth a.safetensors",
        "the reader's own files",
    ),
    (
        "alchemist-engine train --config configs/demo.json --data shards",
        "alchemist-engine pack --data corpus.csv --format webdataset --shard 30 --out shards",
        "what img2dataset writes",
    ),
    (
        "alchemist-engine train --config configs/demo.json --data \"data/train-*",
        "mkdir data && alchemist-engine pack --data corpus.csv --format parquet --out data/train-00000.parquet",
        "the reader's own data set",
    ),
    (
        "alchemist-engine train --config configs/demo.json --data images",
        "alchemist-engine pack --data corpus.csv --format imagefolder --out images && rm images/metadata.jsonl && \
         for image in images/images/*; do echo a caption of $image > ${image%.*}.txt; done",
        "the reader's own images",
    ),
];

/// A command that is interrupted after its first logged step; the document shows what is printed then.
const INTERRUPTED: &str = "--out runs/int";

/// Lines that depend on the machine, by their first word.
const OF_THE_MACHINE: &[&str] = &["cuda"];

/// Keys of every configuration in `configs/`.
fn small() -> Value {
    json!({
        "depth": 1,
        "proxy_width": 64,
        "raterDepth": 1,
        "rater_width": 64,
        "pn": "1_2_3",
        "patch_nums": null,
        "image_tokenizer": {"kind": "pca", "components": 8, "codes": 32, "fit_images": 48},
        "text_encoder": {"kind": "hashed_words", "tokens": 8, "channels": 16},
        "crossfit": {"epochs": 2},
        "bs": 8,
        "ep": 1,
        "rater_only_epochs": 1,
        "workers": 1,
    })
}

/// Writes a data set of 96 training and 32 validation records.
fn write_data(folder: &Path, shares: FlawShares) {
    let settings = DataSetSettings { train: 96, validation: 32, side: 24, shares, seed: 3 };
    write_data_set(folder, &settings).unwrap();
}

/// The columns of a corpus of one's own: without the planted flaws.
fn write_plain(from: &Path, to: &Path, folder: &str) {
    let mut plain = csv::Writer::from_path(to).unwrap();
    plain.write_record(["id", "image_save_path", "caption"]).unwrap();
    for row in csv::Reader::from_path(from).unwrap().records() {
        let row = row.unwrap();
        plain.write_record([&row[0], &format!("{folder}{}", &row[1]), &row[2]]).unwrap();
    }
    plain.flush().unwrap();
}

/// The files that the documents name, in a folder for one of them.
fn prepare(folder: &Path) {
    fs::create_dir(folder.join("configs")).unwrap();
    for entry in fs::read_dir("configs").unwrap() {
        let path = entry.unwrap().path();
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if path.file_name().unwrap() != "schema.json" {
            for (key, value) in small().as_object().unwrap() {
                config[key] = value.clone();
            }
        }
        fs::write(folder.join(&path), config.to_string()).unwrap();
    }
    write_data(&folder.join("openclipart"), FlawShares::NONE);
    write_plain(&folder.join("openclipart/train.csv"), &folder.join("openclipart/corpus.csv"), "");
    write_plain(&folder.join("openclipart/train.csv"), &folder.join("corpus.csv"), "openclipart/");
}

/// A line of the shell in the folder, with the program as `alchemist-engine`.
fn shell(folder: &Path, program: &str, line: &str) -> Command {
    let mut command = Command::new("bash");
    let line = format!("set -e; program=$1; alchemist-engine() {{ {program} \"$@\"; }}\n{line}");
    command.current_dir(folder).args(["-c", &line, "bash", env!("CARGO_BIN_EXE_alchemist-engine")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The arguments of the program in a line of the shell.
fn arguments(line: &str) -> Vec<String> {
    let output = shell(Path::new("."), "printf '%s\\n'", line).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn succeed(mut command: Command, line: &str) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command until a run in `folder` has logged a step, and interrupts it.
fn interrupted(folder: &Path, line: &str) -> Output {
    let child = shell(folder, "exec \"$program\"", line).spawn().unwrap();
    let begun = Instant::now();
    while fs::read(folder.join("runs/int/metrics.jsonl")).unwrap_or_default().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{line}: no step is logged");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{line}: {output:?}");
    output
}

/// What has been used of the tables.
type Used = BTreeSet<&'static str>;

/// A command as it is run.
fn changed(written: &str, used: &mut Used) -> String {
    let mut line = written.to_owned();
    for (from, to, _) in CHANGED {
        if line.contains(from) {
            line = line.replace(from, to);
            used.insert(from);
        }
    }
    line
}

/// Runs the commands of one document; returns why some cannot be run, or print something else.
fn run(document: &str, used: &mut Used) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let mut faults = Vec::new();
    for Shown { line: number, command: written, printed } in shown(document) {
        let mut fault = |why: String| faults.push(format!("{document}:{number}: {written}\n{why}"));
        let written = written.replace("cargo run --release -- ", "alchemist-engine ");
        let reason = NOT_RUN.iter().find(|(what, _)| match what.strip_prefix('…') {
            Some(held) => written.contains(held),
            None => written.starts_with(what),
        });
        if let Some((what, _)) = reason {
            used.insert(what);
        }
        if !written.starts_with("alchemist-engine ") {
            if reason.is_none() {
                fault("neither a command of this program nor one of NOT_RUN".to_owned());
            }
            continue;
        }
        let named = [vec!["alchemist-engine".to_owned()], arguments(&written)].concat();
        if let Err(error) = Cli::try_parse_from(named)
            && error.use_stderr()
        {
            fault(error.to_string());
            continue;
        }
        if reason.is_some() {
            continue;
        }
        for (beginning, before, _) in BEFORE.iter().filter(|(beginning, ..)| written.starts_with(beginning)) {
            succeed(shell(folder, "\"$program\"", before), before);
            used.insert(beginning);
        }
        let line = changed(&written, used);
        let output = if line.contains(INTERRUPTED) {
            interrupted(folder, &line)
        } else {
            shell(folder, "\"$program\"", &line).output().unwrap()
        };
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text is printed"));
        if !matches!(output.status.code(), Some(0 | 130)) {
            fault(format!("{}: {stderr}", output.status));
            continue;
        }
        if let Some(printed) = printed {
            let of = |text: &str| shape(text, OF_THE_MACHINE);
            let found = if stdout.is_empty() { &stderr } else { &stdout };
            if of(&printed) != of(found) {
                fault(format!("shown:\n{printed}\nprinted:\n{found}"));
            }
        }
        if written.starts_with("alchemist-engine demo") {
            // The commands that follow need not take 2,400 records.
            let out = written.split_once("--out ").map_or("runs/demo", |(_, rest)| rest);
            let data = folder.join(out.split_whitespace().next().unwrap()).join("data");
            fs::remove_dir_all(&data).unwrap();
            write_data(&data, FlawShares::default());
        }
    }
    faults
}

/// README.md and the pages in `docs/`.
fn documents() -> Vec<String> {
    let mut documents = vec!["README.md".to_owned()];
    for entry in fs::read_dir("docs").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            documents.push(path.to_str().unwrap().to_owned());
        }
    }
    documents.sort();
    documents
}

#[test]
fn every_documented_command_runs_and_prints_what_is_shown() {
    let documents = documents();
    let (mut used, mut faults, mut commands) = (Used::new(), Vec::new(), 0);
    for document in &documents {
        commands += shown(document).len();
        let begun = Instant::now();
        faults.extend(run(document, &mut used));
        println!("{document}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n\n"));
    assert!(commands > 30, "{commands} commands");
    let listed = NOT_RUN.iter().map(|(what, _)| *what);
    let listed = listed.chain(CHANGED.iter().chain(BEFORE).map(|(what, ..)| *what));
    for what in listed {
        assert!(used.contains(what), "no document has `{what}`; remove it from the table");
    }
}

#[test]
fn every_link_to_a_heading_finds_it() {
    let mut pages = documents();
    pages.extend(["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benches/RESULTS.md"].map(str::to_owned));
    let read = |path: &Path| fs::read_to_string(path).ok();
    let mut broken = Vec::new();
    for page in &pages {
        broken.extend(links::broken(Path::new(page), &fs::read_to_string(page).unwrap(), &read));
    }
    assert!(broken.is_empty(), "{} links lead to no heading:\n{}", broken.len(), broken.join("\n"));
    // Planted: a heading that is not there, one in a code block, a third of two, one of another page, a missing page.
    let page = "\
# Page

[good](#outputs-and---overwrite), [good](#one-two-1), [good](other.md#a-b), [good](../top.md#top)
[good](https://example.org/page#anything), [good](other.md)
[bad](#one-three) and [bad](#a-comment)
[bad](#one-two-2), [bad](other.md#page), [bad](missing.md#page)

## Outputs and `--overwrite`

## One, two

## One, two

```sh
# a comment
```
";
    let read = |path: &Path| match path.to_str() {
        Some("docs/other.md") => Some("# Other\n\n## A. B\n".to_owned()),
        Some("docs/../top.md") => Some("# Top\n".to_owned()),
        _ => None,
    };
    let broken = links::broken(Path::new("docs/page.md"), page, &read);
    let expected =
        ["5: #one-three", "5: #a-comment", "6: #one-two-2", "6: other.md#page", "6: missing.md#page"];
    assert_eq!(broken, expected.map(|link| format!("docs/page.md:{link}")));
}

#[test]
fn the_commands_of_a_page_are_found() {
    let page = "\
# Page

```sh
alchemist-engine demo     # a comment
alchemist-engine plant --data corpus.csv \\
    --out planted
```

It prints:

```text
3 rows
```

## Another section

```text
no output
```

```console
$ alchemist-engine devices
cpu   yes
```
";
    let found: Vec<_> = pages::commands(page)
        .into_iter()
        .map(|Shown { line, command, printed }| (line, command, printed))
        .collect();
    let expected = [
        (4, "alchemist-engine demo     # a comment", Some("3 rows")),
        (5, "alchemist-engine plant --data corpus.csv  --out planted", None),
        (22, "alchemist-engine devices", Some("cpu   yes")),
    ]
    .map(|(line, command, printed)| (line, command.to_owned(), printed.map(|text: &str| text.to_owned())));
    assert_eq!(found, expected);
    assert_eq!(arguments("alchemist-engine sample --prompt \"a b\" # c"), ["sample", "--prompt", "a b"]);
    let shown = "kept     min\n──────  ────\nrating  -1.6\n\ncuda  no\nruns/a.csv";
    assert_eq!(shape(shown, &["cuda"]), ["kept min", "─ ─", "rating #", "runs/a.csv"]);
}
