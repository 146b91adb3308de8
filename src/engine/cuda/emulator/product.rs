//! Matrix products of the emulated device, computed by the CPU's kernels.

use half::{bf16, f16};

use super::{
    Emulator,
    runtime::{emulator_arena_is_written, pointer},
};
use crate::{
    engine::{
        cuda::driver::{Driver, Product, ProductNumber, Stored},
        matmul::{Matrix, product_by_row},
    },
    error::Result,
};

impl Stored {
    /// The address of row `row` of matrix `matrix`.
    fn locate(&self, number: ProductNumber, matrix: usize, row: usize) -> u64 {
        self.address + ((matrix * self.step + row * self.row) * number.bytes()) as u64
    }
}

impl Emulator {
    /// Computes a product at once; every element that it reads must be initialized.
    pub(super) fn multiply(&self, gemm: &Product) -> Result<()> {
        let Product { m, n, k, inputs, output, .. } = *gemm;
        let bias = Stored { address: gemm.bias.unwrap_or(0), row: n, step: 0, transposed: false };
        let bias = gemm.bias.map(|_| self.read_matrix("the bias", output, &bias, 0, [1, n])).transpose()?;
        let factor = |what: &str, stored: &Stored, at: usize, rows: usize, columns: usize| {
            let sizes = if stored.transposed { [columns, rows] } else { [rows, columns] };
            Ok((self.read_matrix(what, inputs, stored, at, sizes)?, sizes, stored.transposed))
        };
        for at in 0..gemm.batch {
            let (a, b) = (factor("A", &gemm.a, at, m, k)?, factor("B", &gemm.b, at, k, n)?);
            let mut c = vec![0.0f32; m * n];
            product_by_row(&mut c, n, matrix(&a), matrix(&b), false);
            for value in &mut c {
                *value *= gemm.alpha;
            }
            if gemm.beta != 0.0 {
                let before = self.read_matrix("C", output, &gemm.c, at, [m, n])?;
                for (value, before) in c.iter_mut().zip(before) {
                    *value += gemm.beta * before;
                }
            }
            if let Some(bias) = &bias {
                for row in c.chunks_mut(n) {
                    for (value, bias) in row.iter_mut().zip(bias) {
                        *value += bias;
                    }
                }
            }
            self.write_matrix(output, &gemm.c, at, &c, n)?;
        }
        Ok(())
    }

    /// The elements of matrix `at`, with its row stride removed.
    fn read_matrix(
        &self,
        what: &str,
        number: ProductNumber,
        stored: &Stored,
        at: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Vec<f32>> {
        // Dense rows are contiguous: read them as one.
        let (rows, columns) = if stored.row == columns { (1, rows * columns) } else { (rows, columns) };
        let bytes = columns * number.bytes();
        let mut raw = vec![0u8; rows * bytes];
        for (row, raw) in raw.chunks_exact_mut(bytes).enumerate() {
            let address = stored.locate(number, at, row);
            self.expect_allocated(what, address, bytes)?;
            // SAFETY: the range is allocated.
            if unsafe { emulator_arena_is_written(pointer(address), bytes as u64) } == 0 {
                return Err(self.fail(format!("a product reads {what}, which is partly uninitialized")));
            }
            // SAFETY: the range is allocated, and `raw` has its size.
            unsafe { std::ptr::copy_nonoverlapping(pointer(address).cast::<u8>(), raw.as_mut_ptr(), bytes) };
        }
        Ok(match number {
            ProductNumber::F32 => bytemuck::pod_collect_to_vec(&raw),
            ProductNumber::Bf16 => {
                bytemuck::pod_collect_to_vec::<u8, bf16>(&raw).iter().map(|value| value.to_f32()).collect()
            }
            ProductNumber::F16 => {
                bytemuck::pod_collect_to_vec::<u8, f16>(&raw).iter().map(|value| value.to_f32()).collect()
            }
        })
    }

    fn write_matrix(
        &self,
        number: ProductNumber,
        stored: &Stored,
        at: usize,
        values: &[f32],
        columns: usize,
    ) -> Result<()> {
        let columns = if stored.row == columns { values.len() } else { columns };
        let narrowed: Vec<u8> = match number {
            ProductNumber::F32 => bytemuck::pod_collect_to_vec(values),
            ProductNumber::Bf16 => {
                let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
                bytemuck::pod_collect_to_vec(&narrow)
            }
            ProductNumber::F16 => {
                let narrow: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
                bytemuck::pod_collect_to_vec(&narrow)
            }
        };
        for (row, bytes) in narrowed.chunks_exact(columns * number.bytes()).enumerate() {
            // SAFETY: `upload` checks that the destination is allocated.
            unsafe { self.upload(stored.locate(number, at, row), bytes) }?;
        }
        Ok(())
    }
}

/// A factor of the product, from its stored values and their rows and columns.
fn matrix((values, [rows, columns], transposed): &(Vec<f32>, [usize; 2], bool)) -> Matrix<'_, f32> {
    let stored = Matrix::new(values, *rows, *columns);
    if *transposed { stored.transposed() } else { stored }
}
