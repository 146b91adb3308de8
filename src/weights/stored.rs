//! Mapped files and the tensors in them: offset, shape and strides, checked once against the file's length.

use std::{
    borrow::Cow,
    fs::File,
    ops::{Deref, Range},
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use super::{
    damaged,
    kind::{Flipped, NumberKind},
};
use crate::{
    engine::Tensor,
    error::{Error, Result, reserved},
};

/// Bytes per chunk: a multiple of every element size.
const CHUNK_BYTES: usize = 1 << 18;

/// A tensor with more elements than the file has bytes is expanded (it has strides of 0). It is rejected if it exceeds
/// the bytes by more than this many elements.
const EXPANDED_NUMBERS: usize = 1 << 16;

/// A memory-mapped weights file. Pages are read on first access.
///
/// Truncating the file while it is mapped kills the process, as with every mapped file: replace files by renaming.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a file.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        #[expect(unsafe_code, reason = "a file is mapped so that only the requested parts are read")]
        // SAFETY: the map is only read, as bytes, for which any value is valid. Nothing can prevent another process
        // from changing the file; whatever depends on its content is checked at the point of use, from these bytes.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), map }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Metadata of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The element type.
    pub kind: NumberKind,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of its elements in bytes, not counting sharing.
    pub fn bytes(&self) -> usize {
        self.len() * self.kind.width()
    }
}

/// A tensor in a mapped file. All offsets are in bounds.
#[derive(Clone)]
pub(super) struct Stored {
    entry: TensorInfo,
    file: Arc<MappedFile>,
    /// Byte offset of the first element.
    start: usize,
    /// Strides in elements, if not contiguous.
    strides: Option<Vec<usize>>,
    big_endian: bool,
    flipped: Flipped,
}

/// A view of a storage: offset and strides in elements.
pub(super) struct View {
    pub(super) offset: usize,
    pub(super) strides: Vec<usize>,
}

impl Stored {
    /// A tensor over the bytes at `region` of a file, optionally through a view; the error says which part does not
    /// fit.
    pub(super) fn new(
        file: &Arc<MappedFile>,
        region: Range<usize>,
        entry: TensorInfo,
        view: Option<View>,
        big_endian: bool,
    ) -> Result<Self, String> {
        let too_large = || format!("the number of elements of the shape {:?} overflows", entry.shape);
        let numbers = entry.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let numbers = numbers.ok_or_else(too_large)?;
        // A size of 0 hides an overflow: reject shapes such as [2⁶³, 0], too, whose product is 0.
        let nonzero = entry.shape.iter().filter(|&&size| size > 0);
        nonzero.clone().try_fold(8usize, |product, &size| product.checked_mul(size)).ok_or_else(too_large)?;
        let held = region.len() / entry.kind.width();
        let (offset, strides) = match view {
            None => (0, contiguous(&entry.shape)),
            Some(View { offset, strides }) => (offset, strides),
        };
        if strides.len() != entry.shape.len() {
            return Err(format!("{} strides for the shape {:?}", strides.len(), entry.shape));
        }
        let last = entry.shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            size.saturating_sub(1).checked_mul(stride).and_then(|step| last.checked_add(step))
        });
        if numbers > 0 && last.is_none_or(|last| last >= held) {
            return Err(format!(
                "the shape {:?} with strides {strides:?} from {offset} exceeds the {held} elements of its storage",
                entry.shape
            ));
        }
        if region.end > file.len() {
            return Err("its storage extends beyond the end of the file".to_owned());
        }
        let start = if numbers == 0 { region.start } else { region.start + offset * entry.kind.width() };
        let row_by_row = {
            let shape = &entry.shape;
            let expected = contiguous(shape);
            numbers == 0
                || shape
                    .iter()
                    .zip(strides.iter().zip(&expected))
                    .all(|(&size, (own, row))| size == 1 || own == row)
        };
        Ok(Self {
            entry,
            file: Arc::clone(file),
            start,
            strides: (!row_by_row).then_some(strides),
            big_endian,
            flipped: Flipped::default(),
        })
    }

    /// Applies sign flips. It is an error if PyTorch has no such view for the element type.
    pub(super) fn with_flipped(self, flipped: Flipped) -> Result<Self, String> {
        let kind = self.entry.kind;
        if flipped.conjugated && kind != NumberKind::Complex64 {
            return Err(format!("it is marked as a conjugate view, which the dtype {kind} does not have"));
        }
        if flipped.negated && kind == NumberKind::Bool {
            return Err("it is marked as a negative view, which bools do not have".to_owned());
        }
        Ok(Self { flipped, ..self })
    }

    pub(super) fn entry(&self) -> &TensorInfo {
        &self.entry
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Length of the file in bytes.
    pub(super) fn file_bytes(&self) -> usize {
        self.file.len()
    }

    /// Calls `take` with the values as little-endian bytes, row-major, in chunks of complete elements.
    pub(super) fn each_chunk(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let as_it_lies = self.strides.is_none() && self.flipped.is_none();
        if as_it_lies && (!self.big_endian || self.entry.kind.width() == 1) {
            let bytes = &self.file[self.start..self.start + self.entry.bytes()];
            return bytes.chunks(CHUNK_BYTES).try_for_each(take);
        }
        let strides = self.strides.clone().unwrap_or_else(|| contiguous(&self.entry.shape));
        let width = self.entry.kind.width();
        let mut buffer = Vec::with_capacity(CHUNK_BYTES.min(self.entry.bytes()));
        let mut walk = Walk::new(&self.entry.shape, &strides);
        while let Some(at) = walk.next() {
            let start = self.start + at * width;
            buffer.extend_from_slice(&self.file[start..start + width]);
            if buffer.len() == CHUNK_BYTES {
                self.deliver(&mut buffer, &mut take)?;
            }
        }
        self.deliver(&mut buffer, &mut take)
    }

    fn deliver(&self, buffer: &mut Vec<u8>, take: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.big_endian {
            buffer.chunks_mut(self.entry.kind.swapped_width()).for_each(<[u8]>::reverse);
        }
        self.entry.kind.flip(buffer, self.flipped);
        if !buffer.is_empty() {
            take(buffer)?;
        }
        buffer.clear();
        Ok(())
    }

    /// Rejects a tensor with more elements than the file has bytes: it would fill the memory or the disk.
    pub(super) fn expect_few(&self, name: &str) -> Result<()> {
        if self.entry.len() <= self.file.len().saturating_add(EXPANDED_NUMBERS) {
            return Ok(());
        }
        Err(damaged(
            self.path(),
            format!(
                "tensor {name} is expanded to {:?}, more elements than the file has bytes; save it without \
                 expanding it",
                self.entry.shape
            ),
        ))
    }

    /// Rejects element types that [`floats`](Self::floats) does not support.
    pub(super) fn expect_floats(&self, name: &str) -> Result<()> {
        self.expect_few(name)?;
        if self.entry.kind.is_float() {
            return Ok(());
        }
        Err(damaged(
            self.path(),
            format!("tensor {name} has the dtype {}, which is not a float", self.entry.kind),
        ))
    }

    /// Floats as f32, borrowed from the file if stored as contiguous f32. Empty for other types.
    pub(super) fn floats(&self) -> Cow<'_, [f32]> {
        let plain = self.entry.kind == NumberKind::F32
            && self.strides.is_none()
            && self.flipped.is_none()
            && !self.big_endian
            && cfg!(target_endian = "little");
        if plain
            && let Ok(values) =
                bytemuck::try_cast_slice(&self.file[self.start..self.start + self.entry.bytes()])
        {
            return Cow::Borrowed(values);
        }
        let mut values = Vec::with_capacity(self.entry.len());
        let appended = self.each_chunk(|bytes| {
            self.entry.kind.append_f32(bytes, &mut values);
            Ok(())
        });
        debug_assert!(appended.is_ok(), "appending does not fail");
        Cow::Owned(values)
    }

    /// Reads floats as f32, integers and bools as u32.
    pub(super) fn read(&self, name: &str) -> Result<Tensor> {
        let refuse = |message: String| damaged(self.path(), format!("tensor {name} {message}"));
        let TensorInfo { shape, kind } = &self.entry;
        self.expect_few(name)?;
        // Reserve first: an allocation that fails later aborts the process.
        drop(reserved::<f32>(self.entry.len(), self.path(), &format!("tensor {name} of {shape:?}"))?);
        match kind {
            NumberKind::F8E4M3 | NumberKind::F8E5M2 | NumberKind::Complex64 => Err(refuse(format!(
                "has the unsupported dtype {kind}; convert it with the program that wrote it"
            ))),
            kind if kind.is_float() => Tensor::new(shape, self.floats().into_owned()),
            kind => {
                let mut values = Vec::with_capacity(self.entry.len());
                self.each_chunk(|bytes| {
                    kind.append_u32(bytes, &mut values).map_err(|value| {
                        refuse(format!("contains {value}, which is not an integer from 0 to {}", u32::MAX))
                    })
                })?;
                Tensor::new(shape, values)
            }
        }
    }
}

/// The strides of a contiguous row-major tensor.
pub(super) fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1usize;
    for (stride, &size) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        // Overflows only with a size of 0, where no element is ever read.
        step = step.wrapping_mul(size);
    }
    strides
}

/// Iterates over the storage indices of a strided tensor, row-major.
struct Walk<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    position: Vec<usize>,
    next: Option<usize>,
}

impl<'a> Walk<'a> {
    fn new(shape: &'a [usize], strides: &'a [usize]) -> Self {
        let next = (!shape.contains(&0)).then_some(0);
        Self { shape, strides, position: vec![0; shape.len()], next }
    }

    fn next(&mut self) -> Option<usize> {
        let current = self.next?;
        let mut at = current;
        self.next = None;
        for dimension in (0..self.shape.len()).rev() {
            self.position[dimension] += 1;
            at += self.strides[dimension];
            if self.position[dimension] < self.shape[dimension] {
                self.next = Some(at);
                break;
            }
            at -= self.strides[dimension] * self.shape[dimension];
            self.position[dimension] = 0;
        }
        Some(current)
    }
}
