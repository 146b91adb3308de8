//! Quantities of a linear layer's per-sample gradients, compared with the weight gradient alone by cuBLASLt.

use alchemist_engine::{
    Result,
    engine::{
        autograd::contributions::cuda::GatherIndex,
        ops::meta_gradient::cuda::{
            DeviceRequest, ProductSizes, WeightedSum, gram, in_tile, per_sample, precondition, projected,
            sample_gather_sums,
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, floats, halves};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let device = measured.device.clone();
    let [samples, outputs, inputs] =
        [(64, 3), (3072, 48), (1024, 16)].map(|(real, tiny)| measured.size(real, tiny));
    let rows_of = [(680, 20), (77, 5), (1, 1)].map(|(real, tiny)| (real, measured.size(real, tiny)));
    let direction = device.upload(&vec![0.5f32; outputs * inputs])?;
    let weights = device.upload(&vec![0.25f32; samples])?;
    let mut sum = device.zeros::<f32>(outputs * inputs)?;
    let [mut products, mut squared_norms] = [device.zeros::<f32>(samples)?, device.zeros::<f32>(samples)?];
    for (name, rows) in rows_of {
        let sizes = ProductSizes { samples, rows, outputs, inputs };
        let x = device.upload(&halves(samples * rows * inputs))?;
        let d = device.upload(&halves(samples * rows * outputs))?;
        // What every way reads; the first two also compute the gradient's matrix product.
        let flop = 2 * samples * rows * inputs * outputs;
        let floor = Floor { bytes: x.bytes() + d.bytes() + direction.bytes() + sum.bytes(), flop };
        let suffix = if name == 680 { String::new() } else { format!("_{name}") };
        bench.device(&format!("meta_gradient_in_tile{suffix}"), floor, || {
            let asked = DeviceRequest {
                direction: Some(&direction),
                products: Some(&mut products),
                squared_norms: Some(&mut squared_norms),
                sum: Some(WeightedSum { sum: &mut sum, weights: &weights, accumulate: true }),
            };
            in_tile::<bf16>(asked, &x, &d, sizes)
        });
        bench.device(&format!("meta_gradient_weight_gradient{suffix}"), floor, || {
            let product = [outputs, inputs, samples * rows];
            device.product(&mut sum, product, (&d, true), (&x, false), None, 1.0, 1.0)
        });
        bench.device(&format!("meta_gradient_projected{suffix}"), floor, || {
            projected::<bf16>(&mut products, &direction, &x, &d, sizes)
        });
        let flop = samples * rows * rows * (inputs + outputs);
        let floor = Floor { bytes: x.bytes() + d.bytes(), flop };
        bench.device(&format!("meta_gradient_gram{suffix}"), floor, || {
            gram::<bf16>(&mut squared_norms, &x, &d, sizes)
        });
    }
    other_parameters(bench)
}

/// Parameters other than matrices: a table of levels, available per-sample gradients, a preconditioned direction.
fn other_parameters(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let device = measured.device.clone();
    let (samples, channels) = (measured.size(64, 3), measured.size(1024, 16));
    let (levels, count) = (measured.size(10, 3), measured.size(3072 * 1024, 48 * 16));
    // Levels with equal numbers of tokens.
    let index: Vec<u32> =
        (0..measured.size(680, 15)).map(|token| u32::try_from(token % levels).unwrap_or(u32::MAX)).collect();
    let index = GatherIndex::new(&device, &index, levels)?;
    let d = device.upload(&halves(samples * index.tokens() * channels))?;
    let mut tables = device.zeros::<f32>(samples * levels * channels)?;
    let floor = Floor { bytes: d.bytes() + tables.bytes(), flop: 0 };
    bench.device("meta_gradient_gather_samples", floor, || {
        sample_gather_sums(&mut tables, &d, &index, samples)
    });
    let direction = device.upload(&floats(levels * channels))?;
    let [mut products, mut squared_norms] = [device.zeros::<f32>(samples)?, device.zeros::<f32>(samples)?];
    let floor = Floor { bytes: tables.bytes() + direction.bytes(), flop: 0 };
    bench.device("meta_gradient_dot_samples", floor, || {
        let asked = DeviceRequest {
            direction: Some(&direction),
            products: Some(&mut products),
            squared_norms: Some(&mut squared_norms),
            sum: None,
        };
        per_sample(asked, &tables)
    });
    let (v, second_moment) = (device.upload(&floats(count))?, device.upload(&vec![0.5f32; count])?);
    let factors = device.upload(&[1.0f32, 1e-8])?;
    let mut to = device.uninitialized::<f32>(count)?;
    let floor = Floor { bytes: 3 * v.bytes(), flop: 0 };
    bench.device("meta_gradient_precondition", floor, || precondition(&mut to, &v, &second_moment, &factors));
    Ok(())
}
