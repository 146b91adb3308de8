//! Sums over the rows of each sample, and preconditioning of a direction.

use super::{COLUMNS, FILE, THREADS, launch};
use crate::{
    engine::{
        autograd::contributions::cuda::{Columns, GatherIndex, column_sum, sample_sums},
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, each_launch, share_of, size},
    },
    error::Result,
};

/// Per-sample sums over the rows of columns of `d` `[S·T, width]`: `sums` `[S, N]`, `N` columns from
/// `columns.first`; the per-sample gradient of a bias.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn sample_column_sums<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    samples: usize,
) -> Result<()> {
    sample_sums(sums, d, columns, samples)
}

/// Per-sample gradient of a table: `tables` `[S, K, N]` from `d` `[S, tokens, N]`; row `k` is the sum of
/// the rows that it was added to.
///
/// # Errors
/// If the sizes do not match or the device fails.
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

/// Preconditions a direction with AdamW's state, `to = v / (sqrt(second_moment·factors[0]) + factors[1])`: `factors`
/// `[2]` hold the inverse bias correction of the second moment and epsilon, on the device, so that a captured step
/// reads current values. The result is 0 where `factors[0]` is: before AdamW's first step there is no second moment.
///
/// # Errors
/// If the sizes do not match or the device fails.
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

/// Column sums of `matrix` `[P, S]`: `to` `[S]`. The order of a column's sum does not depend on `S`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn totals(to: &mut Buffer<f32>, matrix: &Buffer<f32>) -> Result<()> {
    let columns = Columns { width: to.len(), first: 0 };
    column_sum(to, matrix, columns, false)
}
