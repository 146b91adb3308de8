//! The subset of Python's pickle machine that checkpoints need. It builds nodes in one table and executes nothing.
//!
//! Bounds, with `n` the bytes of the pickle: at most n / 4 + 4096 nodes, n / 2 + 4096 memo entries, 65536 items on the
//! stack; strings and bytes are not copied from the file. Nodes refer to each other by index, so that neither deep nor
//! circular structures cause recursion here. Source: `Lib/pickletools.py` of CPython, protocols 0 to 5.

mod calls;
mod numbers;

use std::ops::Range;

use super::globals::{self, Global};
use crate::weights::{NumberKind, kind::Flipped};

/// Maximum stack depth: the pickler appends to lists and dicts in batches of a thousand.
const STACK: usize = 1 << 16;
/// Number of nodes and memo entries that even the shortest pickle may have.
const FEW: usize = 4096;

/// A value: small ones inline, others by the index of their node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(usize),
}

/// A value that does not fit into an [`Item`].
pub(super) enum Node {
    /// Text or bytes, as a range of the pickle.
    Text(Range<usize>),
    /// An integer of more than 64 bits, little-endian.
    Long(Range<usize>),
    Tuple(Box<[Item]>),
    List(Vec<Item>),
    Dict(Vec<(Item, Item)>),
    Global(Global),
    /// An unsupported name.
    Foreign(Box<Foreign>),
    Storage(Box<StorageNode>),
    Tensor(Box<TensorNode>),
    /// An object that only Python code could construct.
    Object(Box<ObjectNode>),
}

/// An unsupported name, as ranges of the pickle.
#[derive(Clone)]
pub(super) struct Foreign {
    pub(super) module: Range<usize>,
    pub(super) name: Range<usize>,
}

/// An opaque object of an unsupported name. It is never constructed: only its presence is recorded.
pub(super) struct ObjectNode {
    /// The class or function that would construct it, or an object through which it is found.
    pub(super) class: Item,
    /// Whether it is a tensor with an unsupported layout.
    pub(super) tensor: bool,
}

/// A storage outside the pickle.
pub(super) struct StorageNode {
    /// `None` for untyped storage, or an unsupported element type.
    pub(super) kind: Option<NumberKind>,
    /// Size of an element in bytes.
    pub(super) width: usize,
    /// Its class, if the element type is not supported.
    pub(super) other: Option<Item>,
    /// Its key among the storages.
    pub(super) key: Range<usize>,
    /// Elements (or bytes) of the whole storage.
    pub(super) numbers: usize,
    /// The referenced view of it: offset and length in elements.
    pub(super) part: Option<(usize, usize)>,
}

impl StorageNode {
    /// Size of the whole storage in bytes.
    pub(super) fn bytes(&self) -> Option<usize> {
        self.numbers.checked_mul(self.width)
    }
}

/// A tensor: a view of a storage.
pub(super) struct TensorNode {
    pub(super) storage: usize,
    pub(super) kind: Option<NumberKind>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) flipped: Flipped,
}

/// A parsed pickle.
pub(super) struct Pickled<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    pub(super) root: Item,
    /// Length of the pickle in bytes.
    pub(super) length: usize,
}

impl<'a> Pickled<'a> {
    pub(super) fn node(&self, item: Item) -> Option<&Node> {
        match item {
            Item::Node(at) => self.nodes.get(at),
            _ => None,
        }
    }

    pub(super) fn text_bytes(&self, range: &Range<usize>) -> &'a [u8] {
        &self.bytes[range.clone()]
    }

    /// The bytes of a string.
    pub(super) fn bytes_of(&self, item: Item) -> Option<&'a [u8]> {
        match self.node(item)? {
            Node::Text(range) => Some(self.text_bytes(range)),
            _ => None,
        }
    }

    /// The class of an object; for other items, the item itself.
    pub(super) fn class_of(&self, object: Item) -> Item {
        match self.node(object) {
            Some(Node::Object(object)) => object.class,
            _ => object,
        }
    }

    /// The class name of an object, for messages.
    pub(super) fn class_name(&self, object: Item) -> String {
        match self.node(self.class_of(object)) {
            Some(Node::Foreign(foreign)) => {
                globals::full_name(self.text_bytes(&foreign.module), self.text_bytes(&foreign.name))
            }
            Some(Node::Global(Global::TensorType)) => "torch.Tensor".to_owned(),
            Some(Node::Global(Global::OtherStorage(_))) => {
                "a torch storage of quantized or 128-bit numbers".to_owned()
            }
            Some(Node::Global(global)) => format!("{global:?}"),
            _ => "an unknown class".to_owned(),
        }
    }

    pub(super) fn storage(&self, at: usize) -> Option<&StorageNode> {
        match self.nodes.get(at)? {
            Node::Storage(storage) => Some(storage),
            _ => None,
        }
    }

    /// Number of tensors, including those inside objects.
    pub(super) fn tensors(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node, Node::Tensor(_))).count()
    }

    /// All storages that the pickle refers to.
    pub(super) fn storages(&self) -> impl Iterator<Item = &StorageNode> {
        (0..self.nodes.len()).filter_map(|at| self.storage(at))
    }
}

/// Parses the pickle at the start of `bytes`; the error says what is damaged or rejected.
pub(super) fn run(bytes: &[u8]) -> Result<Pickled<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        nodes: Vec::new(),
        copied: 0,
    };
    loop {
        let [code] = machine.array()?;
        if code == b'.' {
            let root = machine.pop()?;
            return Ok(Pickled { bytes, nodes: machine.nodes, root, length: machine.at });
        }
        machine.step(code).map_err(|message| {
            // A rejection is clear by itself; for damage, the offset is helpful.
            if message.contains("refused") {
                message
            } else {
                format!("{message} (byte {} of the pickle)", machine.at)
            }
        })?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Item>,
    /// Stack positions of the marks.
    marks: Vec<usize>,
    memo: Vec<Item>,
    nodes: Vec<Node>,
    /// Items copied between nodes, limited because a short pickle could repeat copies.
    copied: usize,
}

const TRUNCATED: &str = "the pickle is truncated or corrupt; download or save it again";
const MALFORMED: &str = "the pickle is damaged: an opcode lacks its operands";

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            // The protocol version, and the length of a frame, which only matters to stream readers.
            0x80 => match self.array::<1>()? {
                [0..=5] => Ok(()),
                [version] => Err(format!("unsupported pickle protocol {version}; the latest is 5")),
            },
            0x95 => self.array::<8>().map(drop),
            b'(' => self.mark(),
            b'0' => self.discard(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            b'N' => self.push(Item::None),
            0x88 => self.push(Item::Bool(true)),
            0x89 => self.push(Item::Bool(false)),
            b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b | b'I' | b'L' | b'F' => self.number(code),
            b'X' | b'T' | b'B' | b'U' | b'C' | 0x8c..=0x8e | b'S' | b'V' => self.text(code),
            b'h' | b'j' | b'g' | b'q' | b'r' | b'p' | 0x94 => self.memory(code),
            b'}' | b']' | b')' | 0x8f | 0x85..=0x87 | b't' | b'l' | b'd' | 0x91 => self.collect(code),
            b'a' | b'e' | 0x90 | b's' | b'u' => self.extend(code),
            b'c' | 0x93 => self.global(code),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            0x81 | 0x92 | b'o' | b'i' => self.instance(code),
            other => Err(Self::refuse(other)),
        }
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len()).ok_or(TRUNCATED)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.take(N)?;
        self.bytes[range].first_chunk().copied().ok_or_else(|| TRUNCATED.to_owned())
    }

    /// Reads a line of text, without its newline.
    fn line(&mut self) -> Result<Range<usize>, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(TRUNCATED)?;
        let range = self.at..self.at + length;
        self.at += length + 1;
        Ok(range)
    }

    fn line_as<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let range = self.line()?;
        let text = std::str::from_utf8(&self.bytes[range]).map_err(|_| MALFORMED)?;
        text.trim().trim_end_matches('L').parse().map_err(|_| MALFORMED.to_owned())
    }

    fn push(&mut self, item: Item) -> Result<(), String> {
        if self.stack.len() >= STACK {
            return Err(format!("the pickle keeps more than {STACK} items on its stack"));
        }
        self.stack.push(item);
        Ok(())
    }

    fn push_node(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= self.bytes.len() / 4 + FEW {
            return Err("the pickle contains more values than its length allows".to_owned());
        }
        self.nodes.push(node);
        self.push(Item::Node(self.nodes.len() - 1))
    }

    /// Number of items above the last mark.
    fn above(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Item, String> {
        self.stack.last().copied().filter(|_| self.above() > 0).ok_or_else(|| MALFORMED.to_owned())
    }

    fn pop(&mut self) -> Result<Item, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() >= STACK {
            return Err(format!("the pickle is nested more than {STACK} deep"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// POP removes a mark if it is on top, as in Python.
    fn discard(&mut self) -> Result<(), String> {
        if self.above() == 0 && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Item>, String> {
        let mark = self.marks.pop().ok_or(MALFORMED)?;
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, code: u8) -> Result<(), String> {
        let range = match code {
            b'S' | b'V' => self.plain_line(code)?,
            _ => {
                let length = match code {
                    b'U' | b'C' | 0x8c => Some(u8::from_le_bytes(self.array()?).into()),
                    b'X' | b'T' | b'B' => Some(u32::from_le_bytes(self.array()?) as usize),
                    _ => usize::try_from(u64::from_le_bytes(self.array()?)).ok(),
                };
                self.take(length.ok_or(TRUNCATED)?)?
            }
        };
        self.push_node(Node::Text(range))
    }

    /// Reads a string of protocol 0. Escapes are not supported, since the names of weights do not need them.
    fn plain_line(&mut self, code: u8) -> Result<Range<usize>, String> {
        let mut range = self.line()?;
        let text = &self.bytes[range.clone()];
        if text.contains(&b'\\') {
            return Err(
                "a string of the pickle's protocol 0 has escapes; save the file with a newer PyTorch"
                    .to_owned(),
            );
        }
        if code == b'S' {
            match text {
                [b'\'', .., b'\''] | [b'"', .., b'"'] => range = range.start + 1..range.end - 1,
                _ => return Err(MALFORMED.to_owned()),
            }
        }
        Ok(range)
    }

    fn memory(&mut self, code: u8) -> Result<(), String> {
        let key = match code {
            b'h' | b'q' => self.array::<1>()?[0].into(),
            b'j' | b'r' => u32::from_le_bytes(self.array()?) as usize,
            b'g' | b'p' => self.line_as()?,
            _ => self.memo.len(),
        };
        if matches!(code, b'h' | b'j' | b'g') {
            let item = self.memo.get(key).copied().ok_or("the pickle refers to a missing memo entry")?;
            return self.push(item);
        }
        let top = self.top()?;
        if let Some(entry) = self.memo.get_mut(key) {
            *entry = top;
            return Ok(());
        }
        // Picklers number memo entries consecutively; a sparse table could be made arbitrarily long.
        if key != self.memo.len() || key >= self.bytes.len() / 2 + FEW {
            return Err(format!("the pickle stores memo entry {key} after {} others", self.memo.len()));
        }
        self.memo.push(top);
        Ok(())
    }

    fn collect(&mut self, code: u8) -> Result<(), String> {
        let node = match code {
            b'}' => Node::Dict(Vec::new()),
            b']' | 0x8f => Node::List(Vec::new()),
            b')' => Node::Tuple(Box::default()),
            b't' => Node::Tuple(self.pop_to_mark()?.into()),
            b'l' | 0x91 => Node::List(self.pop_to_mark()?),
            b'd' => Node::Dict(pairs(&self.pop_to_mark()?)?),
            _ => {
                let count = usize::from(code - 0x84);
                if self.above() < count {
                    return Err(MALFORMED.to_owned());
                }
                Node::Tuple(self.stack.split_off(self.stack.len() - count).into())
            }
        };
        self.push_node(node)
    }

    fn extend(&mut self, code: u8) -> Result<(), String> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        match self.node_mut(self.top()?) {
            Some(Node::List(list)) if matches!(code, b'a' | b'e' | 0x90) => list.extend(items),
            Some(Node::Dict(dict)) if matches!(code, b's' | b'u') => dict.extend(pairs(&items)?),
            // The contents of an object are ignored.
            Some(Node::Object(_)) => {}
            _ => return Err(MALFORMED.to_owned()),
        }
        Ok(())
    }

    fn node(&self, item: Item) -> Option<&Node> {
        match item {
            Item::Node(at) => self.nodes.get(at),
            _ => None,
        }
    }

    fn node_mut(&mut self, item: Item) -> Option<&mut Node> {
        match item {
            Item::Node(at) => self.nodes.get_mut(at),
            _ => None,
        }
    }

    fn text_of(&self, item: Item) -> Option<&'a [u8]> {
        match self.node(item)? {
            Node::Text(range) => Some(&self.bytes[range.clone()]),
            _ => None,
        }
    }
}

fn pairs(items: &[Item]) -> Result<Vec<(Item, Item)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MALFORMED.to_owned());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
