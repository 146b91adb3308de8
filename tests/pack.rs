//! A subset in the forms of other trainers, read back; by those ecosystems' own readers in a test that `scripts/formats.sh` runs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use alchemist_engine::{
    Result,
    data::{
        ColumnNames,
        corruption::FlawShares,
        synthetic::{DataSetSettings, write_data_set},
    },
    interrupt::Interrupt,
    select::formats::{Format, PackJob, Packed, pack},
};
use serde_json::Value;
use tempfile::TempDir;

/// A subset of eleven records, one of which has lost its image; ids are uids, some of them in capitals.
fn subset() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let settings = DataSetSettings { train: 11, validation: 1, side: 16, shares: FlawShares::NONE, seed: 3 };
    let data = write_data_set(folder.path(), &settings).unwrap();
    let mut reader = csv::Reader::from_path(&data.train_csv).unwrap();
    let path = folder.path().join("subset.csv");
    let mut writer = csv::Writer::from_path(&path).unwrap();
    writer.write_record(["image_save_path", "id", "caption", "source"]).unwrap();
    for (at, row) in reader.records().map(|row| row.unwrap()).enumerate() {
        let number = (at as u128 * 7919 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let id = if at == 4 { format!("{number:032X}") } else { format!("{number:032x}") };
        writer.write_record([&row[1], &id, &format!("{}, \"käfig\"\n猫 {at}", &row[2]), "web.2020"]).unwrap();
    }
    writer.flush().unwrap();
    fs::remove_file(folder.path().join("train/000007.png")).unwrap();
    (folder, path)
}

fn packed(subset: &Path, format: &str, out: &str, overwrite: bool) -> Result<Packed> {
    let job = PackJob {
        subset: subset.to_path_buf(),
        data_format: None,
        columns: ColumnNames::default(),
        skip_bad_rows: false,
        format: format.parse()?,
        out: subset.with_file_name(out),
        shard: 4,
        overwrite,
    };
    pack(&job, &Interrupt::default(), &mut ())
}

fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn an_image_folder_holds_images_and_their_columns() {
    let (folder, subset) = subset();
    for (format, link) in [("imagefolder", false), ("imagefolder-links", true)] {
        let found = packed(&subset, format, format, false).unwrap();
        assert_eq!((found.rows, found.left_out.len()), (11, 1));
        let text = fs::read_to_string(folder.path().join(format).join("metadata.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kept: Vec<_> = rows(&subset).into_iter().enumerate().filter(|(at, _)| *at != 7).collect();
        assert_eq!(lines.len(), kept.len());
        for (line, (_, row)) in lines.iter().zip(&kept) {
            let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["file_name", "id", "caption", "source"]);
            assert!(["id", "caption", "source"].iter().all(|key| line[key] == row[*key].as_str()));
            let image = folder.path().join(format).join(line["file_name"].as_str().unwrap());
            assert_eq!(fs::symlink_metadata(&image).unwrap().is_symlink(), link);
            assert!(
                fs::read(image).unwrap() == fs::read(folder.path().join(&row["image_save_path"])).unwrap()
            );
        }
    }
    // A table that calls its images as the folder does.
    let text = fs::read_to_string(&subset).unwrap();
    let named = folder.path().join("named.csv");
    fs::write(&named, text.replacen("image_save_path", "file_name", 1)).unwrap();
    packed(&named, "imagefolder", "named", false).unwrap();
    let metadata = |name: &str| fs::read_to_string(folder.path().join(name).join("metadata.jsonl")).unwrap();
    assert_eq!(metadata("named"), metadata("imagefolder"));
    let doubled = folder.path().join("doubled.csv");
    fs::write(&doubled, text.replacen("source", "file_name", 1)).unwrap();
    let message = packed(&doubled, "imagefolder", "doubled", false).unwrap_err().to_string();
    assert!(message.contains("`file_name` already exists"), "{message}");
    let message = packed(&subset, "imagefolder", "imagefolder", false).unwrap_err().to_string();
    assert!(message.contains("--overwrite"), "{message}");
    packed(&subset, "imagefolder", "imagefolder", true).unwrap();
    let message = packed(&subset, "imagefolder", "train", true).unwrap_err().to_string();
    assert!(message.contains("input"), "{message}");
}

#[test]
fn shards_hold_a_image_a_caption_and_all_columns_under_one_key() {
    let (folder, subset) = subset();
    packed(&subset, "webdataset", "shards", false).unwrap();
    let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for number in 0..3 {
        let path = folder.path().join(format!("shards/shard-{number:06}.tar"));
        for entry in tar::Archive::new(File::open(path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            assert!(parts.insert(name, bytes).is_none());
        }
    }
    assert!(!folder.path().join("shards/shard-000003.tar").exists());
    assert_eq!(parts.len(), 3 * 10);
    for (at, row) in rows(&subset).iter().enumerate().filter(|(at, _)| *at != 7) {
        let part = |ending: &str| &parts[&format!("{at:08}.{ending}")];
        assert_eq!(part("txt"), row["caption"].as_bytes());
        let told: Value = serde_json::from_slice(part("json")).unwrap();
        assert!(told["id"] == row["id"].as_str() && told["source"] == "web.2020");
        assert!(told["original_path"].as_str().unwrap().ends_with(&row["image_save_path"]));
        assert!(part("png") == &fs::read(folder.path().join(&row["image_save_path"])).unwrap());
    }
    // The same again is the same bytes.
    packed(&subset, "webdataset", "again", false).unwrap();
    let shard =
        |folder_name: &str| fs::read(folder.path().join(folder_name).join("shard-000001.tar")).unwrap();
    assert!(shard("shards") == shard("again"));
}

#[test]
fn uids_are_sorted_pairs_and_other_ids_are_refused() {
    let (folder, subset) = subset();
    packed(&subset, "uids", "subset.npy", false).unwrap();
    let bytes = fs::read(folder.path().join("subset.npy")).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10;
    assert_eq!(header % 64, 0);
    let text = std::str::from_utf8(&bytes[10..header]).unwrap();
    assert!(text.contains("'shape': (11,)") && text.ends_with('\n'), "{text}");
    let numbers: Vec<u64> =
        bytes[header..].as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let found: Vec<String> =
        numbers.chunks(2).map(|pair| format!("{:016x}{:016x}", pair[0], pair[1])).collect();
    let mut expected: Vec<String> = rows(&subset).iter().map(|row| row["id"].to_lowercase()).collect();
    expected.sort();
    assert_eq!(found, expected);
    let text = fs::read_to_string(&subset).unwrap();
    let first = &rows(&subset)[0]["id"];
    fs::write(&subset, text.replace(first.as_str(), "17")).unwrap();
    let message = packed(&subset, "uids", "other.npy", false).unwrap_err().to_string();
    assert!(message.contains("line 2") && message.contains("`17` is not a DataComp uid"), "{message}");
}

#[test]
fn tables_have_whole_paths() {
    let (folder, subset) = subset();
    packed(&subset, "csv", "table.csv", false).unwrap();
    let written = rows(&folder.path().join("table.csv"));
    for (own, found) in rows(&subset).iter().zip(&written) {
        assert_eq!((&own["id"], &own["caption"]), (&found["id"], &found["caption"]));
        assert!(Path::new(&found["image_save_path"]).is_absolute());
        assert!(found["image_save_path"].ends_with(&own["image_save_path"]));
    }
    let message = packed(&subset, "parquet", "table.csv", true).unwrap_err().to_string();
    assert!(message.contains(".parquet"), "{message}");
    assert!("zip".parse::<Format>().unwrap_err().to_string().contains("webdataset"));
}

/// A subset of the rows `id,image_save_path,caption` next to these files.
fn subset_of(rows: &str, files: &[(&str, &[u8])]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().join("subset.csv");
    fs::write(&path, format!("id,image_save_path,caption\n{rows}")).unwrap();
    (folder, path)
}

fn members(path: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(File::open(path).unwrap());
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name)).unwrap()
}

#[test]
fn an_ending_is_that_of_the_content_and_members_never_collide() {
    let (jpeg, png, webp, gif) =
        (sample("rgb.jpg"), sample("rgb.png"), sample("lossy.webp"), sample("still.gif"));
    let files: [(&str, &[u8]); 9] = [
        ("a.jpg?w=300", &jpeg),
        ("a.jpg.1", &jpeg),
        ("b.jpg!large", &png),
        ("d.v2", &webp),
        ("without", &gif),
        ("e.txt", &jpeg),
        ("f.json", &png),
        ("page.jpg", b"<!DOCTYPE html><html>404"),
        ("new.png", b"\xFF\x0A jxl"),
    ];
    let rows: String = (0..9).map(|at| format!("{at},{},text {at}\n", files[at].0)).collect();
    let (folder, subset) = subset_of(&rows, &files);
    let found = packed(&subset, "webdataset", "shards", false).unwrap();
    let reasons: Vec<&str> = found.left_out.iter().map(|(_, reason)| reason.as_str()).collect();
    assert!(
        reasons.len() == 2 && reasons[0].contains("HTML") && reasons[1].contains("JPEG XL"),
        "{reasons:?}"
    );
    let mut names = members(&folder.path().join("shards/shard-000000.tar"));
    names.extend(members(&folder.path().join("shards/shard-000001.tar")));
    let endings = ["jpg", "jpg", "png", "webp", "gif", "jpg", "png"];
    let expected: Vec<String> = endings
        .iter()
        .enumerate()
        .flat_map(|(at, ending)| [*ending, "txt", "json"].map(|ending| format!("{at:08}.{ending}")))
        .collect();
    assert_eq!(names, expected);
    // The third shard would hold nothing, so there is none.
    assert!(!folder.path().join("shards/shard-000002.tar").exists());
    packed(&subset, "imagefolder", "folder", false).unwrap();
    let mut names: Vec<String> = fs::read_dir(folder.path().join("folder/images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(
        names.iter().zip(endings).all(|(name, ending)| name.ends_with(&format!(".{ending}"))),
        "{names:?}"
    );
}

#[test]
fn addresses_stay_as_they_are_and_are_no_local_images() {
    let addresses = [
        "https://example.com/x.png?a=b%20c",
        "s3://bucket/x.png",
        "gs://bucket/x.png",
        "file:///x.png",
        "file:/x.png",
        "hf://datasets/a/x.png",
        "\"data:image/png;base64,AAAA\"",
    ];
    let mut rows: String =
        addresses.iter().enumerate().map(|(at, address)| format!("{at},{address},t\n")).collect();
    rows.push_str("empty,,t\nlocal,at 12:30 a.png,t\n");
    let (folder, subset) = subset_of(&rows, &[("at 12:30 a.png", &sample("rgb.png"))]);
    for form in ["csv", "parquet"] {
        let found = packed(&subset, form, &format!("table.{form}"), false).unwrap();
        let left_out: Vec<&str> = found.left_out.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!((found.rows, left_out), (9, vec!["empty"]));
        assert!(found.left_out[0].1.contains("empty"));
    }
    let written = rows_of_paths(&folder.path().join("table.csv"));
    let mut expected: Vec<String> =
        addresses.iter().map(|address| address.trim_matches('"').to_owned()).collect();
    expected.push(
        std::path::absolute(folder.path().join("at 12:30 a.png")).unwrap().to_str().unwrap().to_owned(),
    );
    assert_eq!(written, expected);
    for form in ["imagefolder", "imagefolder-links", "webdataset"] {
        let found = packed(&subset, form, form, false).unwrap();
        assert_eq!((found.rows, found.left_out.len()), (9, 8));
        assert!(found.left_out[0].1.contains("img2dataset"), "{:?}", found.left_out[0]);
        assert!(found.left_out[1].1.contains("s3:"), "{:?}", found.left_out[1]);
        assert!(found.left_out[7].1.contains("empty"), "{:?}", found.left_out[7]);
    }
}

fn rows_of_paths(path: &Path) -> Vec<String> {
    rows(path).into_iter().map(|row| row["image_save_path"].clone()).collect()
}

#[test]
fn a_pack_of_nothing_is_an_error_and_leaves_nothing() {
    let (folder, subset) = subset_of("1,gone.png,t\n2,gone.png,t\n3,https://host/a.png,t\n", &[]);
    for form in ["imagefolder", "imagefolder-links", "webdataset"] {
        let error = packed(&subset, form, form, false).unwrap_err().to_string();
        assert!(
            error.contains("none of 3 rows") && error.contains("(2 rows") && error.contains("img2dataset"),
            "{error}"
        );
        assert!(!folder.path().join(form).exists());
    }
    let (folder, subset) = subset_of("1,,t\n", &[]);
    for form in ["csv", "parquet"] {
        let error = packed(&subset, form, &format!("out.{form}"), false).unwrap_err().to_string();
        assert!(error.contains("the only row") && error.contains("empty"), "{error}");
        assert!(!folder.path().join(format!("out.{form}")).exists());
    }
    let program = env!("CARGO_BIN_EXE_alchemist-engine");
    let out = folder.path().join("shards");
    let run = Command::new(program)
        .args(["pack", "--format", "webdataset", "--data"])
        .arg(&subset)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(!out.exists());
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_not_utf_8_is_refused_in_text() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let folder = tempfile::tempdir().unwrap();
    let latin = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&latin).unwrap();
    fs::write(latin.join("a.png"), sample("rgb.png")).unwrap();
    let subset = latin.join("subset.csv");
    fs::write(&subset, "id,image_save_path,caption\n1,a.png,t\n").unwrap();
    for (form, out) in [("csv", "table.csv"), ("parquet", "table.parquet"), ("webdataset", "shards")] {
        let error = packed(&subset, form, out, false).unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{form}: {error}");
        let left = fs::read_dir(&latin).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            left.filter(|name| name.to_str().is_some_and(|name| name.starts_with("table"))).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    packed(&subset, "imagefolder", "folder", false).unwrap();
}

/// Reads every form and says how many records it holds, and a sum over their captions and images.
const READERS: &str = r#"
import io, json, sys
import numpy, pyarrow.parquet, webdataset
from datasets import load_dataset
from PIL import Image
base, lost = sys.argv[1], int(sys.argv[2])
def same(name, found):
    print(name, len(found))
    return found
def pixels(image):
    return int(numpy.asarray(image.convert("RGB"), dtype=numpy.int64).sum())
table = pyarrow.parquet.read_table(f"{base}/table.parquet").to_pylist()
records = {row["id"]: (row["caption"], None if at == lost else pixels(Image.open(row["image_save_path"])))
           for at, row in enumerate(table)}
assert len(records) == 11
for folder in ["imagefolder", "imagefolder-links"]:
    rows = load_dataset("imagefolder", data_dir=f"{base}/{folder}", split="train", cache_dir=f"{base}/cache-{folder}")
    found = {row["id"]: (row["caption"], pixels(row["image"])) for row in rows}
    assert found == {key: value for key, value in records.items() if value[1] is not None}, folder
urls = [f"file:{base}/shards/shard-{number:06}.tar" for number in range(3)]
found = {}
for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pil"):
    found[sample["json"]["id"]] = (sample["txt"], pixels(sample["png"]))
assert found == {key: value for key, value in records.items() if value[1] is not None}
uids = numpy.load(f"{base}/subset.npy")
assert uids.dtype == numpy.dtype("u8,u8") and (numpy.sort(uids) == uids).all()
assert {f"{high:016x}{low:016x}" for high, low in uids.tolist()} == {key.lower() for key in records}
print("all forms hold the same records")
"#;

#[test]
#[ignore = "needs Python with datasets, webdataset, pyarrow, numpy and Pillow: `bash scripts/formats.sh` installs them and runs it"]
fn the_ecosystems_own_readers_find_the_same_records() {
    let (folder, subset) = subset();
    for (format, out) in [
        ("parquet", "table.parquet"),
        ("imagefolder", "imagefolder"),
        ("imagefolder-links", "imagefolder-links"),
        ("webdataset", "shards"),
        ("uids", "subset.npy"),
    ] {
        packed(&subset, format, out, false).unwrap();
    }
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let read = Command::new(python).args(["-c", READERS]).arg(folder.path()).arg("7").output().unwrap();
    let errors = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{errors}");
    assert!(String::from_utf8_lossy(&read.stdout).contains("all forms hold the same records"));
}
