//! Safe matrix products on a device.

use std::sync::PoisonError;

use super::{
    buffer::Buffer,
    device::{Device, Factor},
    driver::{Product, ProductNumber, Stored},
};
use crate::error::{Error, Result};

const OP: &str = "product";

/// A factor of a product, stored row-major at any offset in a buffer; or the factors of a batch, evenly spaced.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a, T: Factor> {
    /// The buffer.
    pub buffer: &'a Buffer<T>,
    /// Index of the first element.
    pub first: usize,
    /// Row stride of the stored matrix, in elements.
    pub row: usize,
    /// Stride between matrices of a batch, in elements.
    pub step: usize,
    /// Whether the stored rows are the matrix's columns.
    pub transposed: bool,
}

impl<'a, T: Factor> Operand<'a, T> {
    /// One dense matrix with rows of this many elements, from the start of the buffer.
    pub fn of(buffer: &'a Buffer<T>, row: usize) -> Self {
        Self { buffer, first: 0, row, step: 0, transposed: false }
    }

    /// The transpose, without copying.
    pub fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// The destination of products, as in [`Operand`]. Results of a batch may be interleaved in wider rows, but must not
/// overlap.
#[derive(Debug)]
pub struct Target<'a, T: Factor> {
    /// The buffer.
    pub buffer: &'a mut Buffer<T>,
    /// Index of the first element of the first result.
    pub first: usize,
    /// Row stride, in elements.
    pub row: usize,
    /// Stride between results, in elements.
    pub step: usize,
}

/// `c[m, n] = alpha · a[m, k] · b[k, n] + beta · c (+ bias[n])`, `batch` times with a shared bias.
#[derive(Clone, Copy, Debug)]
pub struct Products<'a, I: Factor, O: Factor> {
    /// `m`, `n` and `k`.
    pub sizes: [usize; 3],
    /// Number of products.
    pub batch: usize,
    /// a
    pub a: Operand<'a, I>,
    /// b
    pub b: Operand<'a, I>,
    /// `[n]`
    pub bias: Option<&'a Buffer<O>>,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the previous c; 0 does not read it.
    pub beta: f32,
}

/// The number of elements that `batch` matrices span, with rows of `columns` and strides `row` and `step`.
fn reach(batch: usize, [rows, columns]: [usize; 2], row: usize, step: usize) -> usize {
    step.saturating_mul(batch - 1).saturating_add(row.saturating_mul(rows - 1)).saturating_add(columns)
}

impl Device {
    /// `c[m, n] = alpha · op(a)[m, k] · op(b)[k, n] + beta · c (+ bias[n])`, row-major, dense, accumulated in f32. The
    /// flag of a matrix says whether it is stored transposed.
    ///
    /// # Errors
    /// If the sizes do not match or the device fails.
    #[expect(clippy::too_many_arguments, reason = "the arguments of a matrix product")]
    pub fn product<I: Factor, O: Factor>(
        &self,
        c: &mut Buffer<O>,
        [m, n, k]: [usize; 3],
        (a, a_transposed): (&Buffer<I>, bool),
        (b, b_transposed): (&Buffer<I>, bool),
        bias: Option<&Buffer<O>>,
        alpha: f32,
        beta: f32,
    ) -> Result<()> {
        let sizes = [(a.len(), m * k), (b.len(), k * n), (c.len(), m * n), (bias.map_or(n, Buffer::len), n)];
        if sizes.iter().any(|(len, needed)| len != needed) {
            return Err(Error::shape(
                OP,
                format!(
                    "A, B, C and bias have {:?} elements for the sizes {:?}",
                    sizes.map(|size| size.0),
                    [m, n, k]
                ),
            ));
        }
        let a = Operand { transposed: a_transposed, ..Operand::of(a, if a_transposed { m } else { k }) };
        let b = Operand { transposed: b_transposed, ..Operand::of(b, if b_transposed { k } else { n }) };
        let c = Target { buffer: c, first: 0, row: n, step: 0 };
        self.products(c, &Products { sizes: [m, n, k], batch: 1, a, b, bias, alpha, beta })
    }

    /// As [`product`](Self::product), for strided matrices at any offset of their buffers, and for batches.
    ///
    /// # Errors
    /// If a matrix exceeds its buffer, results overlap, the sizes do not match, or the device fails.
    pub fn products<I: Factor, O: Factor>(
        &self,
        c: Target<'_, O>,
        products: &Products<'_, I, O>,
    ) -> Result<()> {
        let Products { sizes: [m, n, k], batch, a, b, bias, alpha, beta } = *products;
        if O::NUMBER != I::NUMBER && O::NUMBER != ProductNumber::F32 {
            return Err(Error::shape(
                OP,
                format!("a product of {} with a result in {} is not supported", I::SUFFIX, O::SUFFIX),
            ));
        }
        if m == 0 || n == 0 || k == 0 || batch == 0 {
            return Err(Error::shape(OP, format!("the sizes {:?} must not be 0", [batch, m, n, k])));
        }
        let stored =
            |transposed: bool, rows, columns| if transposed { [columns, rows] } else { [rows, columns] };
        let holds = |len: usize, first: usize, sizes: [usize; 2], row: usize, step: usize| {
            row >= sizes[1] && first.saturating_add(reach(batch, sizes, row, step)) <= len
        };
        let disjoint = batch == 1
            || c.step >= reach(1, [m, n], c.row, 0)
            || c.step >= n && reach(batch, [1, n], c.row, c.step) <= c.row;
        let fits = holds(a.buffer.len(), a.first, stored(a.transposed, m, k), a.row, a.step)
            && holds(b.buffer.len(), b.first, stored(b.transposed, k, n), b.row, b.step)
            && holds(c.buffer.len(), c.first, [m, n], c.row, c.step)
            && bias.is_none_or(|bias| bias.len() == n);
        if !fits || !disjoint {
            return Err(Error::shape(
                OP,
                format!(
                    "{batch} products of the sizes {:?}: A, B and C begin at {:?}, with rows {:?} and matrices {:?} apart, in \
                     {:?} numbers",
                    [m, n, k],
                    [a.first, b.first, c.first],
                    [a.row, b.row, c.row],
                    [a.step, b.step, c.step],
                    [a.buffer.len(), b.buffer.len(), c.buffer.len()]
                ),
            ));
        }
        if ![a.buffer.device(), b.buffer.device(), c.buffer.device()].iter().all(|device| self.is(device)) {
            return Err(Error::shape(OP, "the matrices are on different devices"));
        }
        let operand = |operand: &Operand<'_, I>| Stored {
            address: operand.buffer.address() + (operand.first * size_of::<I>()) as u64,
            row: operand.row,
            step: operand.step,
            transposed: operand.transposed,
        };
        let product = Product {
            inputs: I::NUMBER,
            output: O::NUMBER,
            m,
            n,
            k,
            batch,
            a: operand(&a),
            b: operand(&b),
            c: Stored {
                address: c.buffer.address() + (c.first * size_of::<O>()) as u64,
                row: c.row,
                step: c.step,
                transposed: false,
            },
            alpha,
            beta,
            bias: bias.map(Buffer::address),
        };
        // SAFETY: buffers are allocated with their lengths, and the matrices lie within them; C is borrowed mutably, so
        // it is none of the others.
        let run = || unsafe { self.driver().product(&product) };
        let mut timed = self.inner().products.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = timed.as_mut() else {
            drop(timed);
            return run();
        };
        let start = self.record()?;
        run()?;
        times.push((start, self.record()?));
        Ok(())
    }
}
