//! An output never touches an input, nor anything that the program did not write itself: every command with every kind of place that
//! an output could be given.
#![cfg(unix)]

mod workplace;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::json;
use workplace::Workplace;

/// A command that writes, as it is given but for its output.
struct Writer {
    name: &'static str,
    arguments: Vec<&'static str>,
    /// How the output is named: after this flag, or alone at the end.
    flag: Option<&'static str>,
    /// The ending of an output that is a file; `None`: it is a folder.
    ending: Option<&'static str>,
    /// Files and folders that it reads.
    inputs: Vec<&'static str>,
    /// Whether `--overwrite` is known.
    overwrites: bool,
    /// Whether it ends soon when nothing is in its way.
    quick: bool,
}

fn writers() -> Vec<Writer> {
    let file = |name, arguments: &[&'static str], ending, inputs: &[&'static str]| Writer {
        name,
        arguments: arguments.to_vec(),
        flag: Some("--out"),
        ending: Some(ending),
        inputs: inputs.to_vec(),
        overwrites: true,
        quick: true,
    };
    let folder = |name, arguments: &[&'static str], inputs: &[&'static str]| Writer {
        ending: None,
        ..file(name, arguments, "", inputs)
    };
    let data = "corpus/train.csv";
    let pack = |format| ["pack", "--data", data, "--format", format];
    vec![
        folder("train", &["train", "--config", "config.json"], &["corpus", data]),
        folder("fit", &["fit", "--config", "config.json"], &["corpus", data]),
        folder("encode", &["encode", "--config", "config.json"], &["corpus", data]),
        file("score", &["score", "--checkpoint", "run", "--data", data], "csv", &["run", data]),
        file("score parquet", &["score", "--checkpoint", "run", "--data", data], "parquet", &["run", data]),
        file(
            "attribute",
            &["attribute", "--checkpoint", "run", "--data", data, "--validation", "corpus/validation.csv"],
            "csv",
            &["run", data, "corpus/validation.csv"],
        ),
        file("select", &["select", "--ratings", "ratings.csv", "--keep", "50%"], "csv", &["ratings.csv"]),
        file("pack csv", &pack("csv"), "csv", &[data]),
        file("pack parquet", &pack("parquet"), "parquet", &[data]),
        file("pack uids", &["pack", "--data", "uids.csv", "--format", "uids"], "npy", &["uids.csv"]),
        folder("pack imagefolder", &pack("imagefolder"), &["corpus", "corpus/train", data]),
        folder("pack imagefolder-links", &pack("imagefolder-links"), &["corpus", "corpus/train", data]),
        folder("pack webdataset", &pack("webdataset"), &["corpus", "corpus/train", data]),
        folder("sample", &["sample", "--checkpoint", "model", "--prompt", "a circle"], &["model"]),
        file(
            "measure",
            &["measure", "--generated", "corpus/validation.csv", "--reference", data, "--checkpoint", "run"],
            "json",
            &[data, "run"],
        ),
        Writer {
            overwrites: false,
            ..folder(
                "compare",
                &[
                    "compare",
                    "--config",
                    "config.json",
                    "--seeds",
                    "1",
                    "--ratings",
                    "clarity",
                    "--samplers",
                    "top-k",
                    "--keep",
                    "50%",
                    "--equal",
                    "steps",
                ],
                &["corpus", data],
            )
        },
        file("report", &["report", "--of", "run"], "html", &["run"]),
        file("export", &["export", "--checkpoint", "run"], "pth", &["run"]),
        Writer {
            flag: None,
            ..file("convert", &["convert", "weights.pth"], "safetensors", &["weights.pth"])
        },
        folder(
            "plant",
            &["plant", "--data", "uids.csv", "--side", "24"],
            &["corpus", "corpus/train", "uids.csv"],
        ),
        Writer { quick: false, ..folder("demo", &["demo"], &[]) },
    ]
}

/// Every file below a folder, and what links point at.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let about = path.symlink_metadata().unwrap();
            if about.is_symlink() {
                found.insert(
                    path.clone(),
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else if about.is_dir() {
                found.insert(path.clone(), Vec::new());
                walk(&path, found);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, &mut found);
    found
}

/// A workplace with everything that the commands read. It is small; what they compute does not matter.
fn workplace() -> Workplace {
    let keys = json!({"depth": 1, "raterDepth": 1, "ep": 1, "rater_only_epochs": 0});
    let place = Workplace::new(40, &keys);
    fs::rename(place.path("data"), place.path("corpus")).unwrap();
    let config = fs::read_to_string(place.path("config.json")).unwrap();
    fs::write(place.path("config.json"), config.replace("/data/", "/corpus/")).unwrap();
    place.succeed(&["train", "--config", "config.json", "--out", "run"]);
    place.succeed(&["fit", "--config", "config.json", "--out", "model"]);
    place.succeed(&["export", "--checkpoint", "run", "--out", "weights.pth"]);
    let ratings = (0..20).map(|row| format!("{row},{},{row}\n", f64::from(row) * 0.5)).collect::<String>();
    fs::write(place.path("ratings.csv"), format!("id,rating,again\n{ratings}")).unwrap();
    let uids = (0..20)
        .map(|row| format!("{row:032x},corpus/train/{row:06}.png,caption {row}\n"))
        .collect::<String>();
    fs::write(place.path("uids.csv"), format!("id,image_save_path,caption\n{uids}")).unwrap();
    // What is not this program's.
    fs::write(place.path("mine.txt"), "mine").unwrap();
    fs::create_dir(place.path("album")).unwrap();
    for name in ["a.tar", "metadata.jsonl", "config.json"] {
        fs::write(place.path("album").join(name), "mine").unwrap();
    }
    place
}

impl Writer {
    fn given(&self, place: &Workplace, out: &str, overwrite: bool) -> (Option<i32>, String) {
        let mut arguments = self.arguments.clone();
        arguments.extend(self.flag);
        arguments.push(out);
        if overwrite {
            arguments.push("--overwrite");
        }
        let output = place.program(&arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn named(&self, stem: &str) -> String {
        self.ending.map_or_else(|| stem.to_owned(), |ending| format!("{stem}.{ending}"))
    }
}

/// Gives a command an output that it must leave as it is.
#[track_caller]
fn refused(place: &Workplace, writer: &Writer, what: &str, out: &str) {
    for overwrite in [false, true] {
        if overwrite && !writer.overwrites {
            continue;
        }
        let before = everything(place.0.path());
        let (code, errors) = writer.given(place, out, overwrite);
        let case = format!("{} onto {what} ({out}), overwrite: {overwrite}", writer.name);
        assert_eq!(code, Some(1), "{case}: {errors}");
        assert!(errors.contains("error: ") && !errors.contains("panicked"), "{case}: {errors}");
        assert!(everything(place.0.path()) == before, "{case}: something was changed; {errors}");
    }
}

#[test]
fn no_command_touches_an_input_or_what_it_did_not_write() {
    let place = workplace();
    let mut table = String::new();
    for writer in writers() {
        let mut cells = Vec::new();
        for input in &writer.inputs {
            refused(&place, &writer, "an input", input);
        }
        cells.push(if writer.inputs.is_empty() { "-" } else { "refused" });

        let containing = if writer.ending.is_some() { "corpus" } else { "." };
        refused(&place, &writer, "a folder that holds an input", containing);
        cells.push("refused");

        let file = writer.named("mine");
        fs::copy(place.path("mine.txt"), place.path(&file)).unwrap();
        refused(&place, &writer, "a foreign file", &file);
        fs::remove_file(place.path(&file)).unwrap();
        cells.push("refused");

        let folder = writer.named("album-of");
        fs::create_dir(place.path(&folder)).unwrap();
        fs::write(place.path(&folder).join("a.tar"), "mine").unwrap();
        refused(&place, &writer, "a foreign folder", &folder);
        fs::remove_dir_all(place.path(&folder)).unwrap();
        refused(&place, &writer, "a foreign folder", "album");
        cells.push("refused");

        let link = writer.named("link");
        let targets = ["mine.txt", "album", "nowhere"];
        for target in writer.inputs.iter().chain(&targets) {
            symlink(place.path(target), place.path(&link)).unwrap();
            refused(&place, &writer, "a link", &link);
            fs::remove_file(place.path(&link)).unwrap();
        }
        cells.push("refused");

        // In the input's folder an output is as good as anywhere, and nothing else there is touched.
        if writer.quick {
            let before = everything(place.0.path());
            let out = writer.named("corpus/new-output");
            let (code, errors) = writer.given(&place, &out, false);
            assert_eq!(code, Some(0), "{} into the input's folder: {errors}", writer.name);
            let after = everything(place.0.path());
            for (path, bytes) in &before {
                assert!(after.get(path) == Some(bytes), "{} changed {}", writer.name, path.display());
            }
            let left: Vec<_> = after
                .keys()
                .filter(|path| {
                    [".lock", ".unfinished", ".replaced"]
                        .iter()
                        .any(|end| path.to_string_lossy().ends_with(end))
                })
                .collect();
            assert!(left.is_empty(), "{} left {left:?}", writer.name);

            // Once more: refused without the flag, replaced with it, refused when somebody changed it.
            if writer.name != "compare" && writer.name != "encode" {
                let (code, errors) = writer.given(&place, &out, false);
                assert_eq!(code, Some(1), "{} twice: {errors}", writer.name);
                assert!(errors.contains("--overwrite"), "{} twice: {errors}", writer.name);
                let (code, errors) = writer.given(&place, &out, true);
                assert_eq!(code, Some(0), "{} with --overwrite: {errors}", writer.name);
                let changed = match writer.ending {
                    Some(_) => place.path(&out),
                    None => place.path(&out).join("notes.txt"),
                };
                fs::write(&changed, "changed").unwrap();
                refused(&place, &writer, "a changed output", &out);
            }
            for path in everything(place.0.path()).keys().rev() {
                if !before.contains_key(path) {
                    if path.is_dir() && !path.is_symlink() {
                        fs::remove_dir(path).unwrap();
                    } else {
                        fs::remove_file(path).unwrap();
                    }
                }
            }
            cells.push("written next to it");
        } else {
            cells.push("-");
        }
        writeln!(table, "| {} | {} |", writer.name, cells.join(" | ")).unwrap();
    }
    println!(
        "| command | input | holds the input | foreign file | foreign folder | link to each | in the input's folder |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |\n{table}");
}

#[test]
fn packing_over_the_images_that_a_table_names_is_refused() {
    let place = workplace();
    // The user's images lie where a packed folder would put its own.
    place.succeed(&["pack", "--data", "corpus/train.csv", "--format", "imagefolder", "--out", "ds"]);
    let rows = (0..4).map(|row| format!("{row},ds/images/{row:08}.png,a\n")).collect::<String>();
    fs::write(place.path("again.csv"), format!("id,image_save_path,caption\n{rows}")).unwrap();
    let before = everything(place.0.path());
    for format in ["imagefolder", "webdataset"] {
        let arguments = ["pack", "--data", "again.csv", "--format", format, "--out", "ds", "--overwrite"];
        place.refused(&arguments, &["ds", "input"]);
    }
    // A mistyped table, or a name that does not fit, is found before anything goes.
    place.refused(
        &["pack", "--data", "agian.csv", "--format", "imagefolder", "--out", "ds", "--overwrite"],
        &["agian.csv"],
    );
    place.refused(
        &["pack", "--data", "again.csv", "--format", "parquet", "--out", "ds", "--overwrite"],
        &[".parquet"],
    );
    assert!(everything(place.0.path()) == before);
}

#[test]
fn a_run_is_replaced_only_when_the_new_one_can_begin() {
    let place = workplace();
    let before = everything(&place.path("run"));
    fs::write(place.path("wrong.csv"), "id,image_save_path,caption\n1,nowhere.png,a\n").unwrap();
    for command in ["train", "fit"] {
        let run = if command == "train" { "run" } else { "model" };
        let before = everything(&place.path(run));
        for wrong in [
            &["--data", "mistyped.csv"][..],
            &["--data", "wrong.csv"],
            &["--set", "pretrained_ckpt=nope.pth"],
            &["--set", "bs=100000"],
        ] {
            let arguments =
                [&[command, "--config", "config.json", "--out", run, "--overwrite"], wrong].concat();
            place.refused(&arguments, &["error: "]);
            assert!(everything(&place.path(run)) == before, "{command} {wrong:?} touched the old run");
        }
    }
    // A file of the user's in it, and a corpus within it.
    fs::write(place.path("run/notes.txt"), "mine").unwrap();
    place.refused(&["train", "--config", "config.json", "--out", "run", "--overwrite"], &["notes.txt"]);
    fs::remove_file(place.path("run/notes.txt")).unwrap();
    fs::copy(place.path("corpus/train.csv"), place.path("run/corpus.csv")).unwrap();
    place.refused(
        &["train", "--config", "config.json", "--data", "run/corpus.csv", "--out", "run", "--overwrite"],
        &["run", "input"],
    );
    fs::remove_file(place.path("run/corpus.csv")).unwrap();
    assert!(everything(&place.path("run")) == before);
    place.succeed(&["train", "--config", "config.json", "--out", "run", "--overwrite", "--set", "seed=5"]);
    assert!(everything(&place.path("run")) != before);
    assert!(!place.path(".run.replaced").exists() && !place.path(".run.unfinished").exists());
}

#[test]
fn folders_of_others_beside_an_output_stay() {
    let place = workplace();
    fs::create_dir(place.path("o.parts")).unwrap();
    fs::write(place.path("o.parts/mine.txt"), "mine").unwrap();
    place.succeed(&["score", "--checkpoint", "run", "--data", "corpus/train.csv", "--out", "o.csv"]);
    assert_eq!(fs::read(place.path("o.parts/mine.txt")).unwrap(), b"mine");
    fs::write(place.path("p.histogram.png"), "mine").unwrap();
    place.refused(
        &["score", "--checkpoint", "run", "--data", "corpus/train.csv", "--out", "p.csv"],
        &["p.histogram.png", "not written"],
    );
    assert_eq!(fs::read(place.path("p.histogram.png")).unwrap(), b"mine");
    assert!(!place.path("p.csv").exists());
}

#[test]
fn a_set_that_is_half_replaced_is_refused_and_made_anew() {
    let place = workplace();
    place.succeed(&["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", "s.csv"]);
    let whole = everything(place.0.path());
    let marker = place.path(".s.csv.alchemist.json");
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace("\"complete\"", "\"unfinished\"")).unwrap();
    let arguments =
        ["select", "--ratings", "s.csv", "--rating-column", "again", "--keep", "50%", "--out", "t.csv"];
    place.refused(&arguments, &["s.csv", "run that command again"]);
    place.succeed(&["select", "--ratings", "ratings.csv", "--keep", "50%", "--out", "s.csv"]);
    assert!(everything(place.0.path()) == whole);
}

#[test]
fn two_jobs_do_not_write_one_output() {
    let place = workplace();
    // A lock is held by an open file; the second job is of another kind.
    let holder =
        place.program(&["fit", "--config", "config.json", "--out", "slow", "--set", "ep=200"]).spawn();
    let mut holder = holder.unwrap();
    let lock = place.path(".slow.lock");
    for _ in 0..600 {
        if fs::read(&lock).is_ok_and(|text| !text.is_empty()) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for arguments in [
        &["train", "--config", "config.json", "--out", "slow"][..],
        &["train", "--config", "config.json", "--out", "slow", "--overwrite"],
        &["plant", "--data", "uids.csv", "--side", "24", "--out", "slow"],
    ] {
        place.refused(arguments, &["slow", "is being written by", "process"]);
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The lock of a dead process is no obstacle.
    place.succeed(&["fit", "--config", "config.json", "--out", "slow", "--overwrite"]);
    assert!(!lock.exists());
}
