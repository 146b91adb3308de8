//! The two floating types that the CPU reference computes in, behind one trait.
//!
//! `f32` functions are written so that loops over them vectorize; `f64` ones are the standard library's, because `f64`
//! is the reference for finite differences and parity.

use std::{
    iter::Sum,
    ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign},
};

use crate::engine::storage::Element;

/// A matrix product of the `gemm` crates: sizes, then each matrix with its column and row stride, factors,
/// conjugations. The row stride of the output must not exceed its column stride, unless the output is a single column.
pub(crate) type ProductKernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    gemm_common::Parallelism,
);

/// A float that ops compute in on the CPU: `f32` or `f64`.
pub trait Float:
    Element
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEGATIVE_INFINITY: Self;
    /// Rounds a constant to this type.
    fn of(value: f64) -> Self;
    /// Converts to `f64`.
    fn to_f64(self) -> f64;
    /// eˣ; underflows to 0, finite inputs only.
    fn exp(self) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// The larger of two; the other if one is NaN.
    fn max(self, other: Self) -> Self;

    /// The matrix product of this type for this CPU.
    fn product_kernel() -> ProductKernel<Self>;
    /// `length` unspecified values, for a caller that overwrites all of them.
    fn numbers(length: usize) -> Vec<Self>;
    /// Recycles values for [`numbers`](Self::numbers); tensors do so when dropped.
    fn give_back(numbers: Vec<Self>);

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEGATIVE_INFINITY: Self = f64::NEG_INFINITY;
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    fn product_kernel() -> ProductKernel<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
    fn numbers(length: usize) -> Vec<Self> {
        vec![0.0; length]
    }
    fn give_back(_: Vec<Self>) {}
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEGATIVE_INFINITY: Self = f32::NEG_INFINITY;
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "rounds by design")]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f32::max(self, other)
    }
    fn product_kernel() -> ProductKernel<Self> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
    fn numbers(length: usize) -> Vec<Self> {
        super::recycled::take(length)
    }
    fn give_back(numbers: Vec<Self>) {
        super::recycled::give_back(numbers);
    }
}

/// eˣ in plain arithmetic that a loop can vectorize: Cephes' reduction and polynomial, within 2 units in the last
/// place.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the exponent is a small integer"
)]
fn exp_f32(x: f32) -> f32 {
    /// Adding and subtracting 1.5·2²³ rounds to the nearest integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let count = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let rest = clamped - count * 0.693_359_4 - count * -2.121_944_4e-4;
    let square = rest * rest;
    let polynomial = ((((1.987_569_1e-4 * rest + 1.398_2e-3) * rest + 8.333_452e-3) * rest + 4.166_579_6e-2)
        * rest
        + 0.166_666_65)
        * rest
        + 0.5;
    let value = polynomial * square + rest + 1.0;
    // Two factors, because 2¹²⁸ itself is not representable.
    let half = (count * 0.5) as i32;
    let other = count as i32 - half;
    let scaled =
        value * f32::from_bits(((half + 127) as u32) << 23) * f32::from_bits(((other + 127) as u32) << 23);
    if x < -87.3 { 0.0 } else { scaled }
}

/// Runs a loop compiled for the widest vectors of this CPU, chosen at run time. Wrap only the innermost loop: it does
/// not apply to other threads.
#[inline]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_f32_exponential_is_within_two_units_in_the_last_place() {
        for step in -8_700..8_800 {
            let x = step as f32 * 0.01;
            let truth = f64::exp(f64::from(x));
            let error = (f64::from(Float::exp(x)) - truth).abs() / truth;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(Float::exp(-1e4f32), 0.0);
        assert_eq!(Float::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp(0.0f32), 1.0);
    }
}
