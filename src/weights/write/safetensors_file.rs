//! Writes safetensors files (<https://github.com/huggingface/safetensors>).

use std::{
    cmp::Reverse,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value as Json, json};

use crate::weights::Payload;
use crate::{
    error::{Error, Result},
    files::AtomicFile,
};

/// Writes tensors and metadata to a safetensors file.
///
/// # Errors
/// If two tensors have the same name, one of them cannot be read, or the file cannot be written.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, Payload)],
    remarks: &[(String, String)],
) -> Result<()> {
    refuse_doubles(path, tensors)?;
    fill(path, &tensors.iter().collect::<Vec<_>>(), remarks)?.finish()
}

/// Writes safetensors files of at most `shard_bytes` of data each (a larger tensor gets its own file) and their index:
/// `model-00001-of-00002.safetensors` and `model.safetensors.index.json` for the path `model.safetensors`. Returns the
/// files written; if everything fits into one file, that is `path` itself, without an index.
///
/// # Errors
/// As [`write_safetensors`]; no file is left then.
pub fn write_shards(
    path: &Path,
    tensors: &[(String, Payload)],
    remarks: &[(String, String)],
    shard_bytes: usize,
) -> Result<Vec<PathBuf>> {
    refuse_doubles(path, tensors)?;
    let mut shards: Vec<Vec<&(String, Payload)>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.1.entry().bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= room => shard.push(tensor),
            _ => {
                shards.push(vec![tensor]);
                room = shard_bytes;
            }
        }
        room = room.saturating_sub(bytes);
    }
    if shards.len() <= 1 {
        write_safetensors(path, tensors, remarks)?;
        return Ok(vec![path.to_path_buf()]);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut weight_map = Map::new();
    let mut files = Vec::with_capacity(shards.len() + 1);
    for (at, shard) in shards.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", at + 1, shards.len());
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        files.push(fill(&path.with_file_name(name), shard, remarks)?);
    }
    let total: usize = tensors.iter().map(|(_, payload)| payload.entry().bytes()).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let mut file = AtomicFile::create(&path.with_file_name(format!("{stem}.safetensors.index.json")))?;
    let text = format!("{index:#}\n");
    file.write_all(text.as_bytes()).map_err(Error::io("write", file.path()))?;
    files.push(file);
    let written = files.iter().map(|file| file.path().to_path_buf()).collect();
    for file in files {
        file.finish()?;
    }
    Ok(written)
}

fn refuse_doubles(path: &Path, tensors: &[(String, Payload)]) -> Result<()> {
    let mut names = std::collections::HashSet::new();
    match tensors.iter().find(|(name, _)| !names.insert(name) || name == "__metadata__") {
        None => Ok(()),
        Some((name, _)) => Err(Error::Checkpoint {
            path: path.to_path_buf(),
            message: format!("cannot be written: the name {name} is a duplicate or reserved by the format"),
        }),
    }
}

/// Writes a complete file that is not yet renamed to its final name.
fn fill(path: &Path, tensors: &[&(String, Payload)], remarks: &[(String, String)]) -> Result<AtomicFile> {
    let mut tensors = tensors.to_vec();
    // Widest elements first, so that each tensor is aligned to its element size, as readers that map the file require.
    tensors.sort_by_key(|(_, payload)| Reverse(payload.entry().kind.width()));
    let mut header = Map::new();
    let mut texts: Map<String, Json> =
        remarks.iter().map(|(name, text)| (name.clone(), json!(text))).collect();
    // Hugging Face's loaders reject a file whose metadata does not name a format.
    texts.insert("format".to_owned(), json!("pt"));
    header.insert("__metadata__".to_owned(), Json::Object(texts));
    let mut end = 0;
    for (name, payload) in &tensors {
        let (entry, start) = (payload.entry(), end);
        end += entry.bytes();
        let kind = entry.kind.safetensors().to_string();
        header.insert(
            name.clone(),
            json!({ "dtype": kind, "shape": entry.shape, "data_offsets": [start, end] }),
        );
    }
    let mut text = Json::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut file = AtomicFile::create(path)?;
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", path));
    write(&(text.len() as u64).to_le_bytes())?;
    write(text.as_bytes())?;
    for (_, payload) in &tensors {
        payload.each_chunk(&mut write)?;
    }
    Ok(file)
}
