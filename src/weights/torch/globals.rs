//! The Python names that a checkpoint may refer to. They are only identifiers; none is ever called.
//!
//! Three kinds: names that construct tensors, dicts and numbers, which are supported; all others, which make opaque
//! objects; and a few that no checkpoint needs and that are dangerous in Python, for which the file is rejected.

use crate::weights::NumberKind;

/// A supported name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `collections.Counter`, a dict of counts.
    Counter,
    /// `collections.defaultdict`, a dict.
    DefaultDict,
    /// `collections.deque`, a list.
    Deque,
    /// `set` and `frozenset`, read as lists.
    Set,
    /// `_codecs.encode`, which old protocols use for bytes.
    Encode,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch.device`.
    Device,
    /// A tensor type that `_rebuild_from_type_v2` takes; ignored.
    TensorType,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, whose element type is that of the storage.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, with an explicit element type.
    RebuildTensorOfKind,
    /// `torch._utils._rebuild_parameter` and the variant with state: the tensor itself.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: calls one of those above.
    RebuildFromType,
    /// A storage class; `None` for untyped storage.
    Storage(Option<NumberKind>),
    /// A storage class with an unsupported element type, and its size in bytes.
    OtherStorage(usize),
    /// A `torch.dtype`.
    Kind(NumberKind),
}

/// Looks up a name in a module; `None` if it is not supported.
pub(super) fn find(module: &[u8], name: &[u8]) -> Option<Global> {
    match (module, name) {
        (b"collections", b"OrderedDict") => Some(Global::OrderedDict),
        (b"collections", b"Counter") => Some(Global::Counter),
        (b"collections", b"defaultdict") => Some(Global::DefaultDict),
        (b"collections" | b"_collections", b"deque") => Some(Global::Deque),
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
    }
}

/// Whether a name occurs only in malicious pickles. Nothing is called here in any case: the check warns users about a
/// file that should not be opened in Python either.
pub(super) fn is_harmful(module: &[u8], name: &[u8]) -> bool {
    const MODULES: [&[u8]; 20] = [
        b"os",
        b"posix",
        b"nt",
        b"subprocess",
        b"_posixsubprocess",
        b"sys",
        b"shutil",
        b"socket",
        b"pty",
        b"commands",
        b"importlib",
        b"runpy",
        b"ctypes",
        b"code",
        b"webbrowser",
        b"pickle",
        b"_pickle",
        b"cloudpickle",
        b"dill",
        b"marshal",
    ];
    const BUILTINS: [&[u8]; 12] = [
        b"eval",
        b"exec",
        b"execfile",
        b"compile",
        b"open",
        b"input",
        b"breakpoint",
        b"__import__",
        b"apply",
        b"globals",
        b"locals",
        b"vars",
    ];
    let package = module.split(|&byte| byte == b'.').next().unwrap_or_default();
    match package {
        b"builtins" | b"__builtin__" => BUILTINS.contains(&name),
        b"torch" => {
            matches!((module, name), (b"torch" | b"torch.serialization" | b"torch.jit", b"load"))
                || matches!(module, b"torch.hub" | b"torch.utils.cpp_extension")
        }
        _ => MODULES.contains(&package),
    }
}

/// Whether an unsupported name constructs a tensor with an unsupported layout.
pub(super) fn is_tensor_form(module: &[u8], name: &[u8]) -> bool {
    const CLASSES: [&[u8]; 3] = [b"Tensor", b"Storage", b"Parameter"];
    let of_torch = module.split(|&byte| byte == b'.').next() == Some(b"torch");
    let makes = name.starts_with(b"_rebuild") || name == b"_load_from_bytes";
    of_torch && (makes || CLASSES.iter().any(|class| name.ends_with(class)))
}

/// The qualified name, for messages.
pub(super) fn full_name(module: &[u8], name: &[u8]) -> String {
    const LONGEST: usize = 80;
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
        text.replace(char::is_control, "\u{fffd}")
    };
    format!("{}.{}", text(module), text(name))
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
        b"ComplexDoubleStorage" => return Some(Global::OtherStorage(16)),
        b"QInt32Storage" => return Some(Global::OtherStorage(4)),
        b"QInt8Storage" | b"QUInt8Storage" | b"QUInt4x2Storage" | b"QUInt2x4Storage" => {
            return Some(Global::OtherStorage(1));
        }
        _ => return None,
    }))
}

fn kind(name: &[u8]) -> Option<NumberKind> {
    NumberKind::ALL.into_iter().find(|&kind| python_name(kind).as_bytes() == name)
}

/// The PyTorch name of an element type.
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

/// The storage class for an element type; `None` for types that only untyped storage can hold.
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

/// The error for a file that is one object of a custom class instead of dicts of tensors.
pub(super) fn whole_object(class: &str) -> String {
    format!(
        "the file is one object of {class}, which only its own code could rebuild, and is refused; nothing of it was run. \
         Where you trust the file, load it in Python and save its tensors: torch.save(model.state_dict(), FILE)"
    )
}

/// The error for a file that tries to run code.
pub(super) fn refused(what: &str) -> String {
    format!(
        "the file tries to run code ({what}) and is refused; nothing of it was run. Where you trust the file, load it in \
         Python and save only tensors, numbers, texts, lists and dicts, such as a state_dict()"
    )
}
