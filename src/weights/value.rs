//! Values of a checkpoint other than tensors: numbers, strings, dicts and lists.

use std::{fmt, sync::Arc};

use super::Payload;

/// A Python value of a checkpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(Arc<str>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dict with string keys, in insertion order.
    Dict(Vec<(String, Value)>),
    /// An `OrderedDict`, the type of a state dict. Write only: it is read as a dict.
    Ordered(Vec<(String, Value)>),
    /// An object of an unsupported Python class, by class name. Read only.
    Object(Arc<str>),
    /// A tensor with an unsupported layout (sparse, quantized, a subclass), by class name. Read only.
    Unread(Arc<str>),
    /// A tensor. Write only: tensors that are read are looked up by name in [`Weights`](super::Weights).
    Tensor(Payload),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Value {
    /// Formats like Python's `repr`.
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
