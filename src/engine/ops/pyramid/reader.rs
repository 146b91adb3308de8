//! The quantizer on a device.

use std::sync::{Arc, Mutex, PoisonError};

use super::{PyramidQuantizer, Reach};
use crate::{
    engine::{
        DType, Tensor,
        cuda::Device,
        dispatch::with_number,
        ops::pyramid::cuda::{PyramidConvolution, PyramidRows, PyramidSource, PyramidTables, pyramid_input},
    },
    error::Result,
};

impl PyramidQuantizer {
    /// The kernels' tables for this quantizer, for batches of up to `most_samples`.
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

/// Computes the networks' input from codes on a device. Clones share the tables.
#[derive(Clone, Debug)]
pub struct CodeReader {
    tables: Arc<Mutex<PyramidTables>>,
    channels: usize,
}

impl CodeReader {
    /// Builds the reader for batches of up to `most_samples`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(quantizer: &PyramidQuantizer, device: &Device, most_samples: usize) -> Result<Self> {
        let tables = Arc::new(Mutex::new(quantizer.on_device(device, most_samples)?));
        Ok(Self { tables, channels: quantizer.channels() })
    }

    /// Codes `[B, L]` to the input `[B, L, Cvae]` in this dtype: that of [`PyramidQuantizer::input_reaching`], after
    /// rows of zeros for the first scale.
    ///
    /// # Errors
    /// If the codes are on another device or exceed `most_samples`, or the device fails.
    pub fn input(&self, codes: &Tensor, dtype: DType, reach: Reach) -> Result<Tensor> {
        let from = codes.buffer::<u32>()?;
        let shape = [codes.shape(), &[self.channels]].concat();
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        with_number!(dtype, "pyramid", T => Tensor::written::<T>(from.device(), &shape, |rows| {
            let through = reach == Reach::Through;
            pyramid_input(PyramidRows { wide: None, rows: Some(rows), padded: true, through }, from, &mut tables)
        }))
    }
}
