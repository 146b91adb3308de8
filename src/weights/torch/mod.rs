//! Reads PyTorch checkpoints without Python: the zip archive that `torch.save` has written since 1.6, and the legacy
//! stream.
//!
//! Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch 2.6, whose `weights_only` loader works alike.

mod archive;
mod flatten;
mod globals;
mod pickle;

use std::{collections::HashMap, ops::Range, sync::Arc};

pub(super) use globals::{python_name, storage_name};
use pickle::{Item, Node, Pickled};

use super::{Contents, damaged, stored::MappedFile};
use crate::error::Result;

/// The magic number of the legacy stream, as a pickle.
const MAGIC: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The magic number in protocol 1.
const MAGIC_LINE: &[u8] = b"L119547037146038801333356L\n.";

/// Maximum length of the magic number's pickle in any protocol.
const MAGIC_WITHIN: usize = 64;

/// The version of the legacy stream.
const STREAM_VERSION: i64 = 1001;

/// Whether the bytes start like a checkpoint of either format, or like any other pickle.
pub(super) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK") || bytes.starts_with(MAGIC_LINE) || matches!(bytes, [0x80, 0..=5, ..])
}

/// Length of the magic number's pickle, if the bytes start with it.
fn magic_length(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(MAGIC_LINE) {
        return Some(MAGIC_LINE.len());
    }
    let pickled = pickle::run(&bytes[..bytes.len().min(MAGIC_WITHIN)]).ok()?;
    match pickled.node(pickled.root) {
        Some(Node::Long(digits)) if pickled.text_bytes(digits) == MAGIC => Some(pickled.length),
        _ => None,
    }
}

/// Reads the tensors and values of a checkpoint, in file order.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<Contents> {
    let found = if file.starts_with(b"PK") {
        from_archive(file)
    } else if let Some(length) = magic_length(file) {
        from_stream(file, length)
    } else {
        Err("a pickle, but not a PyTorch checkpoint; save a dict of tensors with torch.save".to_owned())
    };
    found.map_err(|message| damaged(file.path(), message))
}

/// Byte ranges of the storages, by key.
struct Storages<'a> {
    file: &'a Arc<MappedFile>,
    regions: HashMap<Vec<u8>, Range<usize>>,
    big_endian: bool,
}

fn from_archive(file: &Arc<MappedFile>) -> Result<Contents, String> {
    let entries = archive::entries(file)?;
    let mut pickles =
        entries.iter().filter(|entry| entry.name == "data.pkl" || entry.name.ends_with("/data.pkl"));
    let Some(pickle) = pickles.next() else {
        return Err(
            "a zip archive without data.pkl, so not a PyTorch checkpoint; unpack it and name the file within"
                .to_owned(),
        );
    };
    if let Some(second) = pickles.next() {
        return Err(format!("contains both {} and {}; a checkpoint has only one", pickle.name, second.name));
    }
    let folder = &pickle.name[..pickle.name.len() - "data.pkl".len()];
    let within: HashMap<&str, &Range<usize>> =
        entries.iter().filter_map(|entry| Some((entry.name.strip_prefix(folder)?, &entry.data))).collect();
    if within.contains_key("constants.pkl") {
        return Err(
            "a TorchScript program, not a checkpoint; save its state_dict() with torch.save".to_owned()
        );
    }
    let big_endian = match within.get("byteorder").map(|&range| &file[range.clone()]) {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(other) => {
            let other = String::from_utf8_lossy(&other[..other.len().min(16)]).into_owned();
            return Err(format!("its byte order is {other:?} instead of little or big"));
        }
    };
    let pickled = pickle::run(&file[pickle.data.clone()])?;
    let regions = within
        .iter()
        .filter_map(|(name, range)| Some((name.strip_prefix("data/")?.as_bytes().to_vec(), (*range).clone())))
        .collect();
    flatten::flatten(&pickled, &Storages { file, regions, big_endian })
}

fn from_stream(file: &Arc<MappedFile>, magic: usize) -> Result<Contents, String> {
    let mut at = magic;
    let mut next = |what: &str| {
        let pickled = pickle::run(&file[at..]).map_err(|message| format!("{what}: {message}"))?;
        at += pickled.length;
        Ok::<_, String>(pickled)
    };
    let version = next("the version")?.root;
    let system = next("the description of the system")?;
    let pickled = next("the checkpoint")?;
    let keys = next("the list of storages")?;
    match version {
        Item::Int(STREAM_VERSION) => {}
        other => return Err(format!("the stream's version is {other:?} instead of {STREAM_VERSION}")),
    }
    let big_endian = match system.entry("little_endian") {
        Some(Item::Bool(little)) => !little,
        _ => return Err("the description of the system does not say little_endian".to_owned()),
    };
    let mentioned: HashMap<&[u8], _> =
        pickled.storages().map(|storage| (pickled.text_bytes(&storage.key), storage)).collect();
    let mut regions = HashMap::new();
    for &key in keys.list(keys.root).ok_or("the list of storages is not a list")? {
        let key = keys.bytes_of(key).ok_or("a storage's key is not a string")?;
        let storage = mentioned.get(key);
        let storage = storage
            .ok_or_else(|| format!("nothing refers to the storage {}", String::from_utf8_lossy(key)))?;
        let length: &[u8; 8] = file
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .ok_or("truncated before a storage; download or save it again")?;
        at += length.len();
        if i64::from_le_bytes(*length) as u64 != storage.numbers as u64 {
            return Err(format!(
                "a storage of {} elements claims to have {}",
                storage.numbers,
                i64::from_le_bytes(*length)
            ));
        }
        let end = storage.bytes().and_then(|bytes| at.checked_add(bytes)).filter(|&end| end <= file.len());
        let end = end.ok_or("truncated within a storage; download or save it again")?;
        if regions.insert(key.to_vec(), at..end).is_some() {
            return Err(format!("the storage {} occurs twice", String::from_utf8_lossy(key)));
        }
        at = end;
    }
    flatten::flatten(&pickled, &Storages { file, regions, big_endian })
}

impl Pickled<'_> {
    /// The value of a string key in the outermost dict.
    fn entry(&self, key: &str) -> Option<Item> {
        let Node::Dict(pairs) = self.node(self.root)? else { return None };
        pairs.iter().find(|(name, _)| self.bytes_of(*name) == Some(key.as_bytes())).map(|&(_, value)| value)
    }

    fn list(&self, item: Item) -> Option<&[Item]> {
        match self.node(item)? {
            Node::List(items) => Some(items),
            _ => None,
        }
    }
}
