//! Elementwise non-linearities: the two GELUs of the released code, SiLU and the sigmoid.

pub mod cuda;

use rayon::prelude::*;

use crate::{
    engine::{
        Float, Tape, Tensor, Var,
        float::vectorised,
        tape::{Operation, Sink, Slot},
    },
    error::Result,
    with_float,
};

/// Elements handled by one task.
const CHUNK: usize = 16_384;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`: the blocks' MLP and the instance head.
    GeluTanh,
    /// `x·Φ(x)` with the exact error function: the batch head (upstream.md, A14).
    GeluErf,
    /// `x·sigmoid(x)`: the shared modulation.
    Silu,
    /// `1/(1 + e⁻ˣ)`.
    Sigmoid,
}

struct Activate {
    input: Tensor,
    kind: Activation,
    slot: Slot,
}

/// Applies `kind` to every element of `x`.
///
/// # Errors
/// If `x` is not a float.
pub fn activate(tape: &mut Tape<'_>, x: &Var, kind: Activation) -> Result<Var> {
    fn run<T: Float>(x: &Tensor, kind: Activation) -> Result<Tensor> {
        let mut y = vec![T::ZERO; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.as_slice::<T>()?.par_chunks(CHUNK)).for_each(|(y, x)| match kind {
            Activation::GeluTanh => each(y, x, |x| x * gate(x)),
            Activation::GeluErf => each(y, x, |x| x * normal_below(x)),
            Activation::Silu => each(y, x, |x| x * x.sigmoid()),
            Activation::Sigmoid => each(y, x, T::sigmoid),
        });
        Tensor::new(x.shape(), y)
    }
    let value = with_float!(x.value().dtype(), "activation", T => run::<T>(x.value(), kind))?;
    let (slot, input) = (tape.slot(x), x.value().clone());
    Ok(tape.push(value, x.owner(), &[slot], false, || Activate { input, kind, slot }))
}

#[inline(always)]
fn each<T: Float>(y: &mut [T], x: &[T], function: impl Fn(T) -> T) {
    vectorised(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = function(*x);
            }
        },
    );
}

/// `(1 + tanh(u))/2 = sigmoid(2u)` with `u = √(2/π)·(x + 0.044715·x³)`.
#[inline(always)]
fn gate<T: Float>(x: T) -> T {
    (T::of(2.0 * SQRT_2_OVER_PI) * (x + T::of(0.044_715) * x * x * x)).sigmoid()
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

/// Φ(x), the standard normal distribution function.
#[inline(always)]
fn normal_below<T: Float>(x: T) -> T {
    T::of(0.5 * libm::erfc(-x.to_f64() * std::f64::consts::FRAC_1_SQRT_2))
}

impl Operation for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn run<T: Float>(op: &Activate, mut d_output: Tensor) -> Result<Tensor> {
            let x = op.input.as_slice::<T>()?;
            d_output.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(
                |(d, x)| match op.kind {
                    Activation::GeluTanh => scale(d, x, |x| {
                        let gate = gate(x);
                        let slope = T::of(2.0 * SQRT_2_OVER_PI) * (T::ONE + T::of(3.0 * 0.044_715) * x * x);
                        gate + x * gate * (T::ONE - gate) * slope
                    }),
                    Activation::GeluErf => scale(d, x, |x| {
                        normal_below(x) + x * T::of(INVERSE_SQRT_TAU) * (T::of(-0.5) * x * x).exp()
                    }),
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
        let dx = with_float!(d_output.dtype(), "activation", T => run::<T>(&self, d_output))?;
        sink.input(self.slot, dx)
    }
}

#[inline(always)]
fn scale<T: Float>(d: &mut [T], x: &[T], derivative: impl Fn(T) -> T) {
    vectorised(
        #[inline(always)]
        || {
            for (d, x) in d.iter_mut().zip(x) {
                *d *= derivative(*x);
            }
        },
    );
}
