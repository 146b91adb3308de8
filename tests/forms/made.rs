//! One corpus in every form.
#![allow(dead_code, unreachable_pub, reason = "a module of two test binaries")]

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use alchemist_engine::data::{ColumnNames, Corpus};
use flate2::{Compression, write::GzEncoder};
use parquet::{
    basic::Compression as Pages,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::json;

/// A pair of the corpus.
#[derive(Clone)]
pub struct Pair {
    pub id: String,
    pub caption: String,
    pub path: PathBuf,
    pub image: Vec<u8>,
}

/// The pairs of a CSV; every third has no caption.
pub fn pairs(csv: &Path) -> Vec<Pair> {
    let records = Corpus::open(csv, &ColumnNames::default()).unwrap().read_all().unwrap();
    let pair = |(at, record): (usize, alchemist_engine::data::Record)| {
        let path = record.image.as_path().to_path_buf();
        let image = fs::read(&path).unwrap();
        let caption = if at % 3 == 2 { String::new() } else { record.caption };
        Pair { id: format!("k{at:04}"), caption, path, image }
    };
    records.into_iter().enumerate().map(pair).collect()
}

pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn table(pairs: &[Pair], separator: u8) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().delimiter(separator).from_writer(Vec::new());
    writer.write_record(["id", "image_save_path", "caption"]).unwrap();
    for pair in pairs {
        writer.write_record([&pair.id, pair.path.to_str().unwrap(), &pair.caption]).unwrap();
    }
    writer.into_inner().unwrap()
}

fn lines(pairs: &[Pair], name: impl Fn(usize, &Pair) -> String) -> Vec<u8> {
    let line = |(at, pair): (usize, &Pair)| {
        let line =
            json!({"file_name": name(at, pair), "text": pair.caption, "id": pair.id, "tags": ["a", 1]});
        format!("{line}\n")
    };
    pairs.iter().enumerate().map(line).collect::<String>().into_bytes()
}

/// The bytes of a tar: per pair an image, `.json` and, if it has a caption, `.txt`.
pub fn archive(pairs: &[Pair], key: impl Fn(&Pair) -> String) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for pair in pairs {
        let json = json!({"uid": pair.id, "url": "https://host/x.png", "status": "success"}).to_string();
        let text = (!pair.caption.is_empty()).then_some(("txt", pair.caption.as_bytes()));
        let members = [("json", json.as_bytes()), ("png", &pair.image[..])];
        for (ending, bytes) in members.into_iter().chain(text) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{}.{ending}", key(pair)), bytes).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

/// What a Parquet file has in its column of images.
#[derive(Clone, Copy, PartialEq)]
pub enum Column {
    Path,
    Struct,
    Binary,
}

/// Writes Parquet in row groups of so many rows.
pub fn parquet(to: &Path, pairs: &[Pair], column: Column, group: usize) {
    let images = match column {
        Column::Path => "required binary image_path (UTF8);",
        Column::Struct => "optional group image { optional binary bytes; optional binary path (UTF8); }",
        Column::Binary => "required binary image;",
    };
    let schema = format!("message m {{ {images} optional binary text (UTF8); required binary id (UTF8); }}");
    let properties =
        WriterProperties::builder().set_compression(Pages::SNAPPY).set_data_page_row_count_limit(3);
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(properties.set_write_batch_size(1).build());
    let mut writer = SerializedFileWriter::new(File::create(to).unwrap(), schema, properties).unwrap();
    for pairs in pairs.chunks(group) {
        let mut rows = writer.next_row_group().unwrap();
        let mut write = |values: Vec<ByteArray>, levels: Option<Vec<i16>>| {
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, levels.as_deref(), None).unwrap();
            column.close().unwrap();
        };
        let of = |field: &dyn Fn(&Pair) -> Vec<u8>| {
            pairs.iter().map(|pair| ByteArray::from(field(pair))).collect::<Vec<_>>()
        };
        let bytes = of(&|pair| pair.image.clone());
        match column {
            Column::Path => write(of(&|pair| pair.path.to_str().unwrap().into()), None),
            Column::Binary => write(bytes, None),
            Column::Struct => {
                write(bytes, Some(vec![2; pairs.len()]));
                write(Vec::new(), Some(vec![1; pairs.len()]));
            }
        }
        // An empty caption is null.
        let captions = pairs.iter().filter(|pair| !pair.caption.is_empty());
        let captions = captions.map(|pair| ByteArray::from(pair.caption.as_str())).collect();
        let levels = pairs.iter().map(|pair| i16::from(!pair.caption.is_empty())).collect();
        write(captions, Some(levels));
        write(of(&|pair| pair.id.clone().into()), None);
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

/// A form: what is passed as `--data`, and the word that says what it is taken for.
pub struct Made {
    pub data: String,
    pub taken_for: &'static str,
}

/// Writes the corpus in every form below a folder.
pub fn every(folder: &Path, pairs: &[Pair]) -> Vec<Made> {
    let (first, second) = pairs.split_at(pairs.len() / 3);
    let mut made = Vec::new();
    let mut add = |name: &str, files: &[(&str, Vec<u8>)], data: &str, taken_for| {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, bytes) in files {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), bytes).unwrap();
        }
        made.push(Made { data: format!("{name}/{data}").trim_end_matches('/').to_owned(), taken_for });
        folder
    };
    let comma = table(pairs, b',');
    add("csv", &[("c.csv", comma.clone())], "c.csv", "");
    add("csv_gz", &[("c.csv.gz", gzipped(&comma))], "c.csv.gz", "compressed with gzip");
    add("csv_zst", &[("c.csv", zstd::encode_all(&comma[..], 1).unwrap())], "c.csv", "compressed with zstd");
    add("tsv_gz", &[("c.tsv.gz", gzipped(&table(pairs, b'\t')))], "c.tsv.gz", "delimited text");
    add(
        "csv_parts",
        &[("part-0.csv", table(first, b',')), ("part-1.csv", table(second, b','))],
        "part-*.csv",
        "2 files of delimited",
    );
    let absolute = |_: usize, pair: &Pair| pair.path.to_str().unwrap().to_owned();
    add("jsonl", &[("c.jsonl", lines(pairs, absolute))], "c.jsonl", "JSON Lines");
    add("jsonl_gz", &[("c", gzipped(&lines(pairs, absolute)))], "c", "JSON Lines, compressed");
    let zst = zstd::encode_all(&lines(pairs, absolute)[..], 1).unwrap();
    add("jsonl_zst", &[("c.jsonl.zst", zst)], "c.jsonl.zst", "JSON Lines, compressed");
    let whole = archive(pairs, |pair| pair.id.clone());
    add("tar", &[("c.tar", whole.clone())], "c.tar", "WebDataset");
    add("tar_gz", &[("c.tar.gz", gzipped(&whole))], "c.tar.gz", "WebDataset, compressed");
    let shards = [first, second].map(|pairs| archive(pairs, |pair| format!("d/{}", pair.id)));
    let [zero, one] = shards;
    let sidecars = [("00000_stats.json", b"{}".to_vec()), ("00000.parquet", b"PAR1".to_vec())];
    let files: Vec<(&str, Vec<u8>)> =
        [("00000.tar", zero.clone()), ("00001.tar", one.clone())].into_iter().chain(sidecars).collect();
    add("tar_folder", &files, "", "2 files of WebDataset");
    add("tar_list", &[("0.tar", zero), ("1.tar", one)], "{0..1}.tar", "2 files of WebDataset");
    for (name, column) in [("paths", Column::Path), ("structs", Column::Struct), ("binary", Column::Binary)] {
        let to = add(name, &[], "c.parquet", "Parquet");
        parquet(&to.join("c.parquet"), pairs, column, 10);
    }
    let to = add("parquet_parts", &[("_SUCCESS", Vec::new())], "", "2 files of Parquet");
    parquet(&to.join("part-0.parquet"), first, Column::Struct, 5);
    parquet(&to.join("part-1.parquet"), second, Column::Struct, 7);
    let named: Vec<String> = (0..pairs.len()).map(|at| format!("i/{at:04}.png")).collect();
    let images = || pairs.iter().zip(&named).map(|(pair, name)| (name.as_str(), pair.image.clone()));
    let metadata = ("metadata.jsonl", lines(pairs, |at, _| named[at].clone()));
    add("folder_jsonl", &images().chain([metadata]).collect::<Vec<_>>(), "", "JSON Lines");
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["file_name", "text"]).unwrap();
    pairs.iter().zip(&named).for_each(|(pair, name)| writer.write_record([name, &pair.caption]).unwrap());
    let metadata = ("metadata.csv", writer.into_inner().unwrap());
    add("folder_csv", &images().chain([metadata]).collect::<Vec<_>>(), "", "delimited text");
    let to = add("folder_parquet", &images().collect::<Vec<_>>(), "", "Parquet");
    let local: Vec<Pair> = std::iter::zip(pairs, &named)
        .map(|(pair, name)| Pair { path: PathBuf::from(name), ..pair.clone() })
        .collect();
    parquet(&to.join("metadata.parquet"), &local, Column::Path, 100);
    let texts: Vec<String> = named.iter().map(|name| name.replace("png", "txt")).collect();
    let captions = pairs.iter().zip(&texts).filter(|(pair, _)| !pair.caption.is_empty());
    let captions = captions.map(|(pair, name)| (name.as_str(), format!("{}\n", pair.caption).into_bytes()));
    add("folder_txt", &images().chain(captions).collect::<Vec<_>>(), "", "captions in text files");
    made
}
