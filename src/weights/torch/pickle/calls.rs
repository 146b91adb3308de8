//! Evaluates calls of the supported names. Calls of all other names make opaque objects: nothing is executed.

use std::ops::Range;

use super::{Foreign, Item, MALFORMED, Machine, Node, ObjectNode, StorageNode, TensorNode};
use crate::weights::{
    NumberKind,
    kind::Flipped,
    torch::globals::{self, Global},
};

/// Maximum dimensions of a tensor; the same limit as PyTorch's.
const DIMENSIONS: usize = 64;

/// The result of a call: an existing item, or a new node.
enum CallResult {
    Item(Item),
    Node(Node),
}

impl Machine<'_> {
    pub(super) fn global(&mut self, code: u8) -> Result<(), String> {
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            match (self.node(module), self.node(name)) {
                (Some(Node::Text(module)), Some(Node::Text(name))) => (module.clone(), name.clone()),
                _ => return Err(MALFORMED.to_owned()),
            }
        };
        let node = self.named(module, name)?;
        self.push_node(node)
    }

    /// Resolves a name in a module.
    fn named(&self, module: Range<usize>, name: Range<usize>) -> Result<Node, String> {
        let [of_module, of_name] = [&module, &name].map(|range| &self.bytes[range.clone()]);
        if let Some(global) = globals::find(of_module, of_name) {
            return Ok(Node::Global(global));
        }
        if globals::is_harmful(of_module, of_name) {
            return Err(globals::refused(&globals::full_name(of_module, of_name)));
        }
        Ok(Node::Foreign(Box::new(Foreign { module, name })))
    }

    /// A storage: `("storage", class, key, device, numel)`, plus a view in the legacy stream.
    pub(super) fn persistent(&mut self) -> Result<(), String> {
        const WRONG: &str = "the pickle refers to something outside that is not a storage";
        let item = self.pop()?;
        let Some(Node::Tuple(parts)) = self.node(item) else { return Err(WRONG.to_owned()) };
        let [tag, class, key, _device, numbers, rest @ ..] = &**parts else { return Err(WRONG.to_owned()) };
        let (Some(b"storage"), Some(&Node::Global(global)), Some(Node::Text(key)), Item::Int(numbers)) =
            (self.text_of(*tag), self.node(*class), self.node(*key), *numbers)
        else {
            return Err(WRONG.to_owned());
        };
        let (kind, width, other) = match global {
            Global::Storage(kind) => (kind, kind.map_or(1, NumberKind::width), None),
            Global::OtherStorage(width) => (None, width, Some(*class)),
            _ => return Err(WRONG.to_owned()),
        };
        let part = match rest {
            [] | [Item::None] => None,
            [part] => match self.node(*part) {
                Some(Node::Tuple(part)) => match **part {
                    [_, Item::Int(offset), Item::Int(size)] => Some((count(offset)?, count(size)?)),
                    _ => return Err(WRONG.to_owned()),
                },
                _ => return Err(WRONG.to_owned()),
            },
            _ => return Err(WRONG.to_owned()),
        };
        let storage = StorageNode { kind, width, other, key: key.clone(), numbers: count(numbers)?, part };
        self.push_node(Node::Storage(Box::new(storage)))
    }

    pub(super) fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let made = self.call(callee, arguments)?;
        self.push_made(made)
    }

    fn push_made(&mut self, made: CallResult) -> Result<(), String> {
        match made {
            CallResult::Item(item) => self.push(item),
            CallResult::Node(node) => self.push_node(node),
        }
    }

    /// An instance of a class, for the opcodes of both class styles of Python.
    pub(super) fn instance(&mut self, code: u8) -> Result<(), String> {
        let (class, arguments) = match code {
            b'i' => {
                let class = (self.line()?, self.line()?);
                let arguments = self.pop_to_mark()?;
                let class = self.named(class.0, class.1)?;
                self.push_node(class)?;
                (self.pop()?, arguments)
            }
            b'o' => {
                let mut items = self.pop_to_mark()?;
                if items.is_empty() {
                    return Err(MALFORMED.to_owned());
                }
                (items.remove(0), items)
            }
            _ => {
                // No supported name takes keyword arguments.
                let by_name = (code == 0x92).then(|| self.pop()).transpose()?;
                let arguments = self.pop()?;
                let class = self.pop()?;
                let made = match by_name {
                    Some(_) => self.object(class)?,
                    None => self.call(class, arguments)?,
                };
                return self.push_made(made);
            }
        };
        self.push_node(Node::Tuple(arguments.into()))?;
        let arguments = self.pop()?;
        let made = self.call(class, arguments)?;
        self.push_made(made)
    }

    /// The opaque object that an unsupported name makes.
    fn object(&self, class: Item) -> Result<CallResult, String> {
        let (class, tensor) = match self.node(class) {
            Some(Node::Foreign(foreign)) => {
                let Foreign { module, name } = &**foreign;
                (class, globals::is_tensor_form(&self.bytes[module.clone()], &self.bytes[name.clone()]))
            }
            Some(Node::Object(object)) => (object.class, object.tensor),
            Some(Node::Global(global)) => (class, matches!(global, Global::TensorType)),
            _ => return Err(globals::refused("a call of something that is not a name")),
        };
        Ok(CallResult::Node(Node::Object(Box::new(ObjectNode { class, tensor }))))
    }

    /// A tensor with an unsupported layout, identified by the class that indicates it.
    fn unread(class: Item) -> CallResult {
        CallResult::Node(Node::Object(Box::new(ObjectNode { class, tensor: true })))
    }

    /// Evaluates a call of a name.
    fn call(&mut self, callee: Item, arguments: Item) -> Result<CallResult, String> {
        let Some(&Node::Global(global)) = self.node(callee) else { return self.object(callee) };
        let Some(Node::Tuple(arguments)) = self.node(arguments) else { return Err(MALFORMED.to_owned()) };
        let wrong = || format!("the pickle passes wrong arguments to {global:?}");
        match (global, &**arguments) {
            (Global::OrderedDict, []) => Ok(CallResult::Node(Node::Dict(Vec::new()))),
            (Global::OrderedDict, &[list]) => self.ordered(list).map(CallResult::Node),
            (Global::Set, []) => Ok(CallResult::Node(Node::List(Vec::new()))),
            (Global::Set, &[list]) => Ok(CallResult::Item(list)),
            (Global::Counter, &[item]) if matches!(self.node(item), Some(Node::Dict(_))) => {
                Ok(CallResult::Item(item))
            }
            (Global::Size, &[item]) if matches!(self.node(item), Some(Node::Tuple(_))) => {
                Ok(CallResult::Item(item))
            }
            (Global::Device | Global::Encode, &[text, ..]) if self.text_of(text).is_some() => {
                Ok(CallResult::Item(text))
            }
            (Global::DefaultDict, [_]) => Ok(CallResult::Node(Node::Dict(Vec::new()))),
            (Global::Deque, []) => Ok(CallResult::Node(Node::List(Vec::new()))),
            (Global::Deque, &[items, ..]) => match self.node(items) {
                Some(Node::List(_)) => Ok(CallResult::Item(items)),
                Some(Node::Tuple(items)) if items.is_empty() => Ok(CallResult::Node(Node::List(Vec::new()))),
                _ => Err(wrong()),
            },
            (Global::RebuildTensor, &[storage, offset, shape, strides, ref rest @ ..]) => {
                self.tensor([storage, offset, shape, strides], None, rest.get(2).copied())
            }
            (Global::RebuildTensorOfKind, &[storage, offset, shape, strides, _, _, kind, ref rest @ ..]) => {
                match self.node(kind) {
                    Some(&Node::Global(Global::Kind(kind))) => {
                        self.tensor([storage, offset, shape, strides], Some(kind), rest.first().copied())
                    }
                    // 128-bit complex numbers, less common 8-bit float types, …
                    Some(Node::Foreign(_)) => Ok(Self::unread(kind)),
                    _ => Err(wrong()),
                }
            }
            (Global::RebuildParameter, &[data, ..]) => match self.node(data) {
                Some(Node::Tensor(_)) => Ok(CallResult::Item(data)),
                Some(Node::Object(object)) if object.tensor => Ok(CallResult::Item(data)),
                _ => Err(wrong()),
            },
            (Global::RebuildFromType, &[function, class, arguments, _state]) => {
                match (self.node(function), self.node(class)) {
                    (Some(Node::Global(Global::RebuildFromType)), _) => Err(wrong()),
                    (Some(Node::Global(_)), Some(Node::Global(Global::TensorType))) => {
                        self.call(function, arguments)
                    }
                    // A tensor subclass may interpret its stored values differently.
                    (Some(Node::Global(_)), Some(Node::Foreign(_))) => Ok(Self::unread(class)),
                    (Some(Node::Foreign(_)), Some(_)) => Ok(Self::unread(function)),
                    _ => Err(wrong()),
                }
            }
            (Global::TensorType, _) => self.object(callee),
            _ => Err(wrong()),
        }
    }

    /// An ordered dict from a list of pairs, as written by Python 2.
    fn ordered(&mut self, list: Item) -> Result<Node, String> {
        let Some(Node::List(items)) = self.node(list) else { return Err(MALFORMED.to_owned()) };
        self.copied += items.len();
        if self.copied > self.bytes.len() {
            return Err("the pickle copies more than its length allows".to_owned());
        }
        let Some(Node::List(items)) = self.node(list) else { return Err(MALFORMED.to_owned()) };
        let pair = |&item: &Item| match self.node(item) {
            Some(Node::Tuple(pair)) => <[Item; 2]>::try_from(&**pair).ok(),
            Some(Node::List(pair)) => <[Item; 2]>::try_from(&**pair).ok(),
            _ => None,
        };
        let pairs = items.iter().map(|item| pair(item).map(|[key, value]| (key, value)).ok_or(MALFORMED));
        Ok(Node::Dict(pairs.collect::<Result<_, _>>()?))
    }

    fn tensor(
        &self,
        [storage, offset, shape, strides]: [Item; 4],
        kind: Option<NumberKind>,
        marks: Option<Item>,
    ) -> Result<CallResult, String> {
        let Item::Node(storage_at) = storage else { return Err(MALFORMED.to_owned()) };
        let Some(Node::Storage(held)) = self.node(storage) else {
            return Err("the pickle makes a tensor from something that is not a storage".to_owned());
        };
        if let Some(class) = held.other {
            return Ok(Self::unread(class));
        }
        let Item::Int(offset) = offset else { return Err(MALFORMED.to_owned()) };
        let sizes = |item: Item| match self.node(item) {
            Some(Node::Tuple(sizes)) if sizes.len() <= DIMENSIONS => sizes
                .iter()
                .map(|size| match size {
                    Item::Int(size) => count(*size),
                    _ => Err(MALFORMED.to_owned()),
                })
                .collect(),
            Some(Node::Tuple(sizes)) => {
                Err(format!("a tensor has {} dimensions, more than {DIMENSIONS}", sizes.len()))
            }
            _ => Err(MALFORMED.to_owned()),
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let (offset, flipped) = (count(offset)?, self.flipped(marks)?);
        let tensor = TensorNode { storage: storage_at, kind, offset, shape, strides, flipped };
        Ok(CallResult::Node(Node::Tensor(Box::new(tensor))))
    }

    /// The sign flips of a tensor's metadata: `{"neg": True}` and `{"conj": True}`. Unknown keys are errors, since they
    /// could change the values.
    fn flipped(&self, marks: Option<Item>) -> Result<Flipped, String> {
        let mut flipped = Flipped::default();
        let marks = match marks {
            None | Some(Item::None) => return Ok(flipped),
            Some(marks) => self.node(marks),
        };
        let Some(Node::Dict(marks)) = marks else { return Err(MALFORMED.to_owned()) };
        for &(key, value) in marks {
            match (self.text_of(key), value) {
                (Some(b"neg"), Item::Bool(value)) => flipped.negated = value,
                (Some(b"conj"), Item::Bool(value)) => flipped.conjugated = value,
                (key, _) => {
                    let key = globals::full_name(b"metadata", key.unwrap_or(b"?"));
                    return Err(format!("the pickle has an unknown tensor flag ({key})"));
                }
            }
        }
        Ok(flipped)
    }

    /// Ignores the attributes of a dict (`_metadata` of a state dict), a parameter or an opaque object.
    pub(super) fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.node(self.top()?) {
            Some(Node::Dict(_) | Node::List(_) | Node::Tensor(_) | Node::Object(_)) => Ok(()),
            _ => Err(globals::refused("BUILD, the state of something that is not an object")),
        }
    }

    /// The error for an unsupported opcode.
    pub(super) fn refuse(code: u8) -> String {
        let name = match code {
            b'P' => "PERSID",
            0x82 => "EXT1",
            0x83 => "EXT2",
            0x84 => "EXT4",
            0x97 => "NEXT_BUFFER",
            0x98 => "READONLY_BUFFER",
            _ => {
                return format!(
                    "the pickle is damaged: {code:#04x} is not an opcode that a checkpoint needs"
                );
            }
        };
        globals::refused(&format!("the opcode {name}"))
    }
}

fn count(value: i64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("the size {value} is negative or too large"))
}
