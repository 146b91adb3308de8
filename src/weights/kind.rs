//! Element types of weight files, and their conversion to f32 and u32.

use std::fmt;

use half::{bf16, f16};
use safetensors::Dtype;

/// Pending sign flips: PyTorch stores `-x` and `x.conj()` as views with a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flipped {
    /// Negate all values.
    pub(super) negated: bool,
    /// Negate the imaginary parts.
    pub(super) conjugated: bool,
}

impl Flipped {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// An element type of a weights file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum NumberKind {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float with 4 exponent bits; can be copied, but not converted to a tensor.
    F8E4M3,
    /// 8-bit float with 5 exponent bits; can be copied, but not converted to a tensor.
    F8E5M2,
    /// Complex number of two 32-bit floats; can be copied, but not converted to a tensor.
    Complex64,
    /// Unsigned 8-bit.
    U8,
    /// Signed 8-bit.
    I8,
    /// Unsigned 16-bit.
    U16,
    /// Signed 16-bit.
    I16,
    /// Unsigned 32-bit.
    U32,
    /// Signed 32-bit.
    I32,
    /// Unsigned 64-bit.
    U64,
    /// Signed 64-bit.
    I64,
    /// Boolean, one byte each.
    Bool,
}

impl NumberKind {
    /// Every variant.
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F64,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::Complex64,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::Bool,
    ];

    /// Size of an element in bytes.
    pub fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::F16 | Self::Bf16 | Self::U16 | Self::I16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::F64 | Self::U64 | Self::I64 | Self::Complex64 => 8,
        }
    }

    /// Width of the byte groups that a big-endian file reverses.
    pub(super) fn swapped_width(self) -> usize {
        if self == Self::Complex64 { 4 } else { self.width() }
    }

    /// The name used by commands and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F8E4M3 => "f8_e4m3",
            Self::F8E5M2 => "f8_e5m2",
            Self::Complex64 => "complex64",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::Bool => "bool",
        }
    }

    /// Whether [`read`](super::Weights::read) returns it as f32.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::Bf16)
    }

    /// The element type of a safetensors dtype; `None` for packed types, which none of our models use.
    pub(super) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.safetensors() == dtype)
    }

    /// The safetensors dtype.
    pub(super) fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F64 => Dtype::F64,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F8E4M3 => Dtype::F8_E4M3,
            Self::F8E5M2 => Dtype::F8_E5M2,
            Self::Complex64 => Dtype::C64,
            Self::U8 => Dtype::U8,
            Self::I8 => Dtype::I8,
            Self::U16 => Dtype::U16,
            Self::I16 => Dtype::I16,
            Self::U32 => Dtype::U32,
            Self::I32 => Dtype::I32,
            Self::U64 => Dtype::U64,
            Self::I64 => Dtype::I64,
            Self::Bool => Dtype::BOOL,
        }
    }

    /// Appends floats as little-endian values of another float type, rounded to nearest; does nothing unless both are
    /// floats.
    pub(super) fn append_as(self, bytes: &[u8], kind: Self, to: &mut Vec<u8>) {
        let take = |value: f64| match kind {
            Self::F32 => to.extend_from_slice(&(value as f32).to_le_bytes()),
            Self::F64 => to.extend_from_slice(&value.to_le_bytes()),
            Self::F16 => to.extend_from_slice(&f16::from_f64(value).to_le_bytes()),
            Self::Bf16 => to.extend_from_slice(&bf16::from_f64(value).to_le_bytes()),
            _ => {}
        };
        self.floats(bytes, take);
    }

    /// Applies sign flips to little-endian values: floats by their sign bit, so that NaNs and zeros match
    /// PyTorch; integers wrap around.
    pub(super) fn flip(self, bytes: &mut [u8], flipped: Flipped) {
        fn negate<const N: usize>(bytes: &mut [u8], negate: impl Fn([u8; N]) -> [u8; N]) {
            bytes.as_chunks_mut::<N>().0.iter_mut().for_each(|number| *number = negate(*number));
        }
        fn sign<const N: usize>(mut number: [u8; N]) -> [u8; N] {
            number[N - 1] ^= 0x80;
            number
        }
        if flipped.negated {
            match self {
                Self::F32 | Self::Complex64 => negate(bytes, sign::<4>),
                Self::F64 => negate(bytes, sign::<8>),
                Self::F16 | Self::Bf16 => negate(bytes, sign::<2>),
                Self::F8E4M3 | Self::F8E5M2 => negate(bytes, sign::<1>),
                Self::U8 | Self::I8 => negate(bytes, |[byte]| [byte.wrapping_neg()]),
                Self::U16 | Self::I16 => {
                    negate(bytes, |n| u16::from_le_bytes(n).wrapping_neg().to_le_bytes())
                }
                Self::U32 | Self::I32 => {
                    negate(bytes, |n| u32::from_le_bytes(n).wrapping_neg().to_le_bytes())
                }
                Self::U64 | Self::I64 => {
                    negate(bytes, |n| u64::from_le_bytes(n).wrapping_neg().to_le_bytes())
                }
                Self::Bool => {}
            }
        }
        if flipped.conjugated && self == Self::Complex64 {
            negate(bytes, sign::<8>);
        }
    }

    /// Calls `take` with each little-endian float; does nothing for other types.
    fn floats(self, bytes: &[u8], mut take: impl FnMut(f64)) {
        match self {
            Self::F32 => each(bytes, |bytes| take(f32::from_le_bytes(bytes).into())),
            Self::F64 => each(bytes, |bytes| take(f64::from_le_bytes(bytes))),
            Self::F16 => each(bytes, |bytes| take(f16::from_le_bytes(bytes).to_f64())),
            Self::Bf16 => each(bytes, |bytes| take(bf16::from_le_bytes(bytes).to_f64())),
            _ => {}
        }
    }

    /// Appends little-endian floats as f32; does nothing for other types. NaNs keep their bits if they are f32.
    pub(super) fn append_f32(self, bytes: &[u8], to: &mut Vec<f32>) {
        match self {
            Self::F32 => each(bytes, |bytes| to.push(f32::from_le_bytes(bytes))),
            Self::F64 => each(bytes, |bytes| to.push(f64::from_le_bytes(bytes) as f32)),
            Self::F16 => each(bytes, |bytes| to.push(f16::from_le_bytes(bytes).to_f32())),
            Self::Bf16 => each(bytes, |bytes| to.push(bf16::from_le_bytes(bytes).to_f32())),
            _ => {}
        }
    }

    /// Appends little-endian integers and bools as u32; the first that does not fit is the error. Does nothing for
    /// other types.
    pub(super) fn append_u32(self, bytes: &[u8], to: &mut Vec<u32>) -> Result<(), i128> {
        let mut bad = None;
        let mut take = |value: i128| match u32::try_from(value) {
            Ok(value) => to.push(value),
            Err(_) => bad = bad.or(Some(value)),
        };
        match self {
            Self::U8 => each(bytes, |bytes| take(u8::from_le_bytes(bytes).into())),
            Self::Bool => each(bytes, |bytes| take((u8::from_le_bytes(bytes) != 0).into())),
            Self::I8 => each(bytes, |bytes| take(i8::from_le_bytes(bytes).into())),
            Self::U16 => each(bytes, |bytes| take(u16::from_le_bytes(bytes).into())),
            Self::I16 => each(bytes, |bytes| take(i16::from_le_bytes(bytes).into())),
            Self::U32 => each(bytes, |bytes| take(u32::from_le_bytes(bytes).into())),
            Self::I32 => each(bytes, |bytes| take(i32::from_le_bytes(bytes).into())),
            Self::U64 => each(bytes, |bytes| take(u64::from_le_bytes(bytes).into())),
            Self::I64 => each(bytes, |bytes| take(i64::from_le_bytes(bytes).into())),
            _ => {}
        }
        bad.map_or(Ok(()), Err)
    }
}

impl fmt::Display for NumberKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Calls `take` with each complete group of `N` bytes.
fn each<const N: usize>(bytes: &[u8], take: impl FnMut([u8; N])) {
    bytes.as_chunks::<N>().0.iter().copied().for_each(take);
}
