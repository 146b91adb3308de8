//! The VQ-VAE's convolutions on tensor cores, each f32 in two f16 parts: a layer in the middle of the released encoder.

use alchemist_engine::{
    Result,
    engine::ops::convolution::cuda::{DeviceFilters, FilterOrder, Maps, Window, convolve, windows},
};
use half::f16;

use crate::{Bench, Floor, floats};

/// Pixels per window, and parts per element.
const TAPS: usize = 9;
const PARTS: usize = 2;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, side) = (measured.size(16, 1), measured.size(64, 4));
    let (inputs, outputs) = (measured.size(320, 8), measured.size(320, 8));
    let device = measured.device.clone();
    let (pixels, width) = (batch * side * side, TAPS * inputs);
    let given = floats(width * outputs);
    let sizes = [TAPS, inputs, outputs];
    let filters = DeviceFilters::<f16>::new(&device, &given, FilterOrder::OutputsFirst, sizes)?;
    // The first part of the filters is stored for each part of a window, the second for the first alone.
    let placed = (PARTS + 1) * PARTS / 2 * width * outputs;
    let floor = Floor { bytes: given.len() * size_of::<f32>() + placed * size_of::<f16>(), flop: 0 };
    bench.device("convolution_filters", floor, || {
        DeviceFilters::<f16>::new(&device, &given, FilterOrder::OutputsFirst, sizes).map(drop)
    });

    let x = device.upload(&floats(pixels * inputs))?;
    let maps = Maps { values: &x, side, channels: inputs, planes: false };
    // Of one map, about as many as a convolution writes at once.
    let count = side * side;
    let mut rows = device.uninitialized::<f16>(count * PARTS * width)?;
    let floor = Floor { bytes: rows.bytes() + count * inputs * size_of::<f32>(), flop: 0 };
    bench.device("convolution_windows", floor, || windows(&mut rows, &maps, Window::SAME, [0, count, width]));

    let bias = device.upload(&floats(outputs))?;
    let mut y = device.uninitialized::<f32>(pixels * outputs)?;
    // Three products of parts make one in f32.
    let floor = Floor {
        bytes: x.bytes() + y.bytes() + placed * size_of::<f16>(),
        flop: (PARTS + 1) * PARTS / 2 * 2 * pixels * width * outputs,
    };
    bench.device("convolution", floor, || convolve(&mut y, &maps, &filters, &bias, Window::SAME, false));
    Ok(())
}
