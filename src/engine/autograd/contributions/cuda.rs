//! Launchers for `kernels/contributions.cu`: reductions of parameter gradients and elementwise arithmetic.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::cuda::{
        Argument, Buffer, Device, Kernel, Launch,
        device::Factor,
        launches::{blocks, each_launch, share_of, size},
    },
    error::{Error, Result},
};

const FILE: &str = "contributions";
const RESIDUAL: &str = "residual";
const THREADS: u32 = 256;
/// Columns per block of a reduction.
const COLUMNS: usize = 32;
/// Rows that one block adds in the first stage of a reduction.
const ROWS_PER_PART: usize = 512;

fn launch(device: &Device, kernel: &Kernel, launch: &Launch, arguments: &[Argument]) -> Result<()> {
    // SAFETY: only functions of this file call this: each passes its kernel's arguments in order, has compared the
    // sizes of all buffers with those that it passes to the kernel, borrows mutably what is written, and buffers are
    // freed in stream order.
    unsafe { device.launch(kernel, launch, arguments) }
}

/// The columns of a matrix that a sum runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements per row of the matrix.
    pub width: usize,
    /// The first column of the sum.
    pub first: usize,
}

/// Sums columns of `d` `[R, width]` over the rows, `sums.len()` of them starting at `columns.first`: the gradient of a
/// bias. With `accumulate` the sums are added to `sums`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn column_sum<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    accumulate: bool,
) -> Result<()> {
    let (count, Columns { width, first }) = (sums.len(), columns);
    if count == 0 || d.is_empty() || first + count > width || !d.len().is_multiple_of(width) {
        return Err(Error::shape(
            "column_sum",
            format!("{} elements are not rows of {width} with {count} columns from {first}", d.len()),
        ));
    }
    let rows = d.len() / width;
    if rows <= ROWS_PER_PART {
        return sum_parts(sums, d, columns, rows, 1, accumulate);
    }
    let parts = rows.div_ceil(ROWS_PER_PART);
    let mut partial = d.device().uninitialized(parts * count)?;
    sum_parts(&mut partial, d, columns, rows, parts, false)?;
    sum_parts(sums, &partial, Columns { width: count, first: 0 }, parts, 1, accumulate)
}

fn sum_parts<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    rows: usize,
    parts: usize,
    accumulate: bool,
) -> Result<()> {
    let op = "column_sum";
    let count = sums.len() / parts;
    let grid = [blocks(op, count, COLUMNS)?, size(op, "parts", parts)?, 1];
    let arguments = [
        sums.write(),
        d.read(),
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "columns", count)?),
        Argument::U32(size(op, "columns", columns.width)?),
        Argument::U32(size(op, "columns", columns.first)?),
        Argument::U32(size(op, "rows", rows.div_ceil(parts))?),
        Argument::U32(u32::from(accumulate)),
    ];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    launch(d.device(), &Kernel::of::<T>(FILE, op), &shape, &arguments)
}

/// [`column_sum`] over the rows of each of `samples` samples: `sums` `[S, N]`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub(crate) fn sample_sums<T: Factor>(
    sums: &mut Buffer<f32>,
    d: &Buffer<T>,
    columns: Columns,
    samples: usize,
) -> Result<()> {
    let op = "sample_column_sums";
    let (count, Columns { width, first }) = (share_of(op, sums.len(), samples)?, columns);
    let rows = d.len() / width.max(1);
    if count == 0 || rows == 0 || first + count > width || d.len() != rows * width {
        return Err(Error::shape(
            op,
            format!("{} elements are not rows of {width} with {count} columns from {first}", d.len()),
        ));
    }
    share_of(op, rows, samples)?;
    sum_parts(sums, d, columns, rows, samples, false)
}

/// Maps the rows of a table to the tokens they were added to; the same for every sample.
#[derive(Debug)]
pub struct GatherIndex {
    tokens: usize,
    /// Tokens grouped by table row.
    order: Buffer<u32>,
    /// Offset of each row's tokens in `order`, followed by the total.
    starts: Buffer<u32>,
}

impl GatherIndex {
    /// Inverts `index`, which holds the table row of each token of a sample (`u32::MAX`: none), for a table of `rows`
    /// rows.
    ///
    /// # Errors
    /// If an index is out of range, or there is not enough memory.
    pub fn new(device: &Device, index: &[u32], rows: usize) -> Result<Self> {
        let op = "gather_sum";
        let mut lists = vec![Vec::new(); rows];
        for (token, &row) in index.iter().enumerate() {
            if row != u32::MAX {
                let list = lists.get_mut(row as usize).ok_or_else(|| {
                    Error::shape(op, format!("token {token} has row {row} of a table of {rows} rows"))
                })?;
                list.push(size(op, "tokens", token)?);
            }
        }
        let mut starts = vec![0u32];
        for list in &lists {
            starts.push(starts[starts.len() - 1] + size(op, "tokens", list.len())?);
        }
        Ok(Self {
            tokens: index.len(),
            order: device.upload(&lists.concat())?,
            starts: device.upload(&starts)?,
        })
    }

    /// Tokens per sample.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Kernel arguments: `starts`, then `order`.
    pub(crate) fn read(&self) -> [Argument; 2] {
        [self.starts.read(), self.order.read()]
    }
}

/// Adds to each row of `table` `[K, N]` the rows of `d` `[B, tokens, N]` that used it: the gradient of a table lookup.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn gather_sum<T: Factor>(table: &mut Buffer<f32>, d: &Buffer<T>, index: &GatherIndex) -> Result<()> {
    let op = "gather_sum";
    let columns = share_of(op, table.len(), index.rows())?;
    let sample = index.tokens * columns;
    if sample == 0 || !d.len().is_multiple_of(sample) {
        return Err(Error::shape(
            op,
            format!("{} elements are not samples of {} rows of {columns}", d.len(), index.tokens),
        ));
    }
    if d.is_empty() {
        return Ok(());
    }
    let grid = [blocks(op, columns, COLUMNS)?, size(op, "rows", index.rows())?, 1];
    let arguments = [
        table.write(),
        d.read(),
        index.starts.read(),
        index.order.read(),
        Argument::U32(size(op, "samples", d.len() / sample)?),
        Argument::U32(size(op, "tokens", index.tokens)?),
        Argument::U32(size(op, "columns", columns)?),
    ];
    let shape = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    launch(d.device(), &Kernel::of::<T>(FILE, op), &shape, &arguments)
}

/// Sums `weights_i·d_i` over samples (no weights: 1), for the first `sum.len()` elements of each sample of `d`; samples
/// are `stride` elements long. Output in f32, or in the dtype of `d`. With `accumulate` the result is added to `sum`.
///
/// # Errors
/// If the sizes do not match, `d` and `sum` have different dtypes and neither is f32, or the device fails.
pub fn sum_samples<O: Factor, T: Factor>(
    sum: &mut Buffer<O>,
    d: &Buffer<T>,
    weights: Option<&Buffer<f32>>,
    stride: usize,
    accumulate: bool,
) -> Result<()> {
    let op = "sum_samples";
    if stride == 0 || sum.len() > stride || !d.len().is_multiple_of(stride) {
        return Err(Error::shape(
            op,
            format!("{} of {} elements in samples of {stride}", sum.len(), d.len()),
        ));
    }
    let samples = d.len() / stride;
    if let Some(weights) = weights {
        weights.expect_len(op, "weights", samples)?;
    }
    if sum.is_empty() || (samples == 0 && accumulate) {
        return Ok(());
    }
    let arguments = [
        sum.write(),
        d.read(),
        weights.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::U64(sum.len() as u64),
        Argument::U64(stride as u64),
        Argument::U32(size(op, "samples", samples)?),
        Argument::U32(u32::from(accumulate)),
    ];
    let shape = Launch::linear(blocks(op, sum.len(), 4 * THREADS as usize)?, THREADS);
    let kernel = Kernel::new(FILE, &format!("sum_samples_{}_to_{}", T::SUFFIX, O::SUFFIX));
    launch(d.device(), &kernel, &shape, &arguments)
}

/// `y_i = weights_i·x_i` for each sample `i`: `y`, `x` `[B, ..]`, `weights` `[B]` (one weight: a scalar times a
/// vector). Without `x`, in place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn scale_samples<T: Factor>(
    y: &mut Buffer<T>,
    x: Option<&Buffer<T>>,
    weights: &Buffer<f32>,
) -> Result<()> {
    scaled(y, x, Some(weights), 1.0)
}

/// `y = factor·x`. Without `x`, in place.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn scale<T: Factor>(y: &mut Buffer<T>, x: Option<&Buffer<T>>, factor: f32) -> Result<()> {
    scaled(y, x, None, factor)
}

fn scaled<T: Factor>(
    y: &mut Buffer<T>,
    x: Option<&Buffer<T>>,
    weights: Option<&Buffer<f32>>,
    factor: f32,
) -> Result<()> {
    let op = "scale";
    if let Some(x) = x {
        x.expect_len(op, "x", y.len())?;
    }
    let samples = weights.map_or(1, Buffer::len);
    let share = share_of(op, y.len(), samples)?;
    if y.is_empty() {
        return Ok(());
    }
    let arguments = [
        y.write(),
        x.map_or_else(|| y.read(), Buffer::read),
        weights.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::F32(factor),
        Argument::U64(share as u64),
    ];
    launch(y.device(), &Kernel::of::<T>(FILE, op), &each_launch::<T>(op, samples, share)?, &arguments)
}

/// `y += factor·x`, into f32.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn add_scaled<T: Factor>(y: &mut Buffer<f32>, x: &Buffer<T>, factor: f32) -> Result<()> {
    let op = "add_scaled";
    y.expect_len(op, "the sum", x.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let arguments = [y.write(), x.read(), Argument::F32(factor), Argument::U64(x.len() as u64)];
    let shape = Launch::linear(blocks(op, x.len(), 4 * THREADS as usize)?, THREADS);
    launch(x.device(), &Kernel::of::<T>(FILE, op), &shape, &arguments)
}

/// Fills `y` with `value`.
///
/// # Errors
/// If the device fails.
pub fn fill<T: Factor>(y: &mut Buffer<T>, value: f32) -> Result<()> {
    let op = "fill";
    if y.is_empty() {
        return Ok(());
    }
    let arguments = [y.write(), Argument::F32(value), Argument::U64(y.len() as u64)];
    launch(y.device(), &Kernel::of::<T>(FILE, op), &each_launch::<T>(op, 1, y.len())?, &arguments)
}

/// `y = x + keep_i·branch` for sample `i`; `y`, `x`, `branch` `[B, ..]`, `keep` `[B]` (`None`: 1). Without `x`, in
/// place. Where `keep_i = 0`, the contents of the branch do not matter.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn residual_forward<T: Factor>(
    y: &mut Buffer<T>,
    x: Option<&Buffer<T>>,
    branch: &Buffer<T>,
    keep: Option<&Buffer<f32>>,
) -> Result<()> {
    let samples = keep.map_or(1, Buffer::len);
    let share = share_of(RESIDUAL, branch.len(), samples)?;
    y.expect_len(RESIDUAL, "the result", branch.len())?;
    if let Some(x) = x {
        x.expect_len(RESIDUAL, "x", branch.len())?;
    }
    if branch.is_empty() {
        return Ok(());
    }
    let arguments = [
        y.write(),
        x.map_or_else(|| y.read(), Buffer::read),
        branch.read(),
        keep.map_or(Argument::null::<f32>(), Buffer::read),
        Argument::U64(share as u64),
    ];
    let launch = each_launch::<T>(RESIDUAL, samples, share)?;
    // SAFETY: arguments in the kernel's order; y is borrowed mutably, and each element of it is read only by the thread
    // that writes it; the sizes were compared above; all buffers live, and are freed in stream order.
    unsafe { branch.device().launch(&Kernel::of::<T>(RESIDUAL, "residual_forward"), &launch, &arguments) }
}
