//! Writes checkpoints that PyTorch opens, even with `weights_only=True`: protocol 2, dense tensors only.

use std::path::Path;

use super::archive::ArchiveWriter;
use crate::weights::Payload;
use crate::{
    error::Result,
    weights::{
        Value,
        stored::contiguous,
        torch::{python_name, storage_name},
    },
};

/// Number of items that one opcode adds to a dict or list; the same batch size as in Python's pickler.
const BATCH: usize = 1000;

/// Writes a checkpoint in PyTorch's zip format. The upstream layout is
/// `{"epoch": …, "iter": …, "trainer": {"config": {…}, "varRater_wo_ddp": OrderedDict}}`.
///
/// # Errors
/// If a tensor cannot be read or the file cannot be written.
pub fn write_torch(path: &Path, value: &Value) -> Result<()> {
    let mut pickle = Pickler { bytes: vec![0x80, 2], storages: Vec::new() };
    pickle.value(value);
    pickle.bytes.push(b'.');
    let mut archive = ArchiveWriter::create(path)?;
    let mut add = |name: &str, bytes: &[u8]| archive.add(name, bytes.len() as u64, |write| write(bytes));
    add("archive/data.pkl", &pickle.bytes)?;
    add("archive/byteorder", b"little")?;
    for (key, payload) in pickle.storages.iter().enumerate() {
        archive.add(&format!("archive/data/{key}"), payload.entry().bytes() as u64, |write| {
            payload.each_chunk(write)
        })?;
    }
    archive.add("archive/version", 2, |write| write(b"3\n"))?;
    archive.finish()
}

struct Pickler<'a> {
    bytes: Vec<u8>,
    storages: Vec<&'a Payload>,
}

impl<'a> Pickler<'a> {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn value(&mut self, value: &'a Value) {
        match value {
            Value::None => self.raw(b"N"),
            Value::Bool(true) => self.raw(&[0x88]),
            Value::Bool(false) => self.raw(&[0x89]),
            Value::Int(value) => self.whole(*value),
            Value::Float(value) => {
                self.raw(b"G");
                self.raw(&value.to_be_bytes());
            }
            Value::Text(text) => self.text(text),
            // Opaque objects are written as their class names.
            Value::Object(_) | Value::Unread(_) => self.text(&value.to_string()),
            Value::List(items) => {
                self.raw(b"]");
                for batch in items.chunks(BATCH) {
                    self.raw(b"(");
                    batch.iter().for_each(|item| self.value(item));
                    self.raw(b"e");
                }
            }
            Value::Tuple(items) => {
                self.raw(b"(");
                items.iter().for_each(|item| self.value(item));
                self.raw(b"t");
            }
            Value::Dict(items) => {
                self.raw(b"}");
                self.items(items);
            }
            Value::Ordered(items) => {
                self.ordered();
                self.items(items);
            }
            Value::Tensor(payload) => self.tensor(payload),
        }
    }

    fn items(&mut self, items: &'a [(String, Value)]) {
        for batch in items.chunks(BATCH) {
            self.raw(b"(");
            for (key, value) in batch {
                self.text(key);
                self.value(value);
            }
            self.raw(b"u");
        }
    }

    /// A new `OrderedDict`.
    fn ordered(&mut self) {
        self.raw(b"ccollections\nOrderedDict\n)R");
    }

    fn text(&mut self, text: &str) {
        self.raw(b"X");
        self.raw(&(text.len() as u32).to_le_bytes());
        self.raw(text.as_bytes());
    }

    fn whole(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.raw(&[b'K', value]);
        } else if let Ok(value) = i32::try_from(value) {
            self.raw(b"J");
            self.raw(&value.to_le_bytes());
        } else {
            self.raw(&[0x8a, 8]);
            self.raw(&value.to_le_bytes());
        }
    }

    fn sizes(&mut self, sizes: &[usize]) {
        self.raw(b"(");
        sizes.iter().for_each(|&size| self.whole(size as i64));
        self.raw(b"t");
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`; element types without a storage class
    /// use the third version, over untyped storage.
    fn tensor(&mut self, payload: &'a Payload) {
        let entry = payload.entry();
        let class = storage_name(entry.kind);
        self.raw(if class.is_some() {
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
        } else {
            b"ctorch._utils\n_rebuild_tensor_v3\n(("
        });
        self.text("storage");
        match class {
            Some(class) => self.raw(format!("ctorch\n{class}\n").as_bytes()),
            None => self.raw(b"ctorch.storage\nUntypedStorage\n"),
        }
        let key = self.storages.len().to_string();
        self.storages.push(payload);
        self.text(&key);
        self.text("cpu");
        self.whole(if class.is_some() { entry.len() } else { entry.bytes() } as i64);
        self.raw(b"tQK\0");
        self.sizes(&entry.shape);
        self.sizes(&contiguous(&entry.shape));
        self.raw(&[0x89]);
        self.ordered();
        if class.is_none() {
            self.raw(format!("ctorch\n{}\n", python_name(entry.kind)).as_bytes());
        }
        self.raw(b"tR");
    }
}
