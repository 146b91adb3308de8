//! Tensor maps for the Tensor Memory Accelerator (TMA).
#![expect(unsafe_code, reason = "the driver is called with raw pointers")]

use std::ffi::c_void;

use cudarc::driver::sys;

use super::Gpu;
use crate::{
    engine::cuda::driver::{ProductNumber, SampleMap, SampleRows},
    error::Result,
};

/// The first compute capability with TMA.
const HAS_COPY_UNIT: (u32, u32) = (9, 0);

impl Gpu {
    /// The TMA descriptor of rows of samples; `None` where the GPU has no TMA or the dtype is not supported.
    pub(super) fn describe_to_copy_unit(&self, rows: &SampleRows) -> Result<Option<SampleMap>> {
        use sys::CUtensorMapDataType_enum as Number;
        let number = match rows.number {
            ProductNumber::Bf16 => Number::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            ProductNumber::F16 => Number::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ProductNumber::F32 => return Ok(None),
        };
        if self.facts.capability < HAS_COPY_UNIT {
            return Ok(None);
        }
        // Innermost dimension first; it has no stride.
        let [samples, length, columns] = rows.sizes.map(|size| size as u64);
        let row_bytes = columns * rows.number.bytes() as u64;
        let (sizes, strides) = ([columns, length, samples], [row_bytes, row_bytes * length]);
        let [box_rows, box_columns] = rows.box_sizes;
        let (box_sizes, steps) = ([box_columns, box_rows, 1], [1u32; 3]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        self.with(format_args!("encoding the tensor map of {rows:?}"), || {
            // SAFETY: writes only the map, and reads three sizes, two strides, three box sizes and three steps; the
            // address is only stored.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    &raw mut map,
                    number,
                    3,
                    rows.address as *mut c_void,
                    sizes.as_ptr(),
                    strides.as_ptr(),
                    box_sizes.as_ptr(),
                    steps.as_ptr(),
                    sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            }
            .result()
        })?;
        Ok(Some(SampleMap(map.opaque)))
    }
}
