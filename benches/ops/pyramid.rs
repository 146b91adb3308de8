//! The pyramid quantizer: codes to the networks' input rows, and features to codes with an f32 search of the codebook.

use alchemist_engine::{
    Result,
    engine::ops::pyramid::{
        PyramidQuantizer,
        cpu::resample::ResidualConvolution,
        cuda::{PyramidRows, pyramid_input, pyramid_quantize},
    },
};
use half::bf16;

use crate::{Bench, Floor, floats, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let patch_nums: &[usize] =
        if measured.rehearsal { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    let (batch, channels, codes) = (measured.size(64, 2), measured.size(32, 8), measured.size(4096, 100));
    let device = measured.device.clone();
    let convolutions = (0..4)
        .map(|at| {
            let weight = normal(&[channels, channels, 3, 3], 40 + at);
            ResidualConvolution::new(&weight, &normal(&[channels], 50 + at), 0.5)
        })
        .collect::<Result<Vec<_>>>()?;
    let quantizer = PyramidQuantizer::new(patch_nums, &normal(&[codes, channels], 60), convolutions)?;
    let mut tables = quantizer.on_device(&device, batch)?;
    let (tokens, side) = (quantizer.tokens(), quantizer.side());
    let given: Vec<u32> =
        (0..batch * tokens).map(|at| u32::try_from(at * 7919 % codes).unwrap_or(0)).collect();
    let mut given = device.upload(&given)?;
    let mut rows = device.uninitialized::<bf16>(batch * tokens * channels)?;
    let floor = Floor { bytes: given.bytes() + rows.bytes(), flop: 0 };
    bench.device("pyramid_input", floor, || {
        let output = PyramidRows { wide: None, rows: Some(&mut rows), padded: true, through: false };
        pyramid_input(output, &given, &mut tables)
    });
    let features = device.upload(&floats(batch * channels * side * side))?;
    // The search is in f32, without tensor cores: its operations are not counted.
    let floor = Floor { bytes: features.bytes() + given.bytes(), flop: 0 };
    bench.device("pyramid_quantize", floor, || pyramid_quantize(&mut given, &features, &mut tables));
    Ok(())
}
