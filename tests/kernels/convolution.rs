//! Convolutions on the tensor cores, against plain loops in f64.

use alchemist_engine::engine::{
    cuda::Device,
    ops::convolution::cuda::{DeviceFilters, FilterOrder, Maps, SplitFloat, Window, convolve, windows},
};
use half::{bf16, f16};

use crate::device::{Number, close, noise, rounded, test_devices, upload};

/// The number of a map at `(y, x)`, and 0 outside.
fn at(map: &[f64], side: usize, channels: usize, y: i64, x: i64, channel: usize) -> f64 {
    let inside = |place: i64| usize::try_from(place).ok().filter(|&place| place < side);
    match (inside(y), inside(x)) {
        (Some(y), Some(x)) => map[(y * side + x) * channels + channel],
        _ => 0.0,
    }
}

/// `[B, H, H, C]` as `[B, C, H, H]`.
fn planes(maps: &[f64], side: usize, channels: usize) -> Vec<f64> {
    let pixels = side * side;
    (0..maps.len())
        .map(|at| {
            let (sample, channel, pixel) = (at / pixels / channels, at / pixels % channels, at % pixels);
            maps[(sample * pixels + pixel) * channels + channel]
        })
        .collect()
}

struct Case {
    samples: usize,
    side: usize,
    inputs: usize,
    outputs: usize,
}

const CONVOLUTIONS: [Case; 5] = [
    Case { samples: 1, side: 1, inputs: 1, outputs: 1 },
    Case { samples: 2, side: 5, inputs: 3, outputs: 7 },
    Case { samples: 3, side: 4, inputs: 8, outputs: 33 },
    Case { samples: 1, side: 6, inputs: 40, outputs: 3 },
    Case { samples: 2, side: 7, inputs: 12, outputs: 5 },
];

/// What of a map the window of output pixel `(y, x)` sees at `(row, column)`, by the definitions of torch.nn.
fn seen(map: &[f64], case: &Case, window: Window, [y, x, row, column]: [usize; 4], channel: usize) -> f64 {
    let [y, x, row, column] = [y, x, row, column].map(|place| i64::try_from(place).unwrap());
    let (side, inputs) = (case.side, case.inputs);
    if window == Window::POINT {
        return at(map, side, inputs, y, x, channel);
    }
    if window == Window::HALVING {
        return at(map, side, inputs, 2 * y + row, 2 * x + column, channel);
    }
    let (y, x) = (y + row - 1, x + column - 1);
    let doubled = |place: i64| if window == Window::DOUBLING { place.div_euclid(2) } else { place };
    at(map, side, inputs, doubled(y), doubled(x), channel)
}

/// The parts of a number, added up: what the products see of it.
fn parts_of<P: SplitFloat + Number>(value: f64) -> Vec<f64> {
    let mut rest = value as f32;
    (0..P::PARTS)
        .map(|_| {
            let part = P::round(f64::from(rest)).wide();
            rest -= part as f32;
            part
        })
        .collect()
}

/// A convolution with parts of type `P` against sums in f64 over the numbers themselves, within `bound`.
fn convolution_case<P: SplitFloat + Number>(device: &Device, bound: f64) {
    let windows_of_3 = [Window::SAME, Window::HALVING, Window::DOUBLING];
    for (case, window) in CONVOLUTIONS
        .iter()
        .flat_map(|case| windows_of_3.into_iter().chain([Window::POINT]).map(move |window| (case, window)))
    {
        let Case { samples, side, inputs, outputs } = *case;
        let taps = if window == Window::POINT { 1 } else { 9 };
        let maps = rounded::<f32>(&noise(samples * side * side * inputs, 1));
        let share = 1.0 / ((taps * inputs) as f64).sqrt();
        let filters: Vec<f64> = noise(taps * inputs * outputs, 2).iter().map(|w| w * share).collect();
        let (filters, bias) = (rounded::<f32>(&filters), rounded::<f32>(&noise(outputs, 3)));
        let placed: Vec<f32> = filters.iter().map(|&value| value as f32).collect();
        let sizes = [taps, inputs, outputs];
        let turned: Vec<f32> = (0..outputs)
            .flat_map(|o| (0..inputs * taps).map(move |at| (at % taps * inputs + at / taps) * outputs + o))
            .map(|at| placed[at])
            .collect();
        let placed = DeviceFilters::<P>::new(device, &placed, FilterOrder::OutputsLast, sizes).unwrap();
        let turned = DeviceFilters::<P>::new(device, &turned, FilterOrder::OutputsFirst, sizes).unwrap();
        let (bias_of, values) = (upload::<f32>(device, &bias), upload::<f32>(device, &maps));
        let separate = upload::<f32>(device, &planes(&maps, side, inputs));
        let out = window.side(side);
        let (mut expected, mut rows) = (Vec::new(), Vec::new());
        for map in maps.chunks(side * side * inputs) {
            for (y, x) in (0..out).flat_map(|y| (0..out).map(move |x| (y, x))) {
                let mut sums = bias.clone();
                for (tap, channel) in (0..taps).flat_map(|tap| (0..inputs).map(move |c| (tap, c))) {
                    let value = seen(map, case, window, [y, x, tap / 3, tap % 3], channel);
                    rows.push(value);
                    for (output, sum) in sums.iter_mut().enumerate() {
                        *sum += value * filters[(tap * inputs + channel) * outputs + output];
                    }
                }
                expected.extend(sums);
            }
        }
        if expected.is_empty() {
            continue;
        }
        let mut y = device.uninitialized::<f32>(expected.len()).unwrap();
        for (values, planes) in [(&values, false), (&separate, true)] {
            let maps = Maps { values, side, channels: inputs, planes };
            expect_windows::<P>(&maps, window, &rows, taps * inputs);
            convolve(&mut y, &maps, &placed, &bias_of, window, false).unwrap();
            close::<f32>("a convolution", &y, &expected, bound);
            let bits = y.to_host().unwrap();
            convolve(&mut y, &maps, &turned, &bias_of, window, false).unwrap();
            assert_eq!(y.to_host().unwrap(), bits, "filters in PyTorch's order");
        }
        let maps = Maps { values: &values, side, channels: inputs, planes: false };
        convolve(&mut y, &maps, &placed, &bias_of, window, true).unwrap();
        let twice: Vec<f64> = expected.iter().map(|value| 2.0 * value).collect();
        close::<f32>("a convolution that is added", &y, &twice, 2.0 * bound);
    }
}

/// Windows hold the parts of what they see, exactly: two windows at a time, with zeros at the end of each part, and rows that
/// can be written 16 bytes at a time or not.
fn expect_windows<P: SplitFloat + Number>(maps: &Maps<'_>, window: Window, rows: &[f64], length: usize) {
    let pixels = rows.len() / length;
    for width in [length + 3, (length + 1).next_multiple_of(8)] {
        let mut found: Vec<P> = Vec::new();
        for first in (0..pixels).step_by(2) {
            let count = 2.min(pixels - first);
            let mut part = maps.values.device().uninitialized::<P>(count * P::PARTS * width).unwrap();
            windows(&mut part, maps, window, [first, count, width]).unwrap();
            found.extend(part.to_host().unwrap());
        }
        for (found, expected) in found.chunks(P::PARTS * width).zip(rows.chunks(length)) {
            for (at, found) in found.iter().enumerate() {
                let (part, at) = (at / width, at % width);
                let expected = expected.get(at).map_or(0.0, |&value| parts_of::<P>(value)[part]);
                assert!(found.wide() == expected, "{window:?}, part {part}, number {at}");
            }
        }
    }
}

#[test]
fn convolutions_match_plain_loops_as_in_f32() {
    for device in test_devices() {
        convolution_case::<f16>(&device, 2e-6);
        convolution_case::<bf16>(&device, 2e-6);
    }
}

/// Numbers from the smallest to the largest: of filters all sizes are alike, of maps f16 takes those up to 65504, and what is
/// larger does not pass unseen.
#[test]
fn convolutions_keep_to_f32_whatever_the_size_of_numbers() {
    const CASE: [usize; 3] = [1, 16, 8];
    let [_, inputs, outputs] = CASE;
    for device in test_devices() {
        let (maps, filters) = (noise(4 * inputs, 1), noise(inputs * outputs, 2));
        let bias = device.zeros::<f32>(outputs).unwrap();
        for (of_map, of_filters) in
            [(1.0, 1e-30), (1.0, 1e30), (1e4, 1e-3), (1e5, 1.0), (1e-20, 1.0), (1e30, 1e-5)]
        {
            let maps: Vec<f32> = maps.iter().map(|value| (value * of_map) as f32).collect();
            let filters: Vec<f32> = filters.iter().map(|value| (value * of_filters) as f32).collect();
            let product = |pixel: usize, output: usize| -> f64 {
                (0..inputs)
                    .map(|c| f64::from(maps[pixel * inputs + c]) * f64::from(filters[c * outputs + output]))
                    .sum()
            };
            let expected: Vec<f64> = (0..4)
                .flat_map(|pixel| (0..outputs).map(move |o| (pixel, o)))
                .map(|(p, o)| product(p, o))
                .collect();
            let values = device.upload(&maps).unwrap();
            let maps = Maps { values: &values, side: 2, channels: inputs, planes: false };
            // Zeros, as the library's products write by a way that compute-sanitizer's initcheck does not see.
            let mut y = device.zeros::<f32>(expected.len()).unwrap();
            let wide = DeviceFilters::<bf16>::new(&device, &filters, FilterOrder::OutputsLast, CASE).unwrap();
            convolve(&mut y, &maps, &wide, &bias, Window::POINT, false).unwrap();
            close::<f32>("a convolution in three parts", &y, &expected, 2e-6);
            let narrow =
                DeviceFilters::<f16>::new(&device, &filters, FilterOrder::OutputsLast, CASE).unwrap();
            convolve(&mut y, &maps, &narrow, &bias, Window::POINT, false).unwrap();
            if (1.0..=1e4).contains(&of_map) {
                close::<f32>("a convolution in two parts", &y, &expected, 2e-6);
            } else if of_map > 1.0 {
                assert!(
                    y.to_host().unwrap().iter().any(|value| !value.is_finite()),
                    "{of_map} passed unseen"
                );
            }
        }
    }
}
