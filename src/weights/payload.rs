//! Tensors to be written to a file.

use half::{bf16, f16};

use crate::{
    engine::{Storage, Tensor},
    error::{Error, Result},
    interrupt::Interrupt,
    weights::{NumberKind, TensorInfo, stored::Stored},
};

/// Bytes of a tensor that are in memory at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// A tensor to write: in memory, or in a file that is read during the write.
#[derive(Clone)]
pub struct Payload {
    entry: TensorInfo,
    source: Source,
    /// Checked between chunks, so that an interrupt ends the write.
    interrupt: Interrupt,
}

#[derive(Clone)]
enum Source {
    Memory(Tensor),
    Stored(Stored),
}

impl Payload {
    /// A tensor in memory, copied to the host if it is on a device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.to_host()?;
        let kind = match tensor.storage()? {
            Storage::F32(_) => NumberKind::F32,
            Storage::F64(_) => NumberKind::F64,
            Storage::Bf16(_) => NumberKind::Bf16,
            Storage::F16(_) => NumberKind::F16,
            Storage::U32(_) => NumberKind::U32,
        };
        Ok(Self {
            entry: TensorInfo { shape: tensor.shape().to_vec(), kind },
            source: Source::Memory(tensor),
            interrupt: Interrupt::default(),
        })
    }

    pub(in crate::weights) fn stored(stored: Stored) -> Self {
        Self {
            entry: stored.entry().clone(),
            source: Source::Stored(stored),
            interrupt: Interrupt::default(),
        }
    }

    /// Makes the write end with [`Error::Interrupted`] when the user interrupts; no file is left then.
    pub fn stopping_at(self, interrupt: &Interrupt) -> Self {
        Self { interrupt: interrupt.clone(), ..self }
    }

    /// Shape and element type as written.
    pub fn entry(&self) -> &TensorInfo {
        &self.entry
    }

    /// Writes floats as another float type, rounded to nearest; integers, bools, 8-bit floats and complex
    /// numbers are unchanged.
    ///
    /// # Errors
    /// If `kind` is not a float of at least 16 bits.
    pub fn as_float(mut self, kind: NumberKind) -> Result<Self> {
        if !kind.is_float() {
            return Err(Error::argument(format!(
                "floats can be written as f32, f64, f16 or bf16, not as {kind}"
            )));
        }
        if self.entry.kind.is_float() {
            self.entry.kind = kind;
        }
        Ok(self)
    }

    fn source_kind(&self) -> NumberKind {
        match &self.source {
            Source::Stored(stored) => stored.entry().kind,
            Source::Memory(tensor) => match tensor.dtype() {
                crate::engine::DType::F64 => NumberKind::F64,
                crate::engine::DType::Bf16 => NumberKind::Bf16,
                crate::engine::DType::F16 => NumberKind::F16,
                crate::engine::DType::U32 => NumberKind::U32,
                _ => NumberKind::F32,
            },
        }
    }

    /// Calls `take` with the values as little-endian bytes, row-major, in chunks.
    pub(super) fn each_chunk(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut take = |bytes: &[u8]| {
            self.interrupt.check("nothing was written")?;
            take(bytes)
        };
        let (from, to) = (self.source_kind(), self.entry.kind);
        if from == to {
            return self.each_source_chunk(take);
        }
        let mut cast = Vec::new();
        self.each_source_chunk(|bytes| {
            cast.clear();
            from.append_as(bytes, to, &mut cast);
            take(&cast)
        })
    }

    fn each_source_chunk(&self, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let tensor = match &self.source {
            Source::Stored(stored) => return stored.each_chunk(take),
            Source::Memory(tensor) => tensor,
        };
        match tensor.storage()? {
            Storage::F32(values) => in_chunks(values, |value: f32| value.to_le_bytes(), take),
            Storage::F64(values) => in_chunks(values, |value: f64| value.to_le_bytes(), take),
            Storage::Bf16(values) => in_chunks(values, |value: bf16| value.to_le_bytes(), take),
            Storage::F16(values) => in_chunks(values, |value: f16| value.to_le_bytes(), take),
            Storage::U32(values) => in_chunks(values, |value: u32| value.to_le_bytes(), take),
        }
    }
}

fn in_chunks<T: Copy, const N: usize>(
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES.min(values.len() * N));
    for part in values.chunks(CHUNK_BYTES / N) {
        bytes.clear();
        bytes.extend(part.iter().flat_map(|&value| to_bytes(value)));
        take(&bytes)?;
    }
    Ok(())
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Payload").field("entry", &self.entry).finish_non_exhaustive()
    }
}
