//! Weights in files: safetensors and PyTorch checkpoints, whole or in shards, behind one type.
//!
//! A file is mapped and its table of tensors checked against its length when it is opened; numbers are read when they are
//! asked for. Nothing in a file is ever executed: a PyTorch checkpoint is a program for Python's `pickle` machine, of which
//! only the few names that tensors need are understood. Objects of other classes are opaque: [`Value::Object`] says that one
//! is there, and nothing of it is made. A file that is one such object as a whole, or that names what only harmful pickles
//! name (`os.system`), is refused.
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

/// How many times a file's bytes its tensors may be when each is written with numbers of its own, and how many bytes
/// beyond that. Tied weights and views of one buffer are a few times.
const SHARED_COPIES: usize = 16;
const SHARED_BYTES: usize = 1 << 20;

/// Tensors of a file or a folder of files, found by name, read when asked for. Cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    inner: Arc<Inner>,
}

struct Inner {
    path: Arc<Path>,
    /// In the order of the file.
    tensors: Vec<(String, Stored)>,
    places: HashMap<String, usize>,
    values: Vec<(String, Value)>,
}

/// Floats in a file, which are read when they are asked for. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct StoredFloats(Stored);

impl StoredFloats {
    /// The tensor's shape.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.0.entry().shape
    }

    /// The numbers as f32, row by row: without a copy where they lie so in the file.
    pub(crate) fn values(&self) -> Cow<'_, [f32]> {
        self.0.floats()
    }
}

impl fmt::Debug for StoredFloats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("StoredFloats").field(self.0.entry()).finish()
    }
}

/// What a reader found, in the file's order.
#[derive(Default)]
struct Found {
    tensors: Vec<(String, Stored)>,
    values: Vec<(String, Value)>,
}

impl Weights {
    /// Opens a safetensors file, a PyTorch checkpoint (`.pth`, `.pt`, `.bin`), the index of a model in shards
    /// (`*.index.json`), or a folder that holds one of them under a name that Hugging Face's libraries use. What a file is
    /// is told by its content.
    ///
    /// # Errors
    /// If it cannot be read, is cut off or damaged, holds no weights, or asks for code to be run.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(path.into(), open::open(path)?)
    }

    fn of(path: Arc<Path>, found: Found) -> Result<Self> {
        let mut places = HashMap::with_capacity(found.tensors.len());
        for (at, (name, _)) in found.tensors.iter().enumerate() {
            if places.insert(name.clone(), at).is_some() {
                return Err(damaged(&path, format!("two tensors have the name {name}")));
            }
        }
        let Found { tensors, values } = found;
        Ok(Self { inner: Arc::new(Inner { path, tensors, places, values }) })
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

    /// The names of the tensors, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// The tensors' names with shapes and kinds, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.inner.tensors.iter().map(|(name, stored)| (name.as_str(), stored.entry()))
    }

    /// Shape and kind of a tensor.
    pub fn entry(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.places.get(name).map(|&at| self.inner.tensors[at].1.entry())
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.inner.places.contains_key(name)
    }

    /// What there is besides tensors, such as `epoch` or `trainer.config.patch_nums`, in the file's order; of a safetensors
    /// file its remarks.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.inner.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// One of the [`values`](Self::values).
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// A tensor on the host, row by row: floats of any width as f32, whole numbers and bools as u32.
    ///
    /// # Errors
    /// If there is none of this name, a whole number is negative or above 2³² − 1, or the kind is one that this program does
    /// not compute with (8-bit floats, complex numbers).
    pub fn read(&self, name: &str) -> Result<Tensor> {
        self.stored(name)?.read(name)
    }

    /// A tensor to be written elsewhere, read while it is written.
    ///
    /// # Errors
    /// If there is none of this name, or it is one of few numbers expanded to more than the file holds.
    pub fn payload(&self, name: &str) -> Result<Payload> {
        let stored = self.stored(name)?;
        stored.expect_few(name)?;
        Ok(Payload::stored(stored.clone()))
    }

    /// All tensors to be written elsewhere, in the file's order.
    ///
    /// # Errors
    /// As for [`payload`](Self::payload), if a tensor is of a form that is not read, or if together they are many times the
    /// files, as tensors that share their numbers can be: written, each has its own.
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
                    "its {} tensors share numbers: written, each with its own, they are {asked} bytes, more than \
                     {SHARED_COPIES} times what there is; take fewer of them",
                    self.len()
                ),
            ));
        }
        Ok(payloads)
    }

    /// A tensor of floats, not read yet.
    ///
    /// # Errors
    /// If there is none of this name, or it is not of floats that this program computes with.
    pub(crate) fn floats(&self, name: &str) -> Result<StoredFloats> {
        let stored = self.stored(name)?;
        stored.expect_floats(name)?;
        Ok(StoredFloats(stored.clone()))
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let at = self.inner.places.get(name).ok_or_else(|| {
            // It may be of a form that is not read, or lie in an object that is not.
            let holds = |whole: &str| name.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            let opaque = self.values().filter(|(other, _)| holds(other));
            for (other, value) in opaque {
                match value {
                    Value::Unread(class) => return unread(self.path(), other, class),
                    Value::Object(class) => {
                        return damaged(
                            self.path(),
                            format!("no tensor is called {name}: {other} is an object of {class}, which is not read"),
                        );
                    }
                    _ => {}
                }
            }
            let missing = self.compare([(name.to_owned(), Vec::new())]).missing;
            let nearest = missing.into_iter().find_map(|one| one.nearest);
            let hint = nearest.map_or(String::new(), |nearest| format!("; the nearest name is {nearest}"));
            damaged(self.path(), format!("no tensor is called {name}{hint}"))
        })?;
        Ok(&self.inner.tensors[*at].1)
    }

    /// The tensors and values below `prefix.`, under the rest of their names: `trainer.varRater_wo_ddp` gives the rater
    /// of a released checkpoint, and an empty prefix everything. None is no error; see [`is_empty`](Self::is_empty).
    pub fn within(&self, prefix: &str) -> Self {
        if prefix.is_empty() {
            return self.clone();
        }
        self.renamed(|name| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned()))
    }

    /// What `rename` keeps. It must not make two names one.
    fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        fn keep<T: Clone>(list: &[(String, T)], rename: impl Fn(&str) -> Option<String>) -> Vec<(String, T)> {
            let kept = |(name, item): &(String, T)| Some((rename(name)?, item.clone()));
            list.iter().filter_map(kept).collect()
        }
        let tensors = keep(&self.inner.tensors, &rename);
        let values = keep(&self.inner.values, &rename);
        let places = tensors.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let path = Arc::clone(&self.inner.path);
        Self { inner: Arc::new(Inner { path, tensors, places, values }) }
    }

    /// How the tensors differ from the names and shapes that a model expects.
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

/// What makes the first tensor within a value that is of a form which is not read.
fn unread_within(value: &Value) -> Option<&str> {
    match value {
        Value::Unread(class) => Some(class),
        Value::List(items) | Value::Tuple(items) => items.iter().find_map(unread_within),
        _ => None,
    }
}

/// The refusal of a tensor of a form that is not read.
fn unread(path: &Path, name: &str, class: &str) -> Error {
    damaged(
        path,
        format!(
            "tensor {name} is of a form that is not read ({class}); save it in Python as a plain dense tensor"
        ),
    )
}

/// An [`Error::Checkpoint`].
fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), message: message.into() }
}
