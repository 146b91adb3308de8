//! Grid sizes.

use super::{DeviceNumber, Launch};
use crate::error::{Error, Result};

/// Converts a size to the `u32` that kernels take.
pub(crate) fn size(op: &'static str, what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(op, format!("{value} {what}: too many for a kernel")))
}

/// Number of blocks that cover `count` items, `each` per block.
pub(crate) fn blocks(op: &'static str, count: usize, each: usize) -> Result<u32> {
    size(op, "blocks", count.div_ceil(each))
}

/// Threads per block of the kernels that use `kernels/elementwise.cuh`.
const EACH_THREADS: u32 = 256;

/// The launch of a kernel that uses `kernels/elementwise.cuh`, over `samples` samples of `share` elements.
pub(crate) fn each_launch<T: DeviceNumber>(op: &'static str, samples: usize, share: usize) -> Result<Launch> {
    let each = EACH_THREADS as usize * 16 / size_of::<T>();
    let grid = [blocks(op, share, each)?, size(op, "samples", samples)?, 1];
    Ok(Launch { grid, block: [EACH_THREADS, 1, 1], shared_bytes: 0 })
}

/// Elements per sample, where `count` elements are divided equally between `samples`.
pub(crate) fn share_of(op: &'static str, count: usize, samples: usize) -> Result<usize> {
    if samples == 0 || !count.is_multiple_of(samples) {
        return Err(Error::shape(op, format!("{count} elements do not divide into {samples} equal samples")));
    }
    Ok(count / samples)
}
