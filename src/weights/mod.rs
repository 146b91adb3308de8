//! Weight files: safetensors and PyTorch checkpoints, single files or shards, behind one type.
//!
//! Opening a file maps it and checks its table of tensors against its length; values are read on demand. Nothing in a
//! file is ever executed: a PyTorch checkpoint is a program for Python's `pickle` machine, of which only the few names
//! that tensors need are supported. Objects of other classes are opaque: [`Value::Object`] records the class, and no
//! object is constructed. A file that consists of one such object, or that refers to a name that only malicious pickles
//! use (`os.system`), is rejected.
//!
//! ```no_run
//! # fn main() -> alchemist_engine::Result<()> {
//! use alchemist_engine::weights::Weights;
//! let file = Weights::open("ar-ckpt-ep0.pth".as_ref())?;
//! let rater = file.within("trainer.varRater_wo_ddp").without_module();
//! let embedding = rater.read("word_embed.weight")?;
//! # Ok(())
//! # }
//! ```

mod compare;
mod kind;
mod open;
mod payload;
mod safetensors_file;
mod stored;
mod torch;
mod value;
mod wrappers;
mod write;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    sync::Arc,
};

pub use compare::{Differences, OtherShape, Unmatched};
pub use kind::NumberKind;
pub use payload::Payload;
pub(crate) use stored::MappedFile;
use stored::Stored;
pub use stored::TensorInfo;
pub use value::Value;
pub use write::{write_safetensors, write_shards, write_torch};

use crate::{
    engine::Tensor,
    error::{Error, Result},
};

/// Limits the total size of tensors that share storage, once each is written separately: this many times the file's
/// size, plus a constant number of bytes. Tied weights and views of one buffer need a small factor.
const SHARED_COPIES: usize = 16;
const SHARED_BYTES: usize = 1 << 20;

/// The tensors of a file or folder, looked up by name and read on demand. Cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    inner: Arc<Inner>,
}

struct Inner {
    path: Arc<Path>,
    /// In file order.
    tensors: Vec<(String, Stored)>,
    index: HashMap<String, usize>,
    values: Vec<(String, Value)>,
}

/// A float tensor of a file, read on demand. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct StoredFloats(Stored);

impl StoredFloats {
    /// The tensor's shape.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.0.entry().shape
    }

    /// The values as f32, row-major; borrowed if the file stores them that way.
    pub(crate) fn values(&self) -> Cow<'_, [f32]> {
        self.0.floats()
    }
}

impl fmt::Debug for StoredFloats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("StoredFloats").field(self.0.entry()).finish()
    }
}

/// The result of a reader, in file order.
#[derive(Default)]
struct Contents {
    tensors: Vec<(String, Stored)>,
    values: Vec<(String, Value)>,
}

impl Weights {
    /// Opens a safetensors file, a PyTorch checkpoint (`.pth`, `.pt`, `.bin`), the index of a sharded model
    /// (`*.index.json`), or a folder with one of these under a name that Hugging Face's libraries use. The format
    /// is detected by content.
    ///
    /// # Errors
    /// If the path cannot be read, is truncated or damaged, contains no weights, or contains code to run.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(path.into(), open::open(path)?)
    }

    fn of(path: Arc<Path>, found: Contents) -> Result<Self> {
        let mut index = HashMap::with_capacity(found.tensors.len());
        for (at, (name, _)) in found.tensors.iter().enumerate() {
            if index.insert(name.clone(), at).is_some() {
                return Err(damaged(&path, format!("two tensors have the name {name}")));
            }
        }
        let Contents { tensors, values } = found;
        Ok(Self { inner: Arc::new(Inner { path, tensors, index, values }) })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.inner.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.inner.tensors.is_empty()
    }

    /// The names of the tensors, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// The names, shapes and element types of the tensors, in file order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.inner.tensors.iter().map(|(name, stored)| (name.as_str(), stored.entry()))
    }

    /// Shape and element type of a tensor.
    pub fn entry(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.index.get(name).map(|&at| self.inner.tensors[at].1.entry())
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.inner.index.contains_key(name)
    }

    /// The values other than tensors, such as `epoch` or `trainer.config.patch_nums`, in file order; for a safetensors
    /// file, its metadata.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.inner.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// One of the [`values`](Self::values).
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Reads a tensor to the host, row-major: floats of any width as f32, integers and bools as u32.
    ///
    /// # Errors
    /// If no tensor has this name, an integer is negative or above 2³² − 1, or the element type is not supported for
    /// computation (8-bit floats, complex numbers).
    pub fn read(&self, name: &str) -> Result<Tensor> {
        self.stored(name)?.read(name)
    }

    /// A tensor to be written to another file; its values are read during the write.
    ///
    /// # Errors
    /// If no tensor has this name, or it is an expanded tensor with more elements than the file has bytes.
    pub fn payload(&self, name: &str) -> Result<Payload> {
        let stored = self.stored(name)?;
        stored.expect_few(name)?;
        Ok(Payload::stored(stored.clone()))
    }

    /// All tensors, to be written to another file, in file order.
    ///
    /// # Errors
    /// As for [`payload`](Self::payload), if a tensor has an unsupported layout, or if tensors that share storage would
    /// together be many times the size of the files, since each is written separately.
    pub fn payloads(&self) -> Result<Vec<(String, Payload)>> {
        if let Some((name, class)) =
            self.values().find_map(|(name, value)| Some((name, unread_within(value)?)))
        {
            return Err(unread(self.path(), name, class));
        }
        let payloads = self.names().map(|name| Ok((name.to_owned(), self.payload(name)?)));
        let payloads = payloads.collect::<Result<Vec<_>>>()?;
        let files: BTreeMap<&Path, usize> =
            self.inner.tensors.iter().map(|(_, stored)| (stored.path(), stored.file_bytes())).collect();
        let held = files.values().fold(0, |sum: usize, &bytes| sum.saturating_add(bytes));
        let asked = self.entries().fold(0, |sum: usize, (_, entry)| sum.saturating_add(entry.bytes()));
        if asked > held.saturating_mul(SHARED_COPIES).saturating_add(SHARED_BYTES) {
            return Err(damaged(
                self.path(),
                format!(
                    "its {} tensors share storage: written separately, they take {asked} bytes, more than \
                     {SHARED_COPIES} times what there is; take fewer of them",
                    self.len()
                ),
            ));
        }
        Ok(payloads)
    }

    /// A float tensor, read on demand.
    ///
    /// # Errors
    /// If no tensor has this name, or its element type is not a supported float.
    pub(crate) fn floats(&self, name: &str) -> Result<StoredFloats> {
        let stored = self.stored(name)?;
        stored.expect_floats(name)?;
        Ok(StoredFloats(stored.clone()))
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let at = self.inner.index.get(name).ok_or_else(|| {
            // The tensor may have an unsupported layout, or be inside an opaque object.
            let holds = |whole: &str| {
                name.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let opaque = self.values().filter(|(other, _)| holds(other));
            for (other, value) in opaque {
                match value {
                    Value::Unread(class) => return unread(self.path(), other, class),
                    Value::Object(class) => {
                        return damaged(
                            self.path(),
                            format!(
                                "no tensor {name}: {other} is an object of {class}, which is not supported"
                            ),
                        );
                    }
                    _ => {}
                }
            }
            let missing = self.compare([(name.to_owned(), Vec::new())]).missing;
            let nearest = missing.into_iter().find_map(|one| one.nearest);
            let hint = nearest.map_or(String::new(), |nearest| format!("; the nearest name is {nearest}"));
            damaged(self.path(), format!("no tensor {name}{hint}"))
        })?;
        Ok(&self.inner.tensors[*at].1)
    }

    /// The tensors and values below `prefix.`, with the prefix removed: `trainer.varRater_wo_ddp` selects the rater of
    /// an upstream checkpoint, an empty prefix everything. The result may be empty; see [`is_empty`](Self::is_empty).
    pub fn within(&self, prefix: &str) -> Self {
        if prefix.is_empty() {
            return self.clone();
        }
        self.renamed(|name| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned()))
    }

    /// Renames the tensors and values; drops those for which `rename` returns `None`. Names must stay unique.
    fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        fn keep<T: Clone>(list: &[(String, T)], rename: impl Fn(&str) -> Option<String>) -> Vec<(String, T)> {
            let kept = |(name, item): &(String, T)| Some((rename(name)?, item.clone()));
            list.iter().filter_map(kept).collect()
        }
        let tensors = keep(&self.inner.tensors, &rename);
        let values = keep(&self.inner.values, &rename);
        let index = tensors.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let path = Arc::clone(&self.inner.path);
        Self { inner: Arc::new(Inner { path, tensors, index, values }) }
    }

    /// Compares the tensors with the names and shapes that a model expects.
    pub fn compare(&self, expected: impl IntoIterator<Item = (String, Vec<usize>)>) -> Differences {
        Differences::of(self, expected)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut structure = formatter.debug_struct("Weights");
        structure.field("path", &self.path()).field("tensors", &self.len()).finish_non_exhaustive()
    }
}

/// The class of the first tensor within a value that has an unsupported layout.
fn unread_within(value: &Value) -> Option<&str> {
    match value {
        Value::Unread(class) => Some(class),
        Value::List(items) | Value::Tuple(items) => items.iter().find_map(unread_within),
        _ => None,
    }
}

/// The error for a tensor with an unsupported layout.
fn unread(path: &Path, name: &str, class: &str) -> Error {
    damaged(
        path,
        format!(
            "tensor {name} has an unsupported layout ({class}); save it in Python as a plain dense tensor"
        ),
    )
}

/// An [`Error::Checkpoint`].
fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}
