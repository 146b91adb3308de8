//! The update of all parameters in one launch, preceded by the norm of their gradients.

use alchemist_engine::{
    Result,
    engine::{
        cuda::Buffer,
        ops::adamw::{
            Factors,
            cuda::{AdamWTables, AdamWTensor, adamw},
        },
    },
};
use half::bf16;

use crate::{Bench, Floor};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    // As many elements as sixteen blocks of width 1024.
    let (count, len) = (measured.size(16, 2), measured.size(16 << 20, 5000));
    let device = measured.device.clone();
    let floats = |value: f32| -> Result<Vec<Buffer<f32>>> {
        (0..count).map(|_| device.upload(&vec![value; len])).collect()
    };
    let [mut values, mut first, mut second] = [floats(1.0)?, floats(0.0)?, floats(0.0)?];
    let gradients = floats(0.5)?;
    let mut copies = (0..count).map(|_| device.zeros::<bf16>(len)).collect::<Result<Vec<_>>>()?;
    let moments = first.iter_mut().zip(&mut second);
    let mut tensors: Vec<AdamWTensor<'_, bf16>> = values
        .iter_mut()
        .zip(&gradients)
        .zip(moments)
        .zip(&mut copies)
        .map(|(((value, gradient), (first, second)), copy)| AdamWTensor {
            value,
            gradient,
            first,
            second,
            copy: Some(copy),
            decays: true,
        })
        .collect();
    let mut tables = AdamWTables::new(&device, &tensors)?;
    tables.set(&Factors {
        inverse_scale: 1.0,
        most: Some(2.0),
        keep: 1.0 - 1e-4 * 0.05,
        rate: 1e-3,
        rest1: 0.1,
        beta2: 0.95,
        root2: 0.05f64.sqrt(),
        epsilon: 1e-8,
    })?;
    // The gradient is read twice; value and moments are read and written; the copy is written.
    let floor = Floor { bytes: count * len * (8 * size_of::<f32>() + size_of::<bf16>()), flop: 0 };
    bench.device("adamw", floor, || adamw(&mut tables, &mut tensors));
    Ok(())
}
