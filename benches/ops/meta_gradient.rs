//! Quantities of the gradient of each sample of a linear layer, beside the weight gradient alone by the vendor's library.

use alchemist_engine::{
    Result,
    engine::ops::meta_gradient::cuda::{Asked, ProductSizes, WeightedSum, gram, in_tile, projected},
};
use half::bf16;

use crate::{Bench, Floor, halves};

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
        // What every way reads; the gradient's matrix product is what the first two cannot do without.
        let flop = 2 * samples * rows * inputs * outputs;
        let floor = Floor { bytes: x.bytes() + d.bytes() + direction.bytes() + sum.bytes(), flop };
        let suffix = if name == 680 { String::new() } else { format!("_{name}") };
        bench.device(&format!("meta_gradient_in_tile{suffix}"), floor, || {
            let asked = Asked {
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
    Ok(())
}
