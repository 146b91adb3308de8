//! Sizes of launches.

use super::{DeviceNumber, Launch};
use crate::error::{Error, Result};

/// A size as kernels take it.
pub(crate) fn size(op: &'static str, what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(op, format!("{value} {what} are too many for a kernel")))
}

/// Blocks that cover `count` things, `each` a block.
pub(crate) fn blocks(op: &'static str, count: usize, each: usize) -> Result<u32> {
    size(op, "blocks", count.div_ceil(each))
}

/// Threads a block of the kernels of `kernels/elementwise.cuh`.
const EACH_THREADS: u32 = 256;

/// The launch of a kernel of `kernels/elementwise.cuh` over `samples` of `share` numbers.
pub(crate) fn each_launch<T: DeviceNumber>(op: &'static str, samples: usize, share: usize) -> Result<Launch> {
    let each = EACH_THREADS as usize * 16 / size_of::<T>();
    let grid = [blocks(op, share, each)?, size(op, "samples", samples)?, 1];
    Ok(Launch { grid, block: [EACH_THREADS, 1, 1], shared_bytes: 0 })
}

/// Numbers of each of `samples` equal parts of `count` numbers.
pub(crate) fn share_of(op: &'static str, count: usize, samples: usize) -> Result<usize> {
    if samples == 0 || !count.is_multiple_of(samples) {
        return Err(Error::shape(op, format!("{count} numbers do not make {samples} equal samples")));
    }
    Ok(count / samples)
}
