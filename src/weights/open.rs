//! Detects the format of a path by its content, because a failed download has the right name, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{Contents, damaged, safetensors_file, stored::MappedFile, torch};
use crate::{
    error::{Error, Result},
    files::mistaken::{Mistaken, read_json},
};

/// File names that Hugging Face's libraries use for weights, in order of preference; their
/// [`variant`]s come last.
const NAMES: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
];

/// The index of a sharded model.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a file or folder.
pub(super) fn open(path: &Path) -> Result<Contents> {
    let path = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
    if path.extension().is_some_and(|extension| extension == "json") {
        return sharded(&path);
    }
    single(&path)
}

/// The variant in a file name derived from one of [`NAMES`], which precedes the last extension:
/// `model.fp16.safetensors`, `model.safetensors.index.fp16.json`. `None` for shards
/// (`model.fp16-00001-of-00002.safetensors`, or the number after the name).
fn variant(file: &str) -> Option<&str> {
    let (rest, ending) = file.rsplit_once('.')?;
    let (name, variant) = rest.rsplit_once('.')?;
    let is_shard = file.contains("-of-");
    let known = NAMES.iter().any(|known| known.rsplit_once('.') == Some((name, ending)));
    (known && !is_shard && !NAMES.contains(&file)).then_some(variant)
}

/// Finds the weights file in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(name) = NAMES.iter().find(|name| folder.join(name).exists()) {
        return Ok(folder.join(name));
    }
    let (mut others, mut variants) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.file_name().and_then(|name| name.to_str()).and_then(variant).is_some() {
            variants.insert(path.clone());
        }
        if path
            .extension()
            .is_some_and(|end| ["safetensors", "pth", "pt", "bin"].iter().any(|known| end == *known))
        {
            others.insert(path);
        }
    }
    if variants.len() > 1 {
        let names: Vec<_> =
            variants.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy())).collect();
        return Err(damaged(
            folder,
            format!(
                "the folder has several variants of the weights ({}); pass the file itself",
                names.join(", ")
            ),
        ));
    }
    if let Some(only) = variants.pop_first() {
        return Ok(only);
    }
    match (others.len(), others.pop_first()) {
        (1, Some(only)) => Ok(only),
        (0, _) => Err(damaged(
            folder,
            "the folder contains no weights: neither model.safetensors nor another .safetensors, .pth, .pt or .bin file"
                .to_owned(),
        )),
        (count, _) => Err(damaged(
            folder,
            format!(
                "the folder contains {count} weight files, none of them named {}; pass one of them",
                NAMES.join(", ")
            ),
        )),
    }
}

/// Opens the shards listed in an index.
fn sharded(path: &Path) -> Result<Contents> {
    let index: Index = read_json(path, "an index of shards with the key weight_map")?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        shards.entry(shard).or_default().push(name);
    }
    let mut found = Contents::default();
    let mut unnamed = Vec::new();
    for (shard, names) in shards {
        let own_name = Path::new(shard).components().eq([Component::Normal(shard.as_ref())]);
        if !own_name {
            return Err(damaged(
                path,
                format!(
                    "the index names the shard {shard:?}, which is not a file in the index's own folder; refused"
                ),
            ));
        }
        let shard_path = path.with_file_name(shard);
        let Contents { tensors, values } = single(&shard_path)?;
        let mut held: BTreeMap<String, _> = tensors.into_iter().collect();
        if found.values.is_empty() {
            found.values = values;
        }
        for name in names {
            let stored = held.remove(name).ok_or_else(|| {
                damaged(&shard_path, format!("has no tensor {name}, although {} lists it", path.display()))
            })?;
            found.tensors.push((name.to_owned(), stored));
        }
        unnamed.extend(held.into_keys().filter(|name| !index.weight_map.contains_key(name)));
    }
    if let Some(first) = unnamed.first() {
        // Not an error, since every listed tensor exists. But the index may be older than the shards.
        tracing::warn!(
            "{} does not name {} of the tensors in its shards, the first of them {first}; they are skipped; if \
             they should not be, download the index again",
            path.display(),
            unnamed.len()
        );
    }
    Ok(found)
}

/// The tensors of one file, whatever its name.
fn single(path: &Path) -> Result<Contents> {
    let about = fs::metadata(path).map_err(Error::io("read", path))?;
    if !about.is_file() {
        return Err(damaged(path, "is not a regular file; weights are memory-mapped"));
    }
    if about.len() == 0 {
        return Err(damaged(path, "the file is empty; download or save it again"));
    }
    let file = MappedFile::open(path)?;
    if safetensors_file::begins(&file) {
        return safetensors_file::read(&file);
    }
    if torch::begins(&file) {
        return torch::read(&file);
    }
    Err(damaged(path, unknown(&file)))
}

/// Identifies a file that contains no weights, with a hint.
fn unknown(bytes: &[u8]) -> String {
    let known: [(&[u8], &str); 3] = [
        (b"\x89HDF", "an HDF5 file, as Keras writes; export the weights as safetensors"),
        (b"GGUF", "a GGUF file; use the model's safetensors or PyTorch weights instead"),
        (&[0x1f, 0x8b], "a gzip archive; unpack it first"),
    ];
    if let Some((_, what)) = known.iter().find(|(begins, _)| bytes.starts_with(begins)) {
        return (*what).to_owned();
    }
    match Mistaken::of(bytes) {
        Some(found) => format!("not weights but {found}"),
        None => {
            let cure = "download or save it again";
            format!("neither safetensors nor a PyTorch checkpoint, or truncated near its beginning; {cure}")
        }
    }
}
