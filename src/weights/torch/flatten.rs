//! Flattens a pickle into named tensors and values: keys and indices joined by dots.
//!
//! A pickle of a few bytes can refer to one dict so often that the names exhaust memory. Therefore all allocations here
//! are bounded by the pickle's length.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Storages,
    globals::{self, Global, python_name},
    pickle::{Item, Node, Pickled, TensorNode},
};
use crate::weights::{
    Contents, NumberKind, Value,
    stored::{Stored, TensorInfo, View},
};

/// Maximum nesting of dicts and lists.
const DEEPEST: usize = 64;

pub(super) fn flatten(pickled: &Pickled<'_>, storages: &Storages<'_>) -> Result<Contents, String> {
    let length = pickled.length;
    if matches!(pickled.node(pickled.root), Some(Node::Object(_) | Node::Foreign(_))) {
        return Err(globals::whole_object(&pickled.class_name(pickled.root)));
    }
    let mut walk = Walk {
        pickled,
        storages,
        found: Contents::default(),
        classes: HashMap::new(),
        reached: HashSet::new(),
        steps: 16 * length + (1 << 16),
        text: 16 * length + (1 << 16),
        tensors: length / 16 + 4096,
        values: length / 4 + 4096,
    };
    let mut name = String::new();
    walk.visit(pickled.root, &mut name, 0)?;
    walk.warn_of_hidden();
    Ok(walk.found)
}

struct Walk<'a> {
    pickled: &'a Pickled<'a>,
    storages: &'a Storages<'a>,
    found: Contents,
    /// Class names of objects, by the node of the class.
    classes: HashMap<usize, Arc<str>>,
    /// Nodes of the tensors found so far.
    reached: HashSet<usize>,
    /// Remaining budgets: visits, bytes of names, tensors and values.
    steps: usize,
    text: usize,
    tensors: usize,
    values: usize,
}

fn spend(budget: &mut usize, amount: usize) -> Result<(), String> {
    *budget = budget
        .checked_sub(amount)
        .ok_or("the pickle refers to its parts more often than its length allows")?;
    Ok(())
}

impl Walk<'_> {
    fn visit(&mut self, item: Item, name: &mut String, depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("dicts and lists are nested more than {DEEPEST} deep"));
        }
        spend(&mut self.steps, 1)?;
        match self.pickled.node(item) {
            Some(Node::Tensor(tensor)) => {
                let name = if name.is_empty() { "tensor" } else { name };
                spend(&mut self.tensors, 1)?;
                spend(&mut self.text, name.len())?;
                let stored = self.locate(tensor).map_err(|message| format!("tensor {name}: {message}"))?;
                self.found.tensors.push((name.to_owned(), stored));
                if let Item::Node(at) = item {
                    self.reached.insert(at);
                }
                Ok(())
            }
            Some(Node::Dict(pairs)) if !pairs.is_empty() => {
                for (at, &(key, value)) in pairs.iter().enumerate() {
                    self.within(&|walk, name| walk.key(key, at, name), value, name, depth)?;
                }
                Ok(())
            }
            Some(Node::List(items)) if !self.is_plain(item, depth)? => self.items(items, name, depth),
            Some(Node::Tuple(items)) if !self.is_plain(item, depth)? => self.items(items, name, depth),
            _ => {
                spend(&mut self.values, 1)?;
                spend(&mut self.text, name.len())?;
                let value = self.value(item, depth)?;
                let name = if name.is_empty() { "value" } else { name };
                self.found.values.push((name.to_owned(), value));
                Ok(())
            }
        }
    }

    fn items(&mut self, items: &[Item], name: &mut String, depth: usize) -> Result<(), String> {
        for (at, &item) in items.iter().enumerate() {
            let key = |_: &mut Self, name: &mut String| {
                name.push_str(&at.to_string());
                Ok(())
            };
            self.within(&key, item, name, depth)?;
        }
        Ok(())
    }

    /// Visits a child with another component appended to the name.
    fn within(
        &mut self,
        append: &dyn Fn(&mut Self, &mut String) -> Result<(), String>,
        item: Item,
        name: &mut String,
        depth: usize,
    ) -> Result<(), String> {
        let length = name.len();
        if length > 0 {
            name.push('.');
        }
        append(self, name)?;
        self.visit(item, name, depth + 1)?;
        name.truncate(length);
        Ok(())
    }

    /// Appends the key of a dict's entry `at` to the name.
    fn key(&mut self, key: Item, at: usize, name: &mut String) -> Result<(), String> {
        // Two objects of one class are distinct keys; nothing else distinguishes them.
        if let Some(Node::Object(_) | Node::Foreign(_)) = self.pickled.node(key) {
            let class = self.class(key);
            spend(&mut self.text, class.len())?;
            name.push_str(&format!("<{class}>#{at}"));
            return Ok(());
        }
        if let Some(bytes) = self.pickled.bytes_of(key) {
            spend(&mut self.text, bytes.len())?;
            name.push_str(std::str::from_utf8(bytes).map_err(|_| "the key of a dict is not UTF-8")?);
            return Ok(());
        }
        if !self.is_plain(key, 0)? {
            return Err("the key of a dict is neither a string nor a number".to_owned());
        }
        let key = self.value(key, 0)?.to_string();
        spend(&mut self.text, key.len())?;
        name.push_str(&key);
        Ok(())
    }

    /// Whether a value contains neither tensors nor dicts.
    fn is_plain(&mut self, item: Item, depth: usize) -> Result<bool, String> {
        spend(&mut self.steps, 1)?;
        let items = match self.pickled.node(item) {
            Some(Node::Tensor(_) | Node::Dict(_)) => return Ok(false),
            Some(Node::List(items)) => &items[..],
            Some(Node::Tuple(items)) => items,
            _ => return Ok(true),
        };
        if depth > DEEPEST {
            return Ok(false);
        }
        for &item in items {
            if !self.is_plain(item, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Converts an item without tensors or non-empty dicts.
    fn value(&mut self, item: Item, depth: usize) -> Result<Value, String> {
        spend(&mut self.steps, 1)?;
        Ok(match item {
            Item::None => Value::None,
            Item::Bool(value) => Value::Bool(value),
            Item::Int(value) => Value::Int(value),
            Item::Float(value) => Value::Float(value),
            Item::Node(_) => match self.pickled.node(item) {
                Some(Node::Text(range)) => {
                    spend(&mut self.text, range.len())?;
                    Value::Text(String::from_utf8_lossy(self.pickled.text_bytes(range)).into())
                }
                Some(Node::Long(range)) => {
                    spend(&mut self.text, 2 * range.len())?;
                    let digits = self.pickled.text_bytes(range).iter().rev();
                    let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
                    Value::Text(format!("0x{digits}").into())
                }
                Some(Node::List(items)) => Value::List(self.values(items, depth)?),
                Some(Node::Tuple(items)) => Value::Tuple(self.values(items, depth)?),
                Some(Node::Global(global)) => Value::from(described(*global).as_str()),
                Some(Node::Storage(_)) => Value::from("a storage"),
                Some(Node::Object(object)) if object.tensor => Value::Unread(self.class(item)),
                Some(Node::Object(_) | Node::Foreign(_)) => Value::Object(self.class(item)),
                Some(Node::Dict(_) | Node::Tensor(_)) | None => Value::Dict(Vec::new()),
            },
        })
    }

    /// The class name of an object; the string is shared between its instances.
    fn class(&mut self, object: Item) -> Arc<str> {
        let Item::Node(at) = self.pickled.class_of(object) else { return "".into() };
        let class = self.classes.entry(at).or_insert_with(|| self.pickled.class_name(object).into());
        Arc::clone(class)
    }

    /// Warns about tensors inside opaque objects, which are not read.
    fn warn_of_hidden(&self) {
        let hidden = self.pickled.tensors().saturating_sub(self.reached.len());
        if hidden > 0 && !self.classes.is_empty() {
            let mut classes: Vec<&str> = self.classes.values().map(|class| &**class).collect();
            classes.sort_unstable();
            classes.dedup();
            classes.truncate(4);
            tracing::warn!(
                "{}: skipped {hidden} tensors in unsupported objects ({}); save them as a dict to keep them",
                self.storages.file.path().display(),
                classes.join(", ")
            );
        }
    }

    fn values(&mut self, items: &[Item], depth: usize) -> Result<Vec<Value>, String> {
        if depth > DEEPEST {
            return Err(format!("lists are nested more than {DEEPEST} deep"));
        }
        spend(&mut self.steps, items.len())?;
        items.iter().map(|&item| self.value(item, depth + 1)).collect()
    }

    /// Locates a tensor in the file.
    fn locate(&self, tensor: &TensorNode) -> Result<Stored, String> {
        const WRONG: &str = "its storage is not in the file";
        let storage = self.pickled.storage(tensor.storage).ok_or(WRONG)?;
        let key = self.pickled.text_bytes(&storage.key);
        let region = self.storages.regions.get(key).ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            format!("its storage {key} is missing: truncated or corrupt; download or save it again")
        })?;
        if storage.bytes() != Some(region.len()) {
            return Err(format!(
                "its storage should have {} elements of {} bytes, but has {} bytes",
                storage.numbers,
                storage.width,
                region.len()
            ));
        }
        let region = match storage.part {
            None => region.clone(),
            Some((offset, size)) => {
                let end = offset.checked_add(size).filter(|&end| end <= storage.numbers).ok_or(WRONG)?;
                region.start + offset * storage.width..region.start + end * storage.width
            }
        };
        let kind: NumberKind =
            tensor.kind.or(storage.kind).ok_or("its storage is untyped, and no dtype is given")?;
        let entry = TensorInfo { shape: tensor.shape.clone(), kind };
        let view = View { offset: tensor.offset, strides: tensor.strides.clone() };
        Stored::new(self.storages.file, region, entry, Some(view), self.storages.big_endian)?
            .with_flipped(tensor.flipped)
    }
}

fn described(global: Global) -> String {
    match global {
        Global::Kind(kind) => format!("torch.{}", python_name(kind)),
        other => format!("{other:?}"),
    }
}
