//! Softmax over the keys of a text encoder's attention, with a bias and a mask, in f32.

use alchemist_engine::{
    Result,
    engine::ops::softmax::cuda::{Scores, softmax},
};

use crate::{Bench, Floor, floats};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, heads, tokens) = (measured.size(64, 2), measured.size(16, 3), measured.size(77, 5));
    let device = measured.device.clone();
    // Rows of the products are aligned to 16 bytes.
    let row = tokens.next_multiple_of(4);
    let products = device.upload(&floats(batch * heads * tokens * row))?;
    let bias = device.upload(&floats(heads * tokens * tokens))?;
    let mask = device.upload(&vec![1u32; batch * tokens])?;
    let scores = Scores {
        products: &products,
        sizes: [batch, heads, tokens, tokens],
        row,
        scale: 0.125,
        bias: Some(&bias),
        mask: Some(&mask),
        causal: false,
    };
    let mut weights = device.zeros::<f32>(products.len())?;
    let floor = Floor { bytes: 2 * products.bytes() + bias.bytes() + mask.bytes(), flop: 0 };
    bench.device("softmax", floor, || softmax(&mut weights, &scores));
    Ok(())
}
