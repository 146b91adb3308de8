//! Reads safetensors files: the header is parsed and checked on open, values are read on demand.

use std::sync::Arc;

use safetensors::SafeTensors;

use super::{
    Contents, damaged,
    kind::NumberKind,
    stored::{MappedFile, Stored, TensorInfo},
    value::Value,
};
use crate::error::Result;

/// Whether the bytes start like a safetensors file: a length, followed by a JSON object.
pub(super) fn begins(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && header_length(bytes).is_some_and(|length| length <= 100 << 20)
}

fn header_length(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|length| u64::from_le_bytes(*length))
}

/// Reads the tensors of a file, ordered by offset, and its metadata.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<Contents> {
    let refuse = |message: String| damaged(file.path(), message);
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|error| {
        refuse(format!(
            "not a complete safetensors file ({error}): truncated or corrupt; download or save it again"
        ))
    })?;
    let data = 8 + header;
    let mut found = Contents::default();
    for name in metadata.offset_keys() {
        let info = metadata
            .info(&name)
            .ok_or_else(|| refuse(format!("tensor {name} is missing from the header")))?;
        let kind = NumberKind::of_safetensors(info.dtype)
            .ok_or_else(|| refuse(format!("tensor {name} has the unsupported dtype {:?}", info.dtype)))?;
        let entry = TensorInfo { shape: info.shape.clone(), kind };
        let (start, end) = info.data_offsets;
        let stored = Stored::new(file, data + start..data + end, entry, None, false)
            .map_err(|message| refuse(format!("tensor {name}: {message}")))?;
        found.tensors.push((name, stored));
    }
    let mut remarks: Vec<_> = metadata.metadata().iter().flatten().collect();
    remarks.sort();
    for (name, text) in remarks {
        found.values.push((name.clone(), Value::Text(text.as_str().into())));
    }
    Ok(found)
}
