//! The names of Python that a checkpoint may mention. Each stands for itself; none is ever called.

use crate::weights::NumberKind;

/// A name on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `collections.Counter`, a dict of counts.
    Counter,
    /// `set` and `frozenset`, read as lists.
    Set,
    /// `_codecs.encode`, as which old protocols write bytes.
    Encode,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch.device`.
    Device,
    /// A type that rebuilt tensors may be of; it changes nothing.
    TensorType,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, whose numbers are of their storage's kind.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, which names the kind.
    RebuildTensorOfKind,
    /// `torch._utils._rebuild_parameter` and the one with state: the tensor itself.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: calls one of those above.
    RebuildFromType,
    /// A class of storages; `None` for the one of bytes.
    Storage(Option<NumberKind>),
    /// A `torch.dtype`.
    Kind(NumberKind),
}

/// The name in a module, if it is on the list; else why the file is refused.
pub(super) fn find(module: &[u8], name: &[u8]) -> Result<Global, String> {
    let listed = match (module, name) {
        (b"collections", b"OrderedDict") => Some(Global::OrderedDict),
        (b"collections", b"Counter") => Some(Global::Counter),
        (b"builtins" | b"__builtin__", b"set" | b"frozenset") => Some(Global::Set),
        (b"_codecs", b"encode") => Some(Global::Encode),
        (b"torch", b"Size") => Some(Global::Size),
        (b"torch", b"device") => Some(Global::Device),
        (b"torch", b"Tensor") | (b"torch.nn.parameter", b"Parameter" | b"Buffer") => Some(Global::TensorType),
        (b"torch._utils", b"_rebuild_tensor" | b"_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        (b"torch._utils", b"_rebuild_tensor_v3") => Some(Global::RebuildTensorOfKind),
        (b"torch._utils", b"_rebuild_parameter" | b"_rebuild_parameter_with_state") => {
            Some(Global::RebuildParameter)
        }
        (b"torch._tensor", b"_rebuild_from_type_v2") => Some(Global::RebuildFromType),
        (b"torch" | b"torch.cuda" | b"torch.storage", _) => {
            storage(name).or_else(|| kind(name).map(Global::Kind))
        }
        _ => None,
    };
    listed.ok_or_else(|| refusal(module, name))
}

fn storage(name: &[u8]) -> Option<Global> {
    Some(Global::Storage(match name {
        b"UntypedStorage" => None,
        b"FloatStorage" => Some(NumberKind::F32),
        b"DoubleStorage" => Some(NumberKind::F64),
        b"HalfStorage" => Some(NumberKind::F16),
        b"BFloat16Storage" => Some(NumberKind::Bf16),
        b"ByteStorage" => Some(NumberKind::U8),
        b"CharStorage" => Some(NumberKind::I8),
        b"ShortStorage" => Some(NumberKind::I16),
        b"IntStorage" => Some(NumberKind::I32),
        b"LongStorage" => Some(NumberKind::I64),
        b"BoolStorage" => Some(NumberKind::Bool),
        b"ComplexFloatStorage" => Some(NumberKind::Complex64),
        _ => return None,
    }))
}

fn kind(name: &[u8]) -> Option<NumberKind> {
    NumberKind::ALL.into_iter().find(|&kind| python_name(kind).as_bytes() == name)
}

/// What PyTorch calls a kind.
pub(in crate::weights) fn python_name(kind: NumberKind) -> &'static str {
    match kind {
        NumberKind::F32 => "float32",
        NumberKind::F64 => "float64",
        NumberKind::F16 => "float16",
        NumberKind::Bf16 => "bfloat16",
        NumberKind::F8E4M3 => "float8_e4m3fn",
        NumberKind::F8E5M2 => "float8_e5m2",
        NumberKind::Complex64 => "complex64",
        NumberKind::U8 => "uint8",
        NumberKind::I8 => "int8",
        NumberKind::U16 => "uint16",
        NumberKind::I16 => "int16",
        NumberKind::U32 => "uint32",
        NumberKind::I32 => "int32",
        NumberKind::U64 => "uint64",
        NumberKind::I64 => "int64",
        NumberKind::Bool => "bool",
    }
}

/// The class of storages that PyTorch keeps a kind in; `None` for kinds that only the one of bytes can hold.
pub(in crate::weights) fn storage_name(kind: NumberKind) -> Option<&'static str> {
    Some(match kind {
        NumberKind::F32 => "FloatStorage",
        NumberKind::F64 => "DoubleStorage",
        NumberKind::F16 => "HalfStorage",
        NumberKind::Bf16 => "BFloat16Storage",
        NumberKind::U8 => "ByteStorage",
        NumberKind::I8 => "CharStorage",
        NumberKind::I16 => "ShortStorage",
        NumberKind::I32 => "IntStorage",
        NumberKind::I64 => "LongStorage",
        NumberKind::Bool => "BoolStorage",
        NumberKind::Complex64 => "ComplexFloatStorage",
        NumberKind::F8E4M3 | NumberKind::F8E5M2 | NumberKind::U16 | NumberKind::U32 | NumberKind::U64 => {
            return None;
        }
    })
}

/// Why a name that is not on the list ends the reading.
fn refusal(module: &[u8], name: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    let full = format!("{}.{}", text(module), text(name));
    if module.starts_with(b"torch._utils") && name.starts_with(b"_rebuild_") || name.ends_with(b"Storage") {
        return format!(
            "holds a tensor of a form that this program does not know ({full}); save it as a plain dense tensor"
        );
    }
    refused(&full)
}

/// The refusal of a file that wants something done.
pub(super) fn refused(what: &str) -> String {
    format!(
        "the file wants to run code ({what}) and is refused; nothing of it was run. Where you trust the file, load it in \
         Python and save only tensors, numbers, texts, lists and dicts, such as a state_dict()"
    )
}
