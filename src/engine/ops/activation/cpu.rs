//! CPU reference of the activation functions.

use rayon::prelude::*;

use super::Activation;
use crate::{
    engine::{Float, Tensor, float::vectorized},
    error::Result,
};

/// Elements per task.
const CHUNK: usize = 16_384;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const QUICK_GELU_SLOPE: f64 = 1.702;
const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

/// Applies `kind` to every element of `x`.
///
/// # Errors
/// If `x` has a dtype other than `T`.
pub(crate) fn forward<T: Float>(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let mut y = T::numbers(x.len());
    y.par_chunks_mut(CHUNK).zip(x.as_slice::<T>()?.par_chunks(CHUNK)).for_each(|(y, x)| match kind {
        Activation::GeluTanh => each(y, x, |x| x * gate(x)),
        Activation::GeluErf => each(y, x, |x| x * normal_below(x)),
        Activation::QuickGelu => each(y, x, |x| x * (T::of(QUICK_GELU_SLOPE) * x).sigmoid()),
        Activation::Relu => each(y, x, |x| x.max(T::ZERO)),
        Activation::Silu => each(y, x, |x| x * x.sigmoid()),
        Activation::Sigmoid => each(y, x, T::sigmoid),
    });
    Tensor::new(x.shape(), y)
}

/// Computes the gradient of the input from that of the output.
///
/// # Errors
/// If a tensor's dtype is not `T`.
pub(crate) fn backward<T: Float>(x: &Tensor, kind: Activation, mut d_output: Tensor) -> Result<Tensor> {
    let x = x.as_slice::<T>()?;
    d_output.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(
        |(d, x)| match kind {
            Activation::GeluTanh => scale(d, x, |x| {
                let gate = gate(x);
                let slope = T::of(2.0 * SQRT_2_OVER_PI) * (T::ONE + T::of(3.0 * 0.044_715) * x * x);
                gate + x * gate * (T::ONE - gate) * slope
            }),
            Activation::GeluErf => {
                scale(d, x, |x| normal_below(x) + x * T::of(INVERSE_SQRT_TAU) * (T::of(-0.5) * x * x).exp())
            }
            Activation::QuickGelu => scale(d, x, |x| {
                let slope = T::of(QUICK_GELU_SLOPE);
                let gate = (slope * x).sigmoid();
                gate + slope * x * gate * (T::ONE - gate)
            }),
            Activation::Relu => scale(d, x, |x| if x > T::ZERO { T::ONE } else { T::ZERO }),
            Activation::Silu => scale(d, x, |x| {
                let gate = x.sigmoid();
                gate + x * gate * (T::ONE - gate)
            }),
            Activation::Sigmoid => scale(d, x, |x| {
                let gate = x.sigmoid();
                gate * (T::ONE - gate)
            }),
        },
    );
    Ok(d_output)
}

#[inline(always)]
fn each<T: Float>(y: &mut [T], x: &[T], function: impl Fn(T) -> T) {
    vectorized(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = function(*x);
            }
        },
    );
}

#[inline(always)]
fn scale<T: Float>(d: &mut [T], x: &[T], derivative: impl Fn(T) -> T) {
    vectorized(
        #[inline(always)]
        || {
            for (d, x) in d.iter_mut().zip(x) {
                *d *= derivative(*x);
            }
        },
    );
}

/// `(1 + tanh(u))/2 = sigmoid(2u)` with `u = √(2/π)·(x + 0.044715·x³)`.
#[inline(always)]
fn gate<T: Float>(x: T) -> T {
    (T::of(2.0 * SQRT_2_OVER_PI) * (x + T::of(0.044_715) * x * x * x)).sigmoid()
}

/// Φ(x), the cumulative distribution function of the standard normal.
#[inline(always)]
fn normal_below<T: Float>(x: T) -> T {
    T::of(0.5 * libm::erfc(-x.to_f64() * std::f64::consts::FRAC_1_SQRT_2))
}
