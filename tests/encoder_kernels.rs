//! The kernels of the released encoders (convolutions, norms, softmax over keys) and products of parts of buffers, against
//! plain loops in f64, on the emulator and, where there is one, on a GPU.

mod device;

use alchemist_engine::engine::{
    cuda::{Buffer, Device, Operand, Products, Target},
    ops::{
        affine_norm::cuda::affine_norm,
        convolution::cuda::{FilterOrder, Filters, Maps, Part, Window, convolve, windows},
        group_norm::cuda::{GroupNorm, group_norm},
        softmax::cuda::{Scores, softmax},
    },
};
use device::{Number, close, noise, rounded, test_devices, upload};
use half::{bf16, f16};

/// The types that the encoders compute in.
macro_rules! in_both_types {
    ($case:ident) => {
        for device in test_devices() {
            $case::<f32>(&device);
            $case::<bf16>(&device);
        }
    };
}

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
fn parts_of<P: Part + Number>(value: f64) -> Vec<f64> {
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
fn convolution_case<P: Part + Number>(device: &Device, bound: f64) {
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
        let placed = Filters::<P>::new(device, &placed, FilterOrder::OutputsLast, sizes).unwrap();
        let turned = Filters::<P>::new(device, &turned, FilterOrder::OutputsFirst, sizes).unwrap();
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
        let mut y = device.uninitialised::<f32>(expected.len()).unwrap();
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
fn expect_windows<P: Part + Number>(maps: &Maps<'_>, window: Window, rows: &[f64], length: usize) {
    let pixels = rows.len() / length;
    for width in [length + 3, (length + 1).next_multiple_of(8)] {
        let mut found: Vec<P> = Vec::new();
        for first in (0..pixels).step_by(2) {
            let count = 2.min(pixels - first);
            let mut part = maps.values.device().uninitialised::<P>(count * P::PARTS * width).unwrap();
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
            let wide = Filters::<bf16>::new(&device, &filters, FilterOrder::OutputsLast, CASE).unwrap();
            convolve(&mut y, &maps, &wide, &bias, Window::POINT, false).unwrap();
            close::<f32>("a convolution in three parts", &y, &expected, 2e-6);
            let narrow = Filters::<f16>::new(&device, &filters, FilterOrder::OutputsLast, CASE).unwrap();
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

fn group_norm_case(device: &Device) {
    const EPSILON: f64 = 1e-6;
    // A mean far from 0 takes digits from a variance that is computed as a difference.
    for (samples, pixels, channels, groups, mean) in [
        (1, 1, 8, 1, 0.0),
        (1, 5, 12, 3, 0.0),
        (2, 9, 32, 32, 0.0),
        (2, 67, 160, 32, 3.0),
        (1, 130, 96, 32, -20.0),
        (1, 3, 1056, 32, 0.5),
    ] {
        let x: Vec<f64> = noise(samples * pixels * channels, 4).iter().map(|x| x + mean).collect();
        let x = rounded::<f32>(&x);
        let (scale, shift) = (rounded::<f32>(&noise(channels, 5)), rounded::<f32>(&noise(channels, 6)));
        let size = channels / groups;
        let mut plain = vec![0.0; x.len()];
        for (sample, (x, plain)) in
            x.chunks(pixels * channels).zip(plain.chunks_mut(pixels * channels)).enumerate()
        {
            for group in 0..groups {
                let places = (0..pixels).flat_map(|pixel| {
                    (group * size..(group + 1) * size).map(move |channel| pixel * channels + channel)
                });
                let count = (pixels * size) as f64;
                let mean = places.clone().map(|at| x[at]).sum::<f64>() / count;
                let variance = places.clone().map(|at| (x[at] - mean).powi(2)).sum::<f64>() / count;
                for at in places {
                    let normed = (x[at] - mean) / (variance + EPSILON).sqrt();
                    plain[at] = normed * scale[at % channels] + shift[at % channels];
                }
            }
            assert!(sample < samples);
        }
        let silu: Vec<f64> = plain.iter().map(|u| u / (1.0 + (-u).exp())).collect();
        let x = upload::<f32>(device, &x);
        let (scale, shift) = (upload::<f32>(device, &scale), upload::<f32>(device, &shift));
        for (with_silu, expected) in [(false, &plain), (true, &silu)] {
            let norm =
                GroupNorm { groups, scale: &scale, shift: &shift, epsilon: EPSILON as f32, silu: with_silu };
            let mut y = device.uninitialised::<f32>(x.len()).unwrap();
            group_norm(&mut y, &x, samples, &norm).unwrap();
            // What is subtracted has the rounding of the mean's size.
            let bound = f32::BOUND.max(f64::from(f32::EPSILON) * mean.abs() * 4.0);
            close::<f32>("a group norm", &y, expected, bound);
        }
    }
}

#[test]
fn group_norms_match_plain_loops() {
    test_devices().iter().for_each(group_norm_case);
}

#[test]
fn affine_norms_match_plain_loops() {
    const EPSILON: f64 = 1e-5;
    for device in test_devices() {
        for (rows, channels, mean) in [(1, 1, 0.5), (9, 37, 0.0), (3, 1024, 2.0)] {
            let x: Vec<f64> = noise(rows * channels, 13).iter().map(|x| x + mean).collect();
            let [x, weight, bias] =
                [x, noise(channels, 14), noise(channels, 15)].map(|values| rounded::<f32>(&values));
            let [placed, weight_of, bias_of] =
                [&x, &weight, &bias].map(|values| upload::<f32>(&device, values));
            for with_bias in [true, false] {
                let mut expected = x.clone();
                for row in expected.chunks_mut(channels) {
                    let count = channels as f64;
                    let mean = if with_bias { row.iter().sum::<f64>() / count } else { 0.0 };
                    let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                    for (at, value) in row.iter_mut().enumerate() {
                        let added = if with_bias { bias[at] } else { 0.0 };
                        *value = (*value - mean) / (square + EPSILON).sqrt() * weight[at] + added;
                    }
                }
                let mut y = device.uninitialised::<f32>(x.len()).unwrap();
                let bias = with_bias.then_some(&bias_of);
                affine_norm(&mut y, &placed, &weight_of, bias, EPSILON as f32).unwrap();
                close::<f32>("an affine norm", &y, &expected, f32::BOUND);
            }
        }
    }
}

struct Attending {
    sizes: [usize; 4],
    row: usize,
    biased: bool,
    masked: bool,
    causal: bool,
}

fn softmax_case(device: &Device) {
    for case in [
        Attending { sizes: [1, 1, 1, 1], row: 1, biased: false, masked: false, causal: false },
        Attending { sizes: [2, 1, 9, 9], row: 9, biased: false, masked: false, causal: false },
        Attending { sizes: [2, 3, 7, 7], row: 8, biased: true, masked: true, causal: false },
        Attending { sizes: [3, 2, 5, 5], row: 8, biased: false, masked: true, causal: true },
        Attending { sizes: [1, 2, 3, 70], row: 72, biased: true, masked: false, causal: false },
    ] {
        let Attending { sizes: [batch, heads, queries, keys], row, biased, masked, causal } = case;
        let rows = batch * heads * queries;
        let products: Vec<f64> = noise(rows * row, 7).iter().map(|x| 20.0 * x).collect();
        let (products, bias) = (rounded::<f32>(&products), rounded::<f32>(&noise(heads * queries * keys, 8)));
        // Of the first sample all keys are masked but the last, of the others every third.
        let mask: Vec<u32> = (0..batch * keys)
            .map(|at| u32::from(if at < keys { at == keys - 1 } else { at % 3 != 0 }))
            .collect();
        let scale = 0.25;
        let mut expected = vec![0.0; rows * keys];
        for (at, weights) in expected.chunks_mut(keys).enumerate() {
            let (sample, query) = (at / heads / queries, at % queries);
            let sees = |key: usize| (!causal || key <= query) && (!masked || mask[sample * keys + key] == 1);
            let of_bias = |key: usize| if biased { bias[at % (heads * queries) * keys + key] } else { 0.0 };
            let value = |key: usize| (products[at * row + key] * scale + of_bias(key)).exp();
            let sum: f64 = (0..keys).filter(|&key| sees(key)).map(value).sum();
            for (key, weight) in weights.iter_mut().enumerate().filter(|(key, _)| sees(*key)) {
                *weight = value(key) / sum;
            }
        }
        let products = upload::<f32>(device, &products);
        let (bias, mask) = (upload::<f32>(device, &bias), device.upload(&mask).unwrap());
        let scores = Scores {
            products: &products,
            sizes: case.sizes,
            row,
            scale: scale as f32,
            bias: biased.then_some(&bias),
            mask: masked.then_some(&mask),
            causal,
        };
        let mut weights = device.zeros::<f32>(rows * row).unwrap();
        softmax(&mut weights, &scores).unwrap();
        let found: Vec<f32> = weights.to_host().unwrap();
        let dense: Vec<f32> = found.chunks(row).flat_map(|row| &row[..keys]).copied().collect();
        for (found, expected) in dense.iter().zip(&expected) {
            assert!(*expected != 0.0 || found.wide() == 0.0, "a key that is not seen has a weight");
        }
        close::<f32>("a softmax", &device.upload(&dense).unwrap(), &expected, f32::BOUND);
    }
}

#[test]
fn softmaxes_match_plain_loops() {
    test_devices().iter().for_each(softmax_case);
}

/// Queries and keys side by side in wider rows, and results side by side: the products of attention's heads.
fn products_case<T: Number>(device: &Device) {
    let (tokens, heads, width) = (5, 3, 7);
    let channels = heads * width;
    let both = rounded::<T>(&noise(tokens * 2 * channels, 9));
    let held = rounded::<f32>(&noise(heads * tokens * 6, 10));
    let buffer = upload::<T>(device, &both);
    let mut scores = upload::<f32>(device, &held);
    let part = |first: usize| Operand { first, step: width, ..Operand::of(&buffer, 2 * channels) };
    let products = Products {
        sizes: [tokens, tokens, width],
        batch: heads,
        a: part(0),
        b: part(channels).transposed(),
        bias: None,
        alpha: 0.5,
        beta: 2.0,
    };
    let target = Target { buffer: &mut scores, first: 0, row: 6, step: tokens * 6 };
    device.products(target, &products).unwrap();
    let mut expected = held;
    for (head, query, key) in
        (0..heads * tokens * tokens).map(|at| (at / tokens / tokens, at / tokens % tokens, at % tokens))
    {
        let number = |token: usize, first: usize, at: usize| both[token * 2 * channels + first + at];
        let sum: f64 = (0..width)
            .map(|at| number(query, head * width, at) * number(key, channels + head * width, at))
            .sum();
        let to = &mut expected[(head * tokens + query) * 6 + key];
        *to = 2.0 * *to + 0.5 * sum;
    }
    close::<f32>("products of heads", &scores, &expected, 1e-5);

    let weights: Vec<f64> = noise(heads * tokens * tokens, 11);
    let weights = rounded::<T>(&weights);
    let placed = upload::<T>(device, &weights);
    let mut mixed = device.uninitialised::<T>(tokens * channels).unwrap();
    let products = Products {
        sizes: [tokens, width, tokens],
        batch: heads,
        a: Operand { step: tokens * tokens, ..Operand::of(&placed, tokens) },
        b: part(channels),
        bias: None,
        alpha: 1.0,
        beta: 0.0,
    };
    let target = Target { buffer: &mut mixed, first: 0, row: channels, step: width };
    device.products(target, &products).unwrap();
    let expected: Vec<f64> = (0..tokens * channels)
        .map(|at| {
            let (query, channel) = (at / channels, at % channels);
            let weight = |key: usize| weights[(channel / width * tokens + query) * tokens + key];
            (0..tokens).map(|key| weight(key) * both[key * 2 * channels + channels + channel]).sum()
        })
        .collect();
    close::<T>("heads side by side", &mixed, &expected, T::BOUND);
}

#[test]
fn products_of_parts_match_plain_loops() {
    in_both_types!(products_case);
}

#[test]
fn products_that_do_not_fit_are_refused() {
    let device = test_devices().remove(0);
    let buffer = upload::<f32>(&device, &noise(24, 12));
    let refused = |a: Operand<'_, f32>, [first, row, step]: [usize; 3]| {
        let mut c: Buffer<f32> = device.zeros(24).unwrap();
        let b = Operand::of(&buffer, 3);
        let products = Products { sizes: [2, 3, 4], batch: 2, a, b, bias: None, alpha: 1.0, beta: 0.0 };
        device.products(Target { buffer: &mut c, first, row, step }, &products).err().map(|e| e.to_string())
    };
    let whole = Operand { step: 8, ..Operand::of(&buffer, 4) };
    assert_eq!(refused(whole, [0, 3, 6]), None);
    assert_eq!(refused(whole, [0, 6, 3]), None, "side by side");
    for (what, a, to) in [
        ("A ends beyond its buffer", Operand { first: 9, ..whole }, [0, 3, 6]),
        ("A's second matrix does", Operand { step: 17, ..whole }, [0, 3, 6]),
        ("A's rows overlap", Operand { row: 3, ..whole }, [0, 3, 6]),
        ("the address overflows", Operand { step: usize::MAX, ..whole }, [0, 3, 6]),
        ("C ends beyond its buffer", whole, [13, 3, 6]),
        ("the results overlap", whole, [0, 3, 5]),
        ("the results overlap in their rows", whole, [0, 5, 3]),
    ] {
        let message = refused(a, to).unwrap_or_default();
        assert!(message.contains("2 products of the sizes [2, 3, 4]"), "{what}: {message}");
    }
}
