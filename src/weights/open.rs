//! Recognising what a path is: by its content, for a name says little and a failed download carries the right one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{Found, damaged, safetensors_file, stored::MappedFile, torch};
use crate::error::{Error, Result};

/// The names that Hugging Face's libraries give a folder's weights, in the order they are looked for.
const NAMES: [&str; 10] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
];

/// What an index of shards says.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a file or folder.
pub(super) fn open(path: &Path) -> Result<Found> {
    let path = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
    if path.extension().is_some_and(|extension| extension == "json") {
        return sharded(&path);
    }
    single(&path)
}

/// The file of weights in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(name) = NAMES.iter().find(|name| folder.join(name).exists()) {
        return Ok(folder.join(name));
    }
    let mut others = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path
            .extension()
            .is_some_and(|end| ["safetensors", "pth", "pt", "bin"].iter().any(|known| end == *known))
        {
            others.insert(path);
        }
    }
    match (others.len(), others.pop_first()) {
        (1, Some(only)) => Ok(only),
        (count, _) => Err(damaged(
            folder,
            format!(
                "the folder holds none of {}, and {count} other files of weights; name the file itself",
                NAMES.join(", ")
            ),
        )),
    }
}

/// The shards that an index names.
fn sharded(path: &Path) -> Result<Found> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| {
        damaged(path, format!("not an index of shards, which has the key weight_map: {error}"))
    })?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        shards.entry(shard).or_default().push(name);
    }
    let mut found = Found::default();
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
        let Found { tensors, values } = single(&shard_path)?;
        let mut held: BTreeMap<String, _> = tensors.into_iter().collect();
        if found.values.is_empty() {
            found.values = values;
        }
        for name in names {
            let stored = held.remove(name).ok_or_else(|| {
                damaged(
                    &shard_path,
                    format!("lacks the tensor {name}, which {} says it holds", path.display()),
                )
            })?;
            found.tensors.push((name.to_owned(), stored));
        }
    }
    Ok(found)
}

/// The tensors of one file, whatever it is called.
fn single(path: &Path) -> Result<Found> {
    let size = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size == 0 {
        return Err(damaged(path, "the file is empty; fetch or write it again"));
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

/// What a file is that holds no weights, and what to do.
fn unknown(bytes: &[u8]) -> String {
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).trim_start().to_ascii_lowercase();
    let known: [(bool, &str); 6] = [
        (
            beginning.starts_with("version https://git-lfs"),
            "a Git LFS pointer, not the weights themselves; run `git lfs pull` in its repository, or download the file",
        ),
        (
            beginning.starts_with("<!doctype html") || beginning.starts_with("<html"),
            "an HTML page, not weights: the download gave an error or a login page; download the file again, with access to it",
        ),
        (
            beginning.starts_with("<?xml"),
            "an XML answer, not weights: the download was refused; download the file again",
        ),
        (bytes.starts_with(b"\x89HDF"), "an HDF5 file, as Keras writes; export the weights as safetensors"),
        (bytes.starts_with(b"GGUF"), "a GGUF file; take the model's safetensors or PyTorch weights instead"),
        (bytes.starts_with(&[0x1f, 0x8b]), "a gzip archive; unpack it first"),
    ];
    let found = known.iter().find(|(is, _)| *is).map(|(_, what)| *what);
    found
        .unwrap_or("neither safetensors nor a PyTorch checkpoint, or cut off near its beginning; fetch or write it again")
        .to_owned()
}
