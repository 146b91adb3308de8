//! Sums over the rows of each sample, and what a direction is divided by.

use super::{COLUMNS, FILE, THREADS, launch};
use crate::{
    engine::{
        autograd::contributions::cuda::{Columns, GatherIndex, column_sum, sample_sums},
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, each_launch, share_of, size},
    },
    error::Result,
};

/// The sums over the rows of each sample of columns of `d` `[S·T, width]`: `sums` `[S, N]`, `N` columns from
/// `columns.first`; the gradient of a bias for each sample.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn sample_column_sums<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    samples: usize,
) -> Result<()> {
    sample_sums(sums, d, columns, samples)
}

/// The gradient of a table for each sample: `tables` `[S, K, N]` from `d` `[S, tokens, N]`, of which row `k` is the sum of
/// the rows that it was added to.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn sample_gather_sums<T: Factor>(
    tables: &mut Buffer<f32>,
    d: &Buffer<T>,
    index: &GatherIndex,
    samples: usize,
) -> Result<()> {
    let op = "sample_gather_sums";
    let columns = share_of(op, tables.len(), samples * index.rows())?;
    d.expect_len(op, "the rows' gradient", samples * index.tokens() * columns)?;
    if tables.is_empty() {
        return Ok(());
    }
    let grid =
        [blocks(op, columns, COLUMNS)?, size(op, "rows", index.rows())?, size(op, "samples", samples)?];
    let [starts, order] = index.read();
    let arguments = [
        tables.write(),
        d.read(),
        starts,
        order,
        Argument::U32(size(op, "tokens", index.tokens())?),
        Argument::U32(size(op, "columns", columns)?),
    ];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    launch(d.device(), &Kernel::of::<T>(FILE, "gather_samples"), &shape, &arguments)
}

/// The direction as AdamW sees it, `to = v / (sqrt(second_moment·factors[0]) + factors[1])`: `factors` `[2]` hold the
/// inverse of the correction of the second moment and epsilon, on the device, so that a recorded step finds its own. All
/// are 0 where `factors[0]` is: before AdamW's first step there is no second moment.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn precondition(
    to: &mut Buffer<f32>,
    v: &Buffer<f32>,
    second_moment: &Buffer<f32>,
    factors: &Buffer<f32>,
) -> Result<()> {
    let op = "precondition";
    to.expect_len(op, "the result", v.len())?;
    second_moment.expect_len(op, "the second moment", v.len())?;
    factors.expect_len(op, "factors", 2)?;
    if v.is_empty() {
        return Ok(());
    }
    let arguments =
        [to.write(), v.read(), second_moment.read(), factors.read(), Argument::U64(v.len() as u64)];
    launch(v.device(), &Kernel::of::<f32>(FILE, op), &each_launch::<f32>(op, 1, v.len())?, &arguments)
}

/// The sums of the columns of `matrix` `[P, S]`: `to` `[S]`. A column's order is that of its rows, whatever `S` is.
///
/// # Errors
/// If the sizes do not fit or the device fails.
pub fn totals(to: &mut Buffer<f32>, matrix: &Buffer<f32>) -> Result<()> {
    let columns = Columns { width: to.len(), first: 0 };
    column_sum(to, matrix, columns, false)
}
