//! The quantiser's tables on a device.

use super::PyramidQuantizer;
use crate::{
    engine::{
        cuda::Device,
        ops::pyramid::cuda::{PyramidConvolution, PyramidSource, PyramidTables},
    },
    error::Result,
};

impl PyramidQuantizer {
    /// What the device's kernels need of this quantiser, for batches of up to `most_samples`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn on_device(&self, device: &Device, most_samples: usize) -> Result<PyramidTables> {
        let convolutions = self
            .convolutions
            .iter()
            .map(|convolution| PyramidConvolution {
                weight: convolution.weight(),
                bias: convolution.bias(),
                ratio: convolution.ratio(),
            })
            .collect();
        let resized = self.scales.iter().filter_map(|scale| scale.up.as_ref());
        let source = PyramidSource {
            patch_nums: &self.patch_nums,
            codebook: self.codebook.as_slice()?,
            channels: self.channels(),
            taps: resized.flat_map(|up| up.taps().iter().copied()).collect(),
            convolutions,
            phi_index: &self.phi_index,
        };
        PyramidTables::new(device, &source, most_samples)
    }
}
