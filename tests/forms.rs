//! Corpora in every form, read by every command: what comes out is that of the CSV, value for value.

#[path = "forms/made.rs"]
mod made;
#[path = "workplace/mod.rs"]
mod workplace;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::data::{ColumnNames, Corpus, Record, corpus::CorpusFormat};
use made::{Column, Made, Pair, archive, every, gzipped, pairs, parquet};
use serde_json::json;
use workplace::Workplace;

/// A corpus of 40 pairs in every form, and a run.
fn place() -> (Workplace, Vec<Pair>, Vec<Made>) {
    let keys = json!({
        "depth": 1, "raterDepth": 1, "proxy_width": 64, "rater_width": 64, "ep": 1, "rater_only_epochs": 0,
    });
    let place = Workplace::new(40, &keys);
    let pairs = pairs(&place.path("data/train.csv"));
    let forms = every(place.0.path(), &pairs);
    (place, pairs, forms)
}

fn trained() -> (Workplace, Vec<Pair>, Vec<Made>) {
    let found = place();
    found.0.succeed(&["train", "--config", "config.json", "--data", "csv/c.csv", "--out", "run"]);
    found
}

fn read(path: &Path) -> Vec<Record> {
    Corpus::open(path, &ColumnNames::default())
        .and_then(Corpus::read_all)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A column of a CSV.
fn column(path: &Path, name: &str) -> Vec<String> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let at = reader.headers().unwrap().iter().position(|column| column == name).unwrap();
    reader.records().map(|row| row.unwrap()[at].to_owned()).collect()
}

#[test]
fn every_form_has_the_records_of_the_csv() {
    let (place, pairs, forms) = place();
    for Made { data, .. } in &forms {
        let records = read(&place.path(data));
        assert_eq!(records.len(), pairs.len(), "{data}");
        for (at, (record, pair)) in records.iter().zip(&pairs).enumerate() {
            assert_eq!((record.row, &record.caption), (at as u64, &pair.caption), "{data}");
            assert_eq!(record.image.read(1 << 30).unwrap(), pair.image, "{data}: {}", record.image);
            // A table of the same text, in the same folder, names the same image.
            let corpus = Corpus::open(place.path(data), &ColumnNames::default()).unwrap();
            let written = &record.fields[corpus.schema().image];
            assert!(
                record.image.as_path().ends_with(written) || Path::new(written).is_absolute(),
                "{written}"
            );
        }
        // In another order, too.
        for at in [39, 0, 20, 19, 21, 3] {
            assert_eq!(records[at].image.read(1 << 30).unwrap(), pairs[at].image, "{data}");
        }
        // Batches end at shards, and reading resumes from every position.
        let open = || Corpus::open(place.path(data), &ColumnNames::default()).unwrap();
        let (mut corpus, mut next, mut rows) = (open(), None, Vec::new());
        loop {
            let batch = corpus.batch(next, 7).unwrap();
            assert_eq!(open().batch(next, 7).unwrap().records, batch.records, "{data}");
            rows.extend(batch.records);
            next = batch.next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(rows, records, "{data}");
    }
}

#[test]
fn every_form_is_rated_as_the_csv_is_and_is_said_once() {
    let (place, _, forms) = trained();
    let mut expected = None;
    for Made { data, taken_for } in &forms {
        let said =
            place.succeed(&["score", "--checkpoint", "run", "--data", data, "--out", "r.csv", "--overwrite"]);
        assert!(said.contains("40 rows in = 40 scored + 0 failed"), "{data}: {said}");
        assert_eq!(said.matches(": read as ").count(), usize::from(!taken_for.is_empty()), "{data}: {said}");
        assert!(said.contains(taken_for), "{data}: {said}");
        let ratings = column(&place.path("r.csv"), "rating");
        assert_eq!(expected.get_or_insert_with(|| ratings.clone()), &ratings, "{data}");
        // The ratings name the images, so that a subset of them is a corpus.
        place.succeed(&["select", "--ratings", "r.csv", "--keep", "50%", "--out", "s.csv", "--overwrite"]);
        assert!(read(&place.path("s.csv")).iter().all(|record| record.image.read(1 << 30).is_ok()), "{data}");
        // In another folder the ids stay, so that the run still knows the records.
        fs::create_dir_all(place.path("elsewhere")).unwrap();
        let copied = ["select", "--ratings", "r.csv", "--data", data, "--keep", "50%", "--overwrite"];
        place.succeed(&[&copied[..], &["--out", "elsewhere/s.csv"]].concat());
        let ids = |table: &str| -> Vec<String> {
            read(&place.path(table)).into_iter().map(|record| record.id).collect()
        };
        if !data.ends_with(".csv") {
            assert_eq!(ids("elsewhere/s.csv"), ids("s.csv"), "{data}");
        }
    }
}

/// Commands besides `score`: arguments in which DATA is the corpus, the output to compare and what to compare of it.
const COMMANDS: [(&[&str], &str); 6] = [
    (
        &["attribute", "--checkpoint", "run", "--data", "DATA", "--validation", "DATA", "--out", "OUT.csv"],
        "loss",
    ),
    (&["plant", "--data", "DATA", "--side", "24", "--out", "OUT"], "caption"),
    (&["pack", "--format", "webdataset", "--data", "DATA", "--out", "OUT"], "caption"),
    (&["pack", "--format", "imagefolder", "--data", "DATA", "--out", "OUT"], "caption"),
    (&["pack", "--format", "csv", "--data", "DATA", "--out", "OUT.csv"], "caption"),
    (&["select", "--keep", "10", "--ratings", "RATINGS", "--data", "DATA", "--out", "OUT.csv"], "caption"),
];

/// Forms that contain their images, or are folders, one of each kind.
const KINDS: [&str; 6] =
    ["csv/c.csv", "tar_folder", "tar_gz/c.tar.gz", "parquet_parts", "folder_txt", "folder_csv"];

#[test]
fn every_command_reads_every_kind_of_corpus() {
    let (place, _, _) = trained();
    let mut expected: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (number, data) in KINDS.iter().enumerate() {
        let ratings = format!("ratings{number}.csv");
        place.succeed(&["score", "--checkpoint", "run", "--data", data, "--out", &ratings]);
        for (at, (arguments, compared)) in COMMANDS.iter().enumerate() {
            let out = format!("out-{number}-{at}");
            let arguments: Vec<String> = arguments
                .iter()
                .map(|word| word.replace("DATA", data).replace("OUT", &out).replace("RATINGS", &ratings))
                .collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            place.succeed(&arguments);
            let table = place.path(&format!("{out}.csv"));
            let found = match () {
                () if *compared == "loss" => column(&table, "loss"),
                () if table.exists() => captions(&table),
                () if place.path(&out).join("corpus.csv").exists() => {
                    captions(&place.path(&out).join("corpus.csv"))
                }
                () => captions(&place.path(&out)),
            };
            assert_eq!(expected.entry(at).or_insert_with(|| found.clone()), &found, "{arguments:?}");
        }
        // The cache serves the corpus: with its tokens the ratings are the same.
        let cache = format!("tokens{number}");
        place.succeed(&["encode", "--run", "run", "--data", data, "--out", &cache, "--shard", "16"]);
        let set = format!("token_cache={}", place.path(&cache).display());
        let out = format!("cached{number}.csv");
        place.succeed(&["score", "--checkpoint", "run", "--data", data, "--out", &out, "--set", &set]);
        assert_eq!(column(&place.path(&out), "rating"), column(&place.path(&ratings), "rating"), "{data}");
        let said = place.succeed(&[
            "measure",
            "--generated",
            data,
            "--reference",
            "csv/c.csv",
            "--checkpoint",
            "run",
        ]);
        assert!(said.contains("40"), "{said}");
        let report = format!("report{number}.html");
        place.succeed(&["report", "--of", "run", "--ratings", &ratings, "--data", data, "--out", &report]);
    }
}

/// The captions and the images' bytes of a corpus, in order.
fn captions(path: &Path) -> Vec<String> {
    let digest =
        |record: &Record| format!("{} {:?}", record.caption, record.image.read(1 << 30).unwrap().len());
    read(path).iter().map(digest).collect()
}

#[test]
fn training_on_a_container_gives_the_run_of_the_csv() {
    let (place, _, _) = place();
    for command in ["train", "fit"] {
        let run = |data: &str, out: &str| {
            place.succeed(&[
                command,
                "--config",
                "config.json",
                "--data",
                data,
                "--validation",
                data,
                "--out",
                out,
            ]);
            fs::read(place.path(out).join("metrics.jsonl")).unwrap()
        };
        let expected = run("csv/c.csv", &format!("{command}-csv"));
        for (number, data) in ["tar_list/{0..1}.tar", "structs/c.parquet", "folder_jsonl"].iter().enumerate()
        {
            assert_eq!(run(data, &format!("{command}-{number}")), expected, "{command} {data}");
        }
    }
    place.succeed(&[
        "compare",
        "--config",
        "config.json",
        "--data",
        "tar_folder",
        "--seeds",
        "1",
        "--keep",
        "50%",
        "--ratings",
        "clarity",
        "--samplers",
        "top-k",
        "--equal",
        "epochs",
        "--set",
        "bs=4",
        "--out",
        "compared",
    ]);
}

#[test]
fn a_killed_job_on_a_container_ends_with_the_same_bytes() {
    let (place, _, _) = trained();
    for (number, data) in
        ["tar_folder", "tar_gz/c.tar.gz", "parquet_parts", "csv_gz/c.csv.gz"].iter().enumerate()
    {
        let names = ["whole", "killed"].map(|name| format!("{name}{number}.csv"));
        let score = |out: &str| {
            ["score", "--checkpoint", "run", "--batch", "4", "--data", data, "--out", out].map(str::to_owned)
        };
        let arguments = score(&names[0]);
        place.succeed(&arguments.each_ref().map(String::as_str));
        let arguments = score(&names[1]);
        let arguments = arguments.each_ref().map(String::as_str);
        place.killed(&arguments, 4, 20, 30);
        if !place.path(&names[1]).exists() {
            place.succeed(&arguments);
        }
        let bytes = names.map(|name| fs::read(place.path(&name)).unwrap());
        assert_eq!(bytes[0], bytes[1], "{data}");
    }
}

#[test]
fn an_output_is_never_a_file_of_the_corpus() {
    let (place, _, _) = trained();
    place.succeed(&["score", "--checkpoint", "run", "--data", "csv/c.csv", "--out", "part-9.parquet"]);
    for data in ["part-*.parquet", "{part-9,part-9}.parquet"] {
        let rest = ["--out", "part-9.parquet", "--overwrite"];
        let arguments = [&["score", "--checkpoint", "run", "--data", data][..], &rest].concat();
        let word = if data.contains('*') { "is an input" } else { "listed twice" };
        let output = place.program(&arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("is an input") || said.contains(word), "{said}");
    }
    place.refused(
        &["plant", "--data", "tar_folder", "--out", "tar_folder", "--overwrite"],
        &["is an input and would be replaced"],
    );
}

#[test]
fn hostile_archives_are_named_and_counted() {
    let (place, pairs, _) = place();
    let path = place.path("h.tar");
    let open = || Corpus::open(&path, &ColumnNames::default());
    let all = || open().unwrap().skipping_malformed(true).read_all().unwrap();
    // Names are data: they lead nowhere, and come back as they are.
    for key in ["../../up", "/root", "a//b", "./here", "50%", &"long".repeat(60)] {
        let bytes = renamed(&archive(&pairs[..1], |_| "k".to_owned()), key);
        fs::write(&path, bytes).unwrap();
        let record = &all()[0];
        assert_eq!(record.image.read(1 << 30).unwrap(), pairs[0].image, "{key}");
        assert!(record.image.as_path().starts_with(&path) && !record.fields[1].contains(".."), "{key}");
        let table = place.path("h.csv");
        fs::write(&table, format!("id,image,caption\n1,\"{}\",x\n", record.fields[1])).unwrap();
        assert_eq!(read(&table)[0].image.read(1 << 30).unwrap(), pairs[0].image, "{key}");
    }
    // Cut anywhere: rows are usable, malformed or fail, and none is lost silently.
    let whole = archive(&pairs[..3], |pair| pair.id.clone());
    for cut in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..cut]).unwrap();
        let Ok(corpus) = open() else { continue };
        if let Ok(records) = corpus.skipping_malformed(true).read_all() {
            for (record, pair) in records.iter().zip(&pairs) {
                let image = record.image.read(1 << 30);
                assert!(
                    record.malformed.is_some() || image.is_err() || image.unwrap() == pair.image,
                    "{cut}"
                );
            }
        }
    }
    // A member twice, a key without an image, a nested value as the caption.
    let mut twice = archive(&pairs[..1], |pair| pair.id.clone());
    twice.truncate(twice.len() - 1024);
    twice.extend(archive(&pairs[..1], |pair| pair.id.clone()));
    fs::write(&path, &twice).unwrap();
    assert!(all()[0].malformed.as_ref().unwrap().contains("occurs twice"));
    // Compressed and cut, and a table that expands without end.
    fs::write(&path, &gzipped(&whole)[..2000]).unwrap();
    let error = open().and_then(Corpus::read_all).unwrap_err().to_string();
    assert!(error.contains("h.tar") && error.contains("copy the file again"), "{error}");
    let bomb = place.path("bomb.csv");
    fs::write(&bomb, gzipped(&vec![b'a'; 64 << 20])).unwrap();
    let error = Corpus::open(&bomb, &ColumnNames::default()).unwrap_err().to_string();
    assert!(error.contains("16 MiB"), "{error}");
    // Long rows come in smaller batches.
    let row = |at: usize| format!("{at},x.png,{}\n", "a".repeat(10 << 20));
    let text: String = std::iter::once("id,image,caption\n".to_owned()).chain((0..9).map(row)).collect();
    fs::write(&bomb, gzipped(text.as_bytes())).unwrap();
    let (mut corpus, mut next, mut lengths) =
        (Corpus::open(&bomb, &ColumnNames::default()).unwrap(), None, vec![]);
    while lengths.is_empty() || next.is_some() {
        let batch = corpus.batch(next, 100).unwrap();
        lengths.push(batch.records.len());
        next = batch.next;
    }
    assert_eq!(lengths, [4, 4, 1]);
}

/// The archive with `k` in the names replaced, in long names of GNU tar.
fn renamed(archive: &[u8], key: &str) -> Vec<u8> {
    let mut source = tar::Archive::new(archive);
    let mut target = Vec::new();
    for entry in source.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().replacen('k', key, 1);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        for (kind, name, bytes) in [
            (tar::EntryType::GNULongName, "././@LongLink", name.as_bytes()),
            (tar::EntryType::Regular, "x", &bytes),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            target.extend_from_slice(header.as_bytes());
            target.extend_from_slice(bytes);
            target.resize(target.len().next_multiple_of(512), 0);
        }
    }
    target.resize(target.len() + 1024, 0);
    target
}

#[test]
fn keys_that_repeat_between_shards_are_refused_with_the_cure() {
    let (place, pairs, _) = trained();
    fs::create_dir(place.path("again")).unwrap();
    let twice = archive(&pairs[..8], |pair| pair.id.clone());
    ["0.tar", "1.tar"].iter().for_each(|name| fs::write(place.path("again").join(name), &twice).unwrap());
    let score = ["score", "--checkpoint", "run", "--data", "again", "--out", "again.csv"];
    place.refused(&score, &["1.tar: k0000.png: the id `k0000` is already in", "--set columns.id=__path__"]);
    let said = place.succeed(&[&score[..], &["--set", "columns.id=__path__"]].concat());
    assert!(said.contains("16 rows in = 16 scored"), "{said}");
    let ids = column(&place.path("again.csv"), "image");
    // The ratings lie in another folder than the shards.
    assert!(Path::new(&ids[8]).is_absolute() && ids[8].ends_with("again/1.tar/k0000.png"), "{ids:?}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (place, pairs, _) = place();
    let says = |data: &str, words: &[&str]| {
        let error =
            Corpus::open(place.path(data), &ColumnNames::default()).and_then(Corpus::read_all).unwrap_err();
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "{data}: {error}"));
    };
    let write = |name: &str, text: &str| {
        let path: PathBuf = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("d/a.csv", "id,image,caption\n1,a.png,x\n");
    write("d/b.csv", "id,image,text\n2,a.png,x\n");
    says("d", &["b.csv", "`caption` is missing"]);
    says("d/{a,c}.csv", &["c.csv", "there is no such file"]);
    says("d/{a,a}.csv", &["a.csv is listed twice"]);
    says("d/*.tar", &["no file matches"]);
    write("l.jsonl", "{\"id\":1,\"image\":\"a.png\",\"caption\":[\"x\"]}\n");
    says("l.jsonl", &["l.jsonl, line 1", "`caption` is a list"]);
    write("l.jsonl", "{\"id\":1,\"image\":\"a.png\",\"caption\":\"x\"}\n{\"id\":2,\n");
    says("l.jsonl", &["line 2", "not one JSON object"]);
    write("u.jsonl", "{\"id\":1,\"url\":\"https://host/a.png\",\"caption\":\"x\"}\n");
    says("u.jsonl", &["`url`", "img2dataset"]);
    fs::create_dir(place.path("p")).unwrap();
    parquet(&place.path("p/part-0.parquet"), &pairs[..3], Column::Struct, 2);
    parquet(&place.path("p/part-1.parquet"), &pairs[3..5], Column::Path, 2);
    says("p", &["part-1.parquet", "`image` is missing"]);
    let bytes = fs::read(place.path("p/part-0.parquet")).unwrap();
    fs::write(place.path("p/part-1.parquet"), &bytes[..bytes.len() - 5]).unwrap();
    says("p/part-1.parquet", &["part-1.parquet", "Parquet"]);
    let output = place
        .program(&[
            "score",
            "--checkpoint",
            "run",
            "--data",
            "csv/c.csv",
            "--format",
            "lance",
            "--out",
            "x.csv",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("unknown corpus format `lance`; expected one of csv, jsonl"), "{said}");
    // The content decides, unless a form is given.
    fs::copy(place.path("csv/c.csv"), place.path("c.parquet")).unwrap();
    assert_eq!(read(&place.path("c.parquet")).len(), 40);
    let refused =
        Corpus::open_as(place.path("csv/c.csv"), &ColumnNames::default(), Some(CorpusFormat::Parquet));
    assert!(refused.unwrap_err().to_string().contains("Parquet"));
}
