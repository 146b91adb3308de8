//! The update of all parameters in one launch, the norm of their gradients before it.

use alchemist_engine::{
    Result,
    engine::ops::adamw::cuda::{AdamWStep, AdamWTensor, AdamWTensors, adamw_norm, adamw_update},
};
use half::bf16;

use crate::{Bench, Floor};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    // A block's matrices at width 1024, sixteen times.
    let (tensors, len) = (measured.size(16, 2), measured.size(16 << 20, 5000));
    let device = measured.device.clone();
    let tensor = || -> Result<AdamWTensor<bf16>> {
        Ok(AdamWTensor {
            value: device.zeros(len)?,
            gradient: device.upload(&vec![0.5; len])?,
            first: device.zeros(len)?,
            second: device.zeros(len)?,
            copy: Some(device.zeros(len)?),
            decays: true,
        })
    };
    let tensors = (0..tensors).map(|_| tensor()).collect::<Result<Vec<_>>>()?;
    let numbers = tensors.len() * len;
    let mut tensors = AdamWTensors::new(&device, tensors)?;
    let norm = Floor { bytes: numbers * size_of::<f32>(), flop: 0 };
    bench.device("adamw_norm", norm, || adamw_norm(&mut tensors, Some(2.0)));
    let step = AdamWStep {
        learning_rate: 1e-4,
        weight_decay: 0.05,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        step: 1,
    };
    // The gradient is read; value and moments are read and written; the copy is written.
    let update = Floor { bytes: numbers * (7 * size_of::<f32>() + size_of::<bf16>()), flop: 0 };
    bench.device("adamw_update", update, || adamw_update(&mut tensors, &step));
    Ok(())
}
