//! What a checkpoint holds besides bare tensors: numbers, texts, and the dicts and lists that everything lies in.

use std::{fmt, sync::Arc};

use super::Payload;

/// A value of a checkpoint, as Python has them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A float.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dict with texts as keys, in its order.
    Dict(Vec<(String, Value)>),
    /// The same as an `OrderedDict`, which the state of a network is. Only written: read, it is a dict.
    Ordered(Vec<(String, Value)>),
    /// Something of a Python class that is not read, by the class's name. Only read: it cannot be written.
    Object(Arc<str>),
    /// A tensor of a form that is not read (sparse, quantized, of a class of its own), by what makes it. Only read.
    Unread(Arc<str>),
    /// A tensor. Only written: those that are read are found by name in [`Weights`](super::Weights).
    Tensor(Payload),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Value {
    /// As Python prints it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(formatter: &mut fmt::Formatter<'_>, items: &[Value]) -> fmt::Result {
            for (at, item) in items.iter().enumerate() {
                write!(formatter, "{}{item}", if at > 0 { ", " } else { "" })?;
            }
            Ok(())
        }
        match self {
            Self::None => formatter.write_str("None"),
            Self::Bool(true) => formatter.write_str("True"),
            Self::Bool(false) => formatter.write_str("False"),
            Self::Int(value) => write!(formatter, "{value}"),
            Self::Float(value) => write!(formatter, "{value:?}"),
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::List(items) => {
                formatter.write_str("[")?;
                list(formatter, items)?;
                formatter.write_str("]")
            }
            Self::Tuple(items) => {
                formatter.write_str("(")?;
                list(formatter, items)?;
                formatter.write_str(if items.len() == 1 { ",)" } else { ")" })
            }
            Self::Object(class) => write!(formatter, "<{class}>"),
            Self::Unread(class) => write!(formatter, "<{class}, a tensor that is not read>"),
            Self::Tensor(payload) => {
                write!(formatter, "a tensor of {} {:?}", payload.entry().kind, payload.entry().shape)
            }
            Self::Dict(items) | Self::Ordered(items) => {
                formatter.write_str("{")?;
                for (at, (key, item)) in items.iter().enumerate() {
                    write!(formatter, "{}{key:?}: {item}", if at > 0 { ", " } else { "" })?;
                }
                formatter.write_str("}")
            }
        }
    }
}
