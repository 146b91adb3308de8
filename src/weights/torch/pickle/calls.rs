//! What the names on the list make of their arguments, and the refusal of all that is not on it.

use std::ops::Range;

use super::{Item, MALFORMED, Machine, Node, StorageNode, TensorNode};
use crate::weights::{
    NumberKind,
    torch::globals::{self, Global},
};

/// Dimensions of a tensor; PyTorch has the same bound.
const DIMENSIONS: usize = 64;

/// What a call makes: something that was there, or something new.
enum Made {
    Item(Item),
    Node(Node),
}

impl Machine<'_> {
    pub(super) fn global(&mut self, code: u8) -> Result<(), String> {
        let (module, name) = if code == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            (&self.bytes[module], &self.bytes[name])
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            (self.text_of(module).ok_or(MALFORMED)?, self.text_of(name).ok_or(MALFORMED)?)
        };
        self.push_node(Node::Global(globals::find(module, name)?))
    }

    /// A storage: `("storage", class, key, device, numbers)`, and in the older stream a part of it.
    pub(super) fn persistent(&mut self) -> Result<(), String> {
        const WRONG: &str = "the pickle refers to something outside that is not a storage";
        let item = self.pop()?;
        let Some(Node::Tuple(parts)) = self.node(item) else { return Err(WRONG.to_owned()) };
        let [tag, class, key, _device, numbers, rest @ ..] = &**parts else { return Err(WRONG.to_owned()) };
        let (
            Some(b"storage"),
            Some(Node::Global(Global::Storage(kind))),
            Some(Node::Text(key)),
            Item::Int(numbers),
        ) = (self.text_of(*tag), self.node(*class), self.node(*key), *numbers)
        else {
            return Err(WRONG.to_owned());
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
        let storage = StorageNode { kind: *kind, key: key.clone(), numbers: count(numbers)?, part };
        self.push_node(Node::Storage(Box::new(storage)))
    }

    pub(super) fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let made = self.call(callee, arguments)?;
        match made {
            Made::Item(item) => self.push(item),
            Made::Node(node) => self.push_node(node),
        }
    }

    /// What a name on the list makes of arguments.
    fn call(&mut self, callee: Item, arguments: Item) -> Result<Made, String> {
        let Some(&Node::Global(global)) = self.node(callee) else {
            return Err(globals::refused("a call of something that is no name"));
        };
        let Some(Node::Tuple(arguments)) = self.node(arguments) else { return Err(MALFORMED.to_owned()) };
        let wrong = || format!("the pickle gives {global:?} arguments that it does not take");
        match (global, &**arguments) {
            (Global::OrderedDict, []) => Ok(Made::Node(Node::Dict(Vec::new()))),
            (Global::OrderedDict, &[list]) => self.ordered(list).map(Made::Node),
            (Global::Set, []) => Ok(Made::Node(Node::List(Vec::new()))),
            (Global::Set, &[list]) => Ok(Made::Item(list)),
            (Global::Counter, &[item]) if matches!(self.node(item), Some(Node::Dict(_))) => {
                Ok(Made::Item(item))
            }
            (Global::Size, &[item]) if matches!(self.node(item), Some(Node::Tuple(_))) => {
                Ok(Made::Item(item))
            }
            (Global::Device | Global::Encode, &[text, ..]) if self.text_of(text).is_some() => {
                Ok(Made::Item(text))
            }
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                self.tensor([storage, offset, shape, strides], None)
            }
            (Global::RebuildTensorOfKind, &[storage, offset, shape, strides, _, _, kind, ..]) => {
                match self.node(kind) {
                    Some(&Node::Global(Global::Kind(kind))) => {
                        self.tensor([storage, offset, shape, strides], Some(kind))
                    }
                    _ => Err(wrong()),
                }
            }
            (Global::RebuildParameter, &[data, ..]) if matches!(self.node(data), Some(Node::Tensor(_))) => {
                Ok(Made::Item(data))
            }
            (Global::RebuildFromType, &[function, class, arguments, _state]) => {
                let inner = match self.node(function) {
                    Some(Node::Global(inner)) => *inner,
                    _ => return Err(wrong()),
                };
                let plain = matches!(self.node(class), Some(Node::Global(Global::TensorType)));
                if !plain || inner == Global::RebuildFromType {
                    return Err(wrong());
                }
                self.call(function, arguments)
            }
            _ => Err(wrong()),
        }
    }

    /// An ordered dict of a list of pairs, as Python 2 wrote them.
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
    ) -> Result<Made, String> {
        let Item::Node(storage_at) = storage else { return Err(MALFORMED.to_owned()) };
        let Some(Node::Storage(_)) = self.node(storage) else {
            return Err("the pickle makes a tensor of something that is not a storage".to_owned());
        };
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
        let tensor = TensorNode { storage: storage_at, kind, offset: count(offset)?, shape, strides };
        Ok(Made::Node(Node::Tensor(Box::new(tensor))))
    }

    /// Attributes of a dict (`_metadata` of a state dict) or a parameter: taken note of by nobody.
    pub(super) fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.node(self.top()?) {
            Some(Node::Dict(_) | Node::Tensor(_)) => Ok(()),
            _ => Err(globals::refused("BUILD, the state of an object that is neither dict nor tensor")),
        }
    }

    /// Why an instruction that is not understood ends the reading.
    pub(super) fn refuse(&mut self, code: u8) -> String {
        let name = match code {
            b'i' => {
                let class = self.line().and_then(|module| Ok((module, self.line()?)));
                let text = |range: Range<usize>| String::from_utf8_lossy(&self.bytes[range]).into_owned();
                return globals::refused(&match class {
                    Ok((module, name)) => format!("INST of {}.{}", text(module), text(name)),
                    Err(_) => "INST".to_owned(),
                });
            }
            b'o' => "OBJ",
            b'P' => "PERSID",
            0x81 => "NEWOBJ",
            0x92 => "NEWOBJ_EX",
            0x82 => "EXT1",
            0x83 => "EXT2",
            0x84 => "EXT4",
            0x97 => "NEXT_BUFFER",
            0x98 => "READONLY_BUFFER",
            _ => {
                return format!(
                    "the pickle is damaged: {code:#04x} is no instruction that a checkpoint needs"
                );
            }
        };
        globals::refused(&format!("the instruction {name}"))
    }
}

fn count(value: i64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("the size {value} is negative or too large"))
}
