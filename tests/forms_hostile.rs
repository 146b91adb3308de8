//! Corpora that are damaged, ambiguous or hostile: each fault is an error by name or a failed row, and nothing is rated with
//! another row's image or caption.
#![cfg(unix)]

#[path = "forms/made.rs"]
mod made;
#[path = "workplace/mod.rs"]
mod workplace;

use std::{fs, path::Path, process::Command, sync::Arc};

use alchemist_engine::{
    Error,
    data::{ColumnNames, Corpus, Record, corpus::CorpusFormat},
};
use made::{archive, gzipped, pairs};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use serde_json::json;
use workplace::Workplace;

fn place() -> Workplace {
    Workplace::new(12, &json!({"depth": 1, "raterDepth": 1}))
}

/// Images of a small corpus.
fn images(place: &Workplace) -> Vec<Vec<u8>> {
    pairs(&place.path("data/train.csv")).into_iter().map(|pair| pair.image).collect()
}

/// A tar of these members.
fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn open(path: &Path) -> Result<Corpus, Error> {
    Corpus::open(path, &ColumnNames::default())
}

/// All records, malformed ones among them.
fn records(path: &Path) -> Vec<Record> {
    open(path).and_then(|corpus| corpus.skipping_malformed(true).read_all()).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let error = open(path).and_then(Corpus::read_all).unwrap_err().to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is missing in: {error}"));
}

/// Why a record cannot be used.
fn failure(record: &Record) -> String {
    match &record.malformed {
        Some(message) => message.clone(),
        None => record.image.read(1 << 30).unwrap_err().to_string(),
    }
}

#[test]
fn outputs_in_a_folder_of_images_are_not_part_of_the_corpus() {
    let place = place();
    let images = images(&place);
    fs::create_dir_all(place.path("mine/more")).unwrap();
    for (at, image) in images.iter().enumerate() {
        let folder = if at % 2 == 0 { "mine" } else { "mine/more" };
        fs::write(place.path(&format!("{folder}/{at}.png")), image).unwrap();
        fs::write(place.path(&format!("{folder}/{at}.txt")), format!("image {at}")).unwrap();
    }
    place.succeed(&["train", "--config", "config.json", "--set", "ep=1", "--data", "mine", "--out", "run"]);
    // Not into the corpus, which is refused, but next to its images: into a folder that becomes one.
    fs::create_dir_all(place.path("project")).unwrap();
    place.succeed(&["score", "--checkpoint", "run", "--data", "mine", "--out", "project/ratings.csv"]);
    place.succeed(&["pack", "--format", "imagefolder", "--data", "mine", "--out", "project/packed"]);
    assert!(place.path("project/ratings.contact_sheet.png").exists());
    fs::rename(place.path("mine"), place.path("project/mine")).unwrap();
    let found = records(&place.path("project"));
    assert_eq!(found.len(), images.len(), "{found:?}");
    assert!(found.iter().all(|record| record.caption.starts_with("image ")));
    // The output itself can be read.
    assert_eq!(records(&place.path("project/packed")).len(), images.len());
}

#[test]
fn of_several_images_in_a_sample_one_is_used_and_it_is_said() {
    let place = place();
    let images = images(&place);
    let tar = tar_of(&[("a.jpg", &images[0]), ("a.png", &images[1]), ("a.txt", b"both")]);
    fs::write(place.path("two.tar"), tar).unwrap();
    let said = place.succeed(&["plant", "--data", "two.tar", "--flaws", "noise=0", "--out", "planted"]);
    assert!(said.contains("several images, such as .jpg and .png"), "{said}");
}

#[test]
fn captions_come_from_text_or_from_the_key_of_its_name() {
    let place = place();
    let image = &images(&place)[0];
    let json = |caption: &str| json!({"caption": caption, "n": 1}).to_string();
    let (one, two) = (json("one"), json("two"));
    // Without `.txt`, `caption` being the first key; and a second shard that has `.txt`.
    let first =
        tar_of(&[("a.jpg", image), ("a.json", one.as_bytes()), ("b.jpg", image), ("b.json", two.as_bytes())]);
    let second =
        tar_of(&[("c.jpg", image), ("c.txt", b"three"), ("d.jpg", image), ("d.json", one.as_bytes())]);
    fs::create_dir(place.path("s")).unwrap();
    fs::write(place.path("s/0.tar"), &first).unwrap();
    fs::write(place.path("s/1.tar"), &second).unwrap();
    let captions = |path: &str| -> Vec<String> {
        records(&place.path(path)).into_iter().map(|record| record.caption).collect()
    };
    assert_eq!(captions("s/0.tar"), ["one", "two"]);
    assert_eq!(captions("s"), ["one", "two", "three", "one"]);
    // With `.txt` in the first shard, and a column of its own for the key.
    let both = tar_of(&[
        ("a.jpg", image),
        ("a.txt", b"text"),
        ("a.json", one.as_bytes()),
        ("b.jpg", image),
        ("b.json", two.as_bytes()),
    ]);
    fs::write(place.path("both.tar"), &both).unwrap();
    assert_eq!(captions("both.tar"), ["text", ""]);
    let corpus = open(&place.path("both.tar")).unwrap();
    assert_eq!(corpus.schema().columns, ["__key__", "image", "caption", "json.caption", "n"]);
    assert_eq!(records(&place.path("both.tar"))[1].fields[3], "two");
    // The first `.txt` comes after the samples from which the columns are found.
    let names: Vec<[String; 3]> = (0..300)
        .map(|at| [format!("{at:03}.jpg"), format!("{at:03}.json"), format!("{at:03}.txt")])
        .collect();
    let other = json!({"text": "from json"}).to_string();
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (at, [image_name, json_name, text_name]) in names.iter().enumerate() {
        members.extend([(image_name.as_str(), image.as_slice()), (json_name.as_str(), other.as_bytes())]);
        if at >= 280 {
            members.push((text_name, b"from txt"));
        }
    }
    fs::write(place.path("late.tar"), tar_of(&members)).unwrap();
    assert!(captions("late.tar").iter().all(|caption| caption == "from json"));
    let named = ColumnNames { caption: "txt".to_owned(), ..ColumnNames::default() };
    let late = Corpus::open(place.path("late.tar"), &named).unwrap().read_all().unwrap();
    assert_eq!((&*late[0].caption, &*late[290].caption), ("", "from txt"));
    // Many keys take time in proportion.
    let keys: serde_json::Map<String, serde_json::Value> =
        (0..60_000).map(|at| (format!("k{at}"), json!(at))).chain([("caption".into(), json!("c"))]).collect();
    let keys = serde_json::Value::Object(keys).to_string();
    fs::write(place.path("keys.tar"), tar_of(&[("a.jpg", image), ("a.json", keys.as_bytes())])).unwrap();
    assert_eq!(captions("keys.tar"), ["c"]);
    let line = keys.replacen('{', "{\"image\":\"a.png\",", 1);
    fs::write(place.path("keys.jsonl"), format!("{line}\n{line}\n")).unwrap();
    let named = ColumnNames { id: "k7".to_owned(), ..ColumnNames::default() };
    let found = Corpus::open(place.path("keys.jsonl"), &named).unwrap().next().unwrap().unwrap();
    assert_eq!((&*found.id, &*found.caption), ("7", "c"));
}

#[test]
fn a_name_that_occurs_twice_is_never_read() {
    let place = place();
    let images = images(&place);
    let [one, two] = [&images[0][..], &images[1][..]];
    // The key again, later in the archive.
    let members = [
        ("a.png", one),
        ("a.txt", &b"one"[..]),
        ("b.png", two),
        ("b.txt", b"two"),
        ("a.png", two),
        ("a.txt", b"three"),
    ];
    let path = place.path("t.tar");
    for compress in [false, true] {
        let bytes = tar_of(&members);
        fs::write(&path, if compress { gzipped(&bytes) } else { bytes }).unwrap();
        let found = records(&path);
        assert_eq!(found.len(), 3);
        assert!(found[1].malformed.is_none() && found[1].image.read(1 << 30).unwrap() == two);
        for at in [0, 2] {
            assert!(failure(&found[at]).contains("the members of `a` are not next to each other"), "{at}");
        }
        // Another position gives the same.
        let mut corpus = open(&path).unwrap().skipping_malformed(true);
        let next = corpus.batch(None, 2).unwrap().next;
        let again = open(&path).unwrap().skipping_malformed(true).batch(next, 2).unwrap().records;
        assert_eq!(again, found[2..]);
    }
    refused(&path, &["t.tar", "not next to each other", "tar --sort=name"]);
    // Members in the order of their kinds: no image is rated without its caption.
    fs::write(&path, tar_of(&[("a.png", one), ("b.png", two), ("a.txt", b"one"), ("b.txt", b"two")]))
        .unwrap();
    assert!(records(&path).iter().all(|record| failure(record).contains("not next to each other")));
    // A table that names a member of such an archive.
    fs::write(&path, tar_of(&[("a.png", one), ("a.png", two), ("b.png", two)])).unwrap();
    fs::write(place.path("t.csv"), "id,image,caption\n1,t.tar/a.png,x\n2,t.tar/b.png,y\n").unwrap();
    let found = records(&place.path("t.csv"));
    assert!(failure(&found[0]).contains("several members of this name"), "{}", failure(&found[0]));
    assert_eq!(found[1].image.read(1 << 30).unwrap(), two);
}

#[test]
fn damage_and_what_follows_the_end_of_an_archive_are_named() {
    let place = place();
    let pairs = pairs(&place.path("data/train.csv"));
    let whole = archive(&pairs[..3], |pair| pair.id.clone());
    let path = place.path("t.tar");
    // The checksum at the end of gzip data.
    let mut damaged = gzipped(&whole);
    let end = damaged.len();
    damaged[end - 6] ^= 1;
    fs::write(&path, &damaged).unwrap();
    refused(&path, &["t.tar", "gzip data is damaged"]);
    // Archives that were joined.
    fs::write(&path, [&whole[..], &whole[..]].concat()).unwrap();
    refused(&path, &["t.tar", "joined with cat", "separate files"]);
    // Zeros may follow.
    fs::write(&path, [&whole[..], &[0; 10_240][..]].concat()).unwrap();
    assert_eq!(records(&path).len(), 3);
    // So may they after the end of gzip data, but nothing else.
    fs::write(&path, [gzipped(&whole), vec![0; 700]].concat()).unwrap();
    assert_eq!(records(&path).len(), 3);
    fs::write(&path, [gzipped(&whole), b"more".to_vec()].concat()).unwrap();
    refused(&path, &["t.tar", "gzip data is damaged"]);
    // Cut between an image and its caption.
    let (image, text) = (&pairs[0].image[..], &b"one"[..]);
    let members = [("a.png", image), ("a.txt", text), ("b.png", image), ("b.txt", text)];
    let bytes = tar_of(&members);
    let cut = bytes.len() - 1024 - 1024;
    fs::write(&path, &bytes[..cut]).unwrap();
    let found = records(&path);
    assert_eq!((found.len(), &*found[0].caption), (2, "one"));
    assert!(failure(&found[1]).contains("without its end marker"), "{}", failure(&found[1]));
    // A PAX header whose length is wrong.
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("comment", &b"0123456789"[..])]).unwrap();
    let mut pax = pax.into_inner().unwrap();
    let at = 512 + pax[512..].iter().position(|&byte| byte == b' ').unwrap() - 1;
    pax[at] = b'9';
    fs::write(&path, [&pax[..pax.len() - 1024], &bytes].concat()).unwrap();
    refused(&path, &["t.tar", "PAX header is malformed"]);
}

#[test]
fn every_sample_is_a_row() {
    let place = place();
    let image = &images(&place)[0];
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, link: Option<&str>, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        match link {
            Some(target) => builder.append_link(&mut header, name, target).unwrap(),
            None => builder.append_data(&mut header, name, bytes).unwrap(),
        }
    };
    use tar::EntryType::{Link, Regular, Symlink};
    add("a.png", Regular, None, image);
    add("a.txt", Regular, None, b"a");
    add("b.png", Link, Some("a.png"), b"");
    add("b.txt", Regular, None, b"b");
    add("c.png", Symlink, Some("a.png"), b"");
    add("d.png", Regular, None, image);
    add("d.txt", Symlink, Some("a.txt"), b"");
    add("e.txt", Regular, None, b"without an image");
    // A member with the bare name of a sample without an image.
    add("e", Regular, None, image);
    let path = place.path("t.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let found = records(&path);
    assert_eq!(found.len(), 5);
    assert_eq!(found[0].image.read(1 << 30).unwrap(), *image);
    for (at, word) in [(1, "a link"), (2, "a link"), (3, "d.txt is a link"), (4, "no such member")] {
        assert!(failure(&found[at]).contains(word), "{at}: {}", failure(&found[at]));
    }
}

#[test]
fn pipes_and_devices_are_refused_without_being_opened() {
    let place = place();
    let image = &images(&place)[0];
    let pipe = |name: &str| {
        assert!(Command::new("mkfifo").arg(place.path(name)).status().unwrap().success());
    };
    pipe("p.tar");
    for format in CorpusFormat::ALL {
        let found = Corpus::open_as(place.path("p.tar"), &ColumnNames::default(), Some(format));
        let error = found.unwrap_err().to_string();
        assert!(error.contains("p.tar") && error.contains("is not a"), "{format}: {error}");
    }
    refused(&place.path("p.tar"), &["p.tar", "is not a regular file"]);
    fs::create_dir(place.path("d")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(place.path(&format!("d/{name}.png")), image).unwrap();
    }
    fs::write(place.path("d/a.txt"), "fine").unwrap();
    pipe("d/b.txt");
    std::os::unix::fs::symlink("/dev/zero", place.path("d/c.txt")).unwrap();
    pipe("d/d.png");
    let found = records(&place.path("d"));
    assert_eq!((found.len(), &*found[0].caption), (4, "fine"));
    for at in [1, 2, 3] {
        assert!(failure(&found[at]).contains("not a regular file"), "{at}: {}", failure(&found[at]));
    }
}

/// A Parquet file with optional columns of bytes or text.
fn parquet(path: &Path, schema: &str, columns: &[Vec<Option<&[u8]>>], level: i16) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    for values in columns {
        let level = if values.len() == 1 { 1 } else { level };
        let levels: Vec<i16> = values.iter().map(|value| if value.is_some() { level } else { 0 }).collect();
        let values: Vec<ByteArray> =
            values.iter().flatten().map(|value| ByteArray::from(value.to_vec())).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn bad_cells_of_a_parquet_file_fail_their_rows() {
    let place = place();
    let image = images(&place)[0].clone();
    let path = place.path("c.parquet");
    // The first cells of the column of images are bad, and a caption is not UTF-8.
    let cells = vec![None, Some(&b"no image"[..]), Some(&image[..]), Some(&image[..])];
    let texts = vec![Some(&b"a"[..]), Some(b"b"), Some(b"caf\xE9"), Some(b"d")];
    parquet(&path, "message m { optional binary image; optional binary caption; }", &[cells, texts], 1);
    let found = records(&path);
    assert_eq!(found.len(), 4);
    assert!(failure(&found[0]).contains("null"));
    assert_eq!(found[1].image.read(1 << 30).unwrap(), b"no image");
    assert!(failure(&found[2]).contains("`caption` is not UTF-8"));
    assert_eq!((found[3].image.read(1 << 30).unwrap(), &*found[3].caption), (image.clone(), "d"));
    // Paths stand in for missing bytes, row by row.
    fs::write(place.path("x.png"), &image).unwrap();
    let bytes = vec![Some(&b"inside"[..]), None, None, None];
    let paths = vec![Some(&b"x.png"[..]), Some(b"x.png"), Some(b"missing.png"), None];
    let texts = vec![Some(&b"a"[..]), Some(b"b"), Some(b"c"), Some(b"d")];
    let schema = "message m { required group image { optional binary bytes; optional binary path (UTF8); } optional binary \
                  caption (UTF8); }";
    parquet(&path, schema, &[bytes, paths, texts], 1);
    let found = records(&path);
    assert_eq!(found[0].image.read(1 << 30).unwrap(), b"inside");
    assert_eq!(found[1].image.read(1 << 30).unwrap(), image);
    assert!(failure(&found[2]).contains("missing.png") && failure(&found[3]).contains("null"));
}

#[test]
fn rows_that_no_table_could_hold_are_failed_rows() {
    let place = place();
    let image = &images(&place)[0];
    let long = "x".repeat(9 << 20);
    let json = json!({"a": &long}).to_string();
    let members = [("a.png", &image[..]), ("a.json", json.as_bytes()), ("a.txt", long.as_bytes())];
    fs::write(place.path("t.tar"), tar_of(&members)).unwrap();
    let texts = [vec![Some(long.as_bytes())], vec![Some(long.as_bytes())], vec![Some(&b"a.png"[..])]];
    let schema = "message m { optional binary caption (UTF8); optional binary more (UTF8); optional binary image (UTF8); }";
    parquet(&place.path("c.parquet"), schema, &texts, 1);
    for name in ["t.tar", "c.parquet"] {
        let found = records(&place.path(name));
        assert!(failure(&found[0]).contains("longer than 16 MiB"), "{name}");
    }
}

#[test]
fn an_output_never_becomes_part_of_the_corpus() {
    let place = Workplace::new(
        12,
        &json!({"depth": 1, "raterDepth": 1, "proxy_width": 64, "rater_width": 64, "ep": 1, "bs": 4, "rater_only_epochs": 0}),
    );
    let image = &images(&place)[0];
    fs::create_dir(place.path("folder")).unwrap();
    fs::create_dir(place.path("tables")).unwrap();
    for at in 0..12 {
        let variant = [&image[..], &[at]].concat();
        fs::write(place.path(&format!("folder/{at}.png")), variant).unwrap();
        fs::write(place.path(&format!("folder/{at}.txt")), format!("number {at}")).unwrap();
    }
    fs::copy(place.path("data/train.csv"), place.path("data/c.csv")).unwrap();
    std::os::unix::fs::symlink("folder", place.path("other")).unwrap();
    place.succeed(&["train", "--config", "config.json", "--data", "data/train.csv", "--out", "run"]);
    let part = ["would become part of the input", "choose another --out"];
    for out in ["folder/r.csv", "other/r.csv", "folder/../folder/r.csv"] {
        place.refused(&["score", "--checkpoint", "run", "--data", "folder", "--out", out], &part);
    }
    place.refused(&["score", "--checkpoint", "run", "--data", "other", "--out", "folder/r.csv"], &part);
    place.refused(&["train", "--config", "config.json", "--data", "folder", "--out", "folder/run"], &part);
    place.refused(&["encode", "--run", "run", "--data", "folder", "--out", "folder/tokens"], &part);
    place.refused(&["plant", "--data", "folder", "--out", "folder/planted"], &part);
    place.refused(&["pack", "--format", "imagefolder", "--data", "folder", "--out", "folder/packed"], &part);
    // A pattern that would match the output, or what is written with it.
    place.refused(&["score", "--checkpoint", "run", "--data", "data/c*.csv", "--out", "data/cc.csv"], &part);
    place.refused(
        &["score", "--checkpoint", "run", "--data", "data/c*.csv", "--out", "data/cc.parquet"],
        &part,
    );
    place.succeed(&["score", "--checkpoint", "run", "--data", "data/c*.csv", "--out", "data/r.csv"]);
    place.succeed(&["score", "--checkpoint", "run", "--data", "folder", "--out", "r.csv"]);
    assert_eq!(fs::read_dir(place.path("folder")).unwrap().count(), 24);
}

#[test]
fn a_form_that_does_not_fit_is_named() {
    let place = place();
    let image = &images(&place)[0];
    fs::write(place.path("c.tar"), tar_of(&[("a.png", image), ("a.txt", b"a")])).unwrap();
    fs::write(place.path("c.jsonl"), "{\n  \"image\": \"a.png\",\n  \"caption\": \"a\"\n}\n").unwrap();
    fs::write(place.path("e.tar"), vec![0; 10_240]).unwrap();
    fs::create_dir(place.path("alone")).unwrap();
    fs::write(place.path("alone/a.png"), image).unwrap();
    fs::create_dir(place.path("two")).unwrap();
    fs::write(place.path("two/metadata.csv"), "file_name,text\n").unwrap();
    fs::write(place.path("two/metadata.jsonl"), "{}\n").unwrap();
    let says = |data: &str, format: Option<CorpusFormat>, words: &[&str]| {
        let found =
            Corpus::open_as(place.path(data), &ColumnNames::default(), format).and_then(Corpus::read_all);
        let error = found.unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is missing in: {error}"));
    };
    use CorpusFormat::{Csv, ImageFolder, JsonLines, Parquet, WebDataset};
    says("c.tar", Some(JsonLines), &["is WebDataset by its content", "leave out --format"]);
    says("c.tar", Some(Parquet), &["is WebDataset by its content"]);
    says("data/train.csv", Some(WebDataset), &["is not a tar archive", "--format"]);
    says("data/train.csv", Some(Parquet), &["is not a Parquet file", "--format"]);
    says("data/train.csv", Some(ImageFolder), &["is not a folder"]);
    says("data/train.csv", Some(JsonLines), &["not one JSON object"]);
    says("c.jsonl", None, &["one whole object per line", "jq -c"]);
    says("e.tar", Some(WebDataset), &["e.tar", "has no samples"]);
    says("e.tar", None, &["e.tar", "has no samples"]);
    says("alone", None, &["a folder of images without captions", "cat.txt"]);
    says("alone", Some(Csv), &["folder of images without captions"]);
    says("two", None, &["metadata.csv and metadata.jsonl", "pass the one"]);
}
