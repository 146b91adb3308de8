//! The token cache as a user meets it: what is trained and rated with it equals what is trained and rated without it, a stopped
//! `encode` goes on, a damaged shard alone is made again, and a cache of another encoder is refused.
#![cfg(unix)]

mod common;
#[allow(dead_code, reason = "the encoders' own tests use the rest")]
#[path = "text_encoders/folders.rs"]
mod folders;

mod workplace;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use alchemist_engine::tokens::cache::TokenCache;
use folders::{POSITIONS, clip_pipeline, clip_weights};
use serde_json::{Value, json};
use workplace::{Workplace, contents};

fn workplace() -> Workplace {
    let sizes =
        json!({"depth": 1, "raterDepth": 1, "proxy_width": 64, "rater_width": 64, "ep": 2, "rule": "loss"});
    Workplace::new(64, &sizes)
}

/// The files of a cache that hold what was encoded.
fn shards(work: &Workplace, cache: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(work.path(cache)).unwrap().map(|entry| entry.unwrap().path());
    contents(entries.filter(|path| path.is_file() && !path.ends_with(".alchemist.json")))
}

const ENCODE: [&str; 5] = ["encode", "--config", "config.json", "--shard", "13"];

#[test]
fn what_is_trained_and_rated_with_it_is_the_same() {
    let work = workplace();
    let said = work.succeed(&[&ENCODE[..], &["--out", "cache"]].concat());
    assert!(said.contains("80 rows in = 80 encoded + 0 failed"), "{said}");
    // 64 rows make 4 shards of 13 and one of 12, 16 rows two more.
    assert!(said.contains("7 shards, 7 of them new"), "{said}");
    for (command, run) in [("train", "rated"), ("fit", "fitted")] {
        work.succeed(&[command, "--config", "config.json", "--out", run]);
        let other = format!("{run}-cached");
        work.succeed(&[command, "--config", "config.json", "--out", &other, "--set", "token_cache=cache"]);
        assert!(work.result(run) == work.result(&other), "{command} gives other bits with the cache");
    }
    let rate = |out: &str, more: &[&str]| {
        let arguments = ["score", "--checkpoint", "rated", "--data", "data/train.csv", "--out", out];
        work.succeed(&[&arguments[..], more].concat());
        fs::read(work.path(out)).unwrap()
    };
    let expected = rate("plain.csv", &[]);
    assert!(expected == rate("cached.csv", &["--set", "token_cache=cache"]));
    // Nothing is decoded: the codes serve without the images.
    fs::rename(work.path("data/train"), work.path("data/away")).unwrap();
    assert!(expected == rate("without.csv", &["--set", "token_cache=cache"]));
    work.refused(
        &["score", "--checkpoint", "rated", "--data", "data/train.csv", "--out", "none.csv"],
        &["data/train.csv", "none of", "none.failed.csv"],
    );
    fs::rename(work.path("data/away"), work.path("data/train")).unwrap();
    // An image that is another one now is tokenized anew, and one that was only copied is not.
    let images: Vec<PathBuf> =
        fs::read_dir(work.path("data/train")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (first, second) = (&images[0], &images[1]);
    let original = fs::read(first).unwrap();
    fs::write(first, fs::read(second).unwrap()).unwrap();
    let changed = rate("changed.csv", &["--set", "token_cache=cache"]);
    assert!(changed != expected && changed == rate("changed-plain.csv", &[]));
    fs::write(first, original).unwrap();
    assert!(expected == rate("again.csv", &["--set", "token_cache=cache"]));
}

#[test]
fn a_stopped_encode_goes_on_and_a_damaged_shard_alone_is_made_again() {
    let work = workplace();
    work.succeed(&[&ENCODE[..], &["--out", "whole"]].concat());
    let expected = shards(&work, "whole");
    let arguments = [&ENCODE[..], &["--out", "killed"]].concat();
    let kills = work.killed(&arguments, 4, 30, 40);
    assert!(kills > 0, "encode was never killed");
    // What `encode` left is refused until it is whole, whether it was killed early or at its last shard.
    fs::remove_file(work.path("whole/shard-00006.json")).unwrap();
    work.refused(
        &["train", "--config", "config.json", "--out", "run", "--set", "token_cache=whole"],
        &["whole", "is incomplete"],
    );
    work.succeed(&[&ENCODE[..], &["--out", "whole"]].concat());
    work.succeed(&arguments);
    assert!(shards(&work, "whole") == expected);
    // Images are named by their paths from the cache's folder, so two caches side by side are equal.
    assert!(shards(&work, "killed") == expected, "a killed and resumed encode differs");

    let damaged = work.path("whole/shard-00003.codes.safetensors");
    let inode = |name: &str| fs::metadata(work.path("whole").join(name)).unwrap().ino();
    let names: Vec<String> = expected.keys().filter(|name| name.ends_with(".safetensors")).cloned().collect();
    for (what, damage) in [
        (
            "cut off",
            Box::new(|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2)) as Box<dyn Fn(&mut Vec<u8>)>,
        ),
        ("changed", Box::new(|bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1)),
    ] {
        let before: Vec<u64> = names.iter().map(|name| inode(name)).collect();
        let mut bytes = fs::read(&damaged).unwrap();
        damage(&mut bytes);
        fs::write(&damaged, bytes).unwrap();
        work.refused(
            &["fit", "--config", "config.json", "--out", what, "--set", "token_cache=whole"],
            &["shard-00003.codes.safetensors", "rebuild this shard"],
        );
        let said = work.succeed(&[&ENCODE[..], &["--out", "whole"]].concat());
        assert!(said.contains("7 shards, 1 of them new"), "{what}: {said}");
        assert!(shards(&work, "whole") == expected, "{what}");
        let after: Vec<u64> = names.iter().map(|name| inode(name)).collect();
        let written = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(written, 1, "{what}: {names:?}");
    }
}

#[test]
fn a_cache_of_something_else_is_refused() {
    let work = workplace();
    work.succeed(&[&ENCODE[..], &["--out", "cache", "--text", "f32"]].concat());
    let train = |out: &str, more: &[&str], words: &[&str]| {
        let arguments = ["train", "--config", "config.json", "--out", out, "--set", "token_cache=cache"];
        work.refused(&[&arguments[..], more].concat(), words);
    };
    // Another resolution, and another pyramid.
    train("side", &["--set", "patch_size=10"], &["24 pixels", "30"]);
    train("pyramid", &["--set", "pn=1_3"], &["[1, 2, 3]", "[1, 3]"]);
    train("alpha", &["--set", "compat.drop_alpha=true"], &["other image preprocessing"]);
    train("truncated", &["--set", "truncated_images=true"], &["other image preprocessing"]);
    train("text", &["--set", "seed=4"], &["another text encoder"]);
    // A run that has a tokenizer of its own.
    let other = ["train", "--config", "config.json", "--out", "other", "--set", "seed=4"];
    work.succeed(&other);
    work.refused(
        &[
            "score",
            "--checkpoint",
            "other",
            "--data",
            "data/train.csv",
            "--out",
            "r.csv",
            "--set",
            "token_cache=cache",
        ],
        &["another image tokenizer", "encode the corpus again"],
    );
    // The run's own encoders serve as well.
    work.succeed(&["encode", "--run", "other", "--out", "of-run"]);
    let score = ["score", "--checkpoint", "other", "--data", "data/train.csv", "--out", "r.csv"];
    work.succeed(&[&score[..], &["--set", "token_cache=of-run"]].concat());
    let with = fs::read(work.path("r.csv")).unwrap();
    work.succeed(&[&score[..], &["--overwrite"]].concat());
    assert!(with == fs::read(work.path("r.csv")).unwrap());
    // A folder of something else, and a cache of other tables or encoders.
    let encode = |more: &[&str], words: &[&str]| work.refused(&[&ENCODE[..], more].concat(), words);
    encode(&["--out", "data"], &["data", "input"]);
    encode(
        &["--out", "cache", "--data", "data/train.csv", "--text", "f32"],
        &["of other tables", "--overwrite"],
    );
    encode(&["--out", "cache"], &["built with other encoders or options", "--overwrite"]);
    work.refused(
        &["train", "--config", "config.json", "--out", "none", "--set", "token_cache=data"],
        &["data contains no token cache", "token_cache="],
    );
    let written: Value = serde_json::from_slice(&fs::read(work.path("cache/cache.json")).unwrap()).unwrap();
    let mut newer = written;
    newer["format"] = json!(9);
    fs::write(work.path("cache/cache.json"), newer.to_string()).unwrap();
    train("newer", &[], &["has format 9"]);
    encode(&["--out", "cache", "--text", "f32"], &["cannot be read"]);
    // One of an older version, which has no seals, serves, but is not gone on with.
    work.succeed(&[&ENCODE[..], &["--out", "older"]].concat());
    let unsealed = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = work.path("older").join(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("sha256").unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    unsealed("cache.json", &|value| value["format"] = json!(1));
    for shard in 0..7 {
        unsealed(&format!("shard-{shard:05}.json"), &|value| {
            drop(value.as_object_mut().unwrap().remove("images"))
        });
    }
    let older = ["train", "--config", "config.json", "--out", "of-older", "--set", "token_cache=older"];
    work.succeed(&older);
    encode(&["--out", "older"], &["with an older format", "--overwrite"]);
    // A file that was changed by hand is not thrown away.
    encode(&["--out", "cache", "--overwrite"], &["cache.json", "has changed since"]);
    fs::remove_file(work.path("cache/cache.json")).unwrap();
    work.succeed(&[&ENCODE[..], &["--out", "cache", "--overwrite"]].concat());
}

/// One rule for all jobs: an image that is another one now ends a job that goes on, whatever of it is done.
#[test]
fn an_image_that_was_replaced_or_deleted_is_named() {
    let work = workplace();
    let arguments = [&ENCODE[..], &["--out", "cache"]].concat();
    work.succeed(&arguments);
    let expected = shards(&work, "cache");
    let shard = work.path("cache/shard-00001.json");
    fs::remove_file(&shard).unwrap();
    let image = work.path("data/train/000003.png");
    let original = fs::read(&image).unwrap();
    let mut other = original.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&image, &other).unwrap();
    work.refused(&arguments, &["000003.png: was replaced", "remove that folder"]);
    fs::remove_file(&image).unwrap();
    work.refused(&arguments, &["000003.png: was replaced, added or deleted"]);
    // The same file again, if under another time.
    fs::write(&image, &original).unwrap();
    work.succeed(&arguments);
    assert!(shards(&work, "cache") == expected);
    // A table that was changed is named.
    let table = work.path("data/train.csv");
    let rows = fs::read_to_string(&table).unwrap();
    let mut lines: Vec<&str> = rows.lines().collect();
    lines.swap(4, 5);
    fs::write(&table, lines.join("\n") + "\n").unwrap();
    work.refused(&arguments, &["changed since", "data/train.csv", "--overwrite"]);
}

/// Text states are read only when they are needed, and then checked.
#[test]
fn a_damaged_shard_of_text_states_is_not_used() {
    let work = workplace();
    let arguments = [&ENCODE[..], &["--out", "cache", "--text", "f32"]].concat();
    work.succeed(&arguments);
    let expected = shards(&work, "cache");
    let path = work.path("cache/shard-00002.text.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    work.refused(
        &["train", "--config", "config.json", "--out", "run", "--set", "token_cache=cache"],
        &["shard-00002.text.safetensors", "rebuild this shard"],
    );
    let said = work.succeed(&arguments);
    assert!(said.contains("7 shards, 1 of them new"), "{said}");
    assert!(shards(&work, "cache") == expected);
}

/// A released encoder's states: f32 and token ids give the same bits, bf16 the same for a caption whether the cache holds it or
/// not, and the encoder itself is not needed where every caption's states are held.
#[test]
fn text_states_are_kept_of_a_released_encoder() {
    let work = workplace();
    clip_pipeline(&work.path("clip"), &clip_weights());
    let clip = [
        "--set",
        "text_encoder.kind=clip",
        "--set",
        "text_encoder.path=clip",
        "--set",
        "text_encoder.tokens=null",
        "--set",
        "text_encoder.channels=null",
    ];
    for (out, text) in [("f32", &["--text", "f32"][..]), ("bf16", &[]), ("ids", &["--text", "ids"])] {
        let said = work.succeed(&[&ENCODE[..], &clip, &["--out", out], text].concat());
        assert!(!said.contains("states of 0 captions"), "{said}");
        let cache = TokenCache::open(&work.path(out)).unwrap();
        assert_eq!(cache.images(), 80);
        let (codes, numbers) = cache.read_all().unwrap();
        assert_eq!(codes, 80 * 14);
        if out == "ids" {
            assert_eq!(numbers, POSITIONS * cache.captions());
        } else {
            assert!(numbers > 64 * cache.captions(), "{numbers} numbers of {} captions", cache.captions());
        }
    }
    let train = |out: &str, more: &[&str]| {
        work.succeed(&[&["train", "--config", "config.json", "--out", out][..], &clip, more].concat());
    };
    train("plain", &[]);
    train("exact", &["--set", "token_cache=f32"]);
    assert!(work.result("plain") == work.result("exact"));
    train("by-ids", &["--set", "token_cache=ids"]);
    assert!(work.result("plain") == work.result("by-ids"));
    train("rounded", &["--set", "token_cache=bf16"]);
    assert!(work.result("plain") != work.result("rounded"), "rounding changes nothing");
    work.refused(&["train", "--resume", "rounded", "--set", "token_cache="], &["data set"]);
    let score = |out: &str, data: &str, more: &[&str]| {
        let arguments = ["score", "--checkpoint", "rounded", "--data", data, "--out", out];
        work.succeed(&[&arguments[..], more].concat());
        fs::read_to_string(work.path(out)).unwrap()
    };
    let exact = score("f32.csv", "data/train.csv", &["--set", "token_cache=f32"]);
    assert!(exact == score("own.csv", "data/train.csv", &["--set", "token_cache="]));
    assert!(exact == score("ids.csv", "data/train.csv", &["--set", "token_cache=ids"]));
    let all = score("all.csv", "data/train.csv", &["--set", "token_cache=bf16"]);
    // A cache of the validation set alone holds hardly any of these captions.
    let few = [&ENCODE[..], &clip, &["--out", "few", "--data", "data/validation.csv"]].concat();
    work.succeed(&few);
    work.refused(
        &[
            "score",
            "--checkpoint",
            "rounded",
            "--data",
            "data/train.csv",
            "--out",
            "few.csv",
            "--set",
            "token_cache=few",
        ],
        &["another image tokenizer"],
    );
    work.succeed(&[
        "encode",
        "--run",
        "rounded",
        "--out",
        "few",
        "--data",
        "data/validation.csv",
        "--overwrite",
    ]);
    let fresh = score("few.csv", "data/train.csv", &["--set", "token_cache=few"]);
    let other: Vec<_> = all.lines().zip(fresh.lines()).filter(|(one, other)| one != other).collect();
    assert!(other.is_empty(), "{other:?}");
    let held =
        ["encode", "--run", "rounded", "--out", "few-ids", "--data", "data/validation.csv", "--text", "ids"];
    work.succeed(&held);
    assert!(exact == score("few-ids.csv", "data/train.csv", &["--set", "token_cache=few-ids"]));
    work.refused(&[&ENCODE[..], &["--out", "words", "--text", "ids"]].concat(), &["no token ids"]);
    // Every caption is held: nothing is missed when the encoder is away.
    fs::rename(work.path("clip"), work.path("away")).unwrap();
    assert!(all == score("away.csv", "data/train.csv", &["--set", "token_cache=bf16"]));
}
