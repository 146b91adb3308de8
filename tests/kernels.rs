//! Every kernel against plain loops in f64, on the emulator and, where there is one, on a GPU.
//!
//! Inputs are rounded to the kernel's type before the reference sees them. Bounds are relative to the root mean square of
//! the reference: f32 1e-5, bf16 2e-2, f16 3e-3. `ALCHEMIST_REQUIRE_GPU=1` makes a machine without a GPU an error.

#[macro_use]
mod device;

use alchemist_engine::engine::{
    autograd::contributions::cuda::Columns,
    cuda::{Buffer, Device},
    ops::{
        adamw::{
            Factors,
            cuda::{AdamWTables, AdamWTensor},
        },
        cross_entropy::cuda::CrossEntropyOutput,
        layer_norm::cuda::{LayerNormInput, ModulationRows},
    },
};
use device::{Number, close, noise, rounded, test_devices, upload};
use half::{bf16, f16};

/// All launchers.
mod kernels {
    pub(crate) use alchemist_engine::engine::{
        autograd::contributions::cuda::*,
        ops::{
            adamw::cuda::*, cast::cuda::*, cross_entropy::cuda::*, layer_norm::cuda::*,
            modulation::cuda::modulation_backward,
        },
    };
}

#[test]
fn casts_round_to_nearest_even() {
    for device in test_devices() {
        for count in [1, 7, 8, 255, 2048, 4099] {
            let mut values: Vec<f32> = noise(count, 3).iter().map(|&value| (value * 1e3) as f32).collect();
            values[0] = 1.0 + 2f32.powi(-8);
            let from = device.upload(&values).unwrap();
            let mut brain = device.uninitialised::<bf16>(count).unwrap();
            let mut half = device.uninitialised::<f16>(count).unwrap();
            kernels::narrow(&mut brain, &from).unwrap();
            kernels::narrow(&mut half, &from).unwrap();
            let expected: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            assert_eq!(brain.to_host().unwrap(), expected);
            let expected: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            assert_eq!(half.to_host().unwrap(), expected);
            let mut back = device.uninitialised::<f32>(count).unwrap();
            kernels::widen(&mut back, &half).unwrap();
            assert_eq!(
                back.to_host().unwrap(),
                expected.iter().map(|value| value.to_f32()).collect::<Vec<_>>()
            );
        }
    }
}

/// Layer norm with its modulation, and all gradients, in f64.
struct LayerNormReference {
    y: Vec<f64>,
    dx: Vec<f64>,
    /// `[B, S, 2, C]`
    d_modulation: Vec<f64>,
}

struct LayerNormCase {
    batch: usize,
    starts: Vec<usize>,
    channels: usize,
    modulated: bool,
    /// Whether each sample has scales and shifts of its own.
    apart: bool,
    /// Whether the rows of scales and shifts start where 16 bytes can be read at once, given such a number of channels.
    aligned: bool,
}

const EPSILON: f64 = 1e-6;

fn layer_norm_reference(
    case: &LayerNormCase,
    x: &[f64],
    dy: &[f64],
    scale: &[f64],
    shift: &[f64],
) -> LayerNormReference {
    let (channels, levels) = (case.channels, case.starts.len() - 1);
    let tokens = case.starts[levels];
    let mut reference = LayerNormReference {
        y: Vec::new(),
        dx: Vec::new(),
        d_modulation: vec![0.0; case.batch * levels * 2 * channels],
    };
    for row in 0..case.batch * tokens {
        let (sample, token) = (row / tokens, row % tokens);
        let level = case.starts.iter().filter(|&&start| start <= token).count() - 1;
        let (x, dy) = (&x[row * channels..][..channels], &dy[row * channels..][..channels]);
        let mean = x.iter().sum::<f64>() / channels as f64;
        let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / channels as f64;
        let deviation = (variance + EPSILON).sqrt();
        let n: Vec<f64> = x.iter().map(|value| (value - mean) / deviation).collect();
        let own = if case.apart { sample * levels + level } else { level };
        let factor = |c: usize| if case.modulated { 1.0 + scale[own * channels + c] } else { 1.0 };
        let offset = |c: usize| if case.modulated { shift[own * channels + c] } else { 0.0 };
        reference.y.extend((0..channels).map(|c| n[c] * factor(c) + offset(c)));
        let g: Vec<f64> = (0..channels).map(|c| dy[c] * factor(c)).collect();
        let mean_g = g.iter().sum::<f64>() / channels as f64;
        let along = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / channels as f64;
        reference.dx.extend((0..channels).map(|c| (g[c] - mean_g - n[c] * along) / deviation));
        let place = (sample * levels + level) * 2 * channels;
        for c in 0..channels {
            reference.d_modulation[place + c] += dy[c] * n[c];
            reference.d_modulation[place + channels + c] += dy[c];
        }
    }
    reference
}

fn layer_norm_case<T: Number>(device: &Device) {
    let case = |batch, starts: &[usize], channels, [modulated, apart, aligned]: [bool; 3]| LayerNormCase {
        batch,
        starts: starts.to_vec(),
        channels,
        modulated,
        apart,
        aligned,
    };
    for case in [
        case(1, &[0, 1], 1, [false, false, false]),
        case(3, &[0, 1, 5], 37, [true, false, false]),
        case(3, &[0, 1, 5], 37, [true, true, false]),
        case(2, &[0, 1, 5, 14], 64, [true, false, false]),
        case(5, &[0, 1, 5, 14], 64, [true, true, false]),
        case(1, &[0, 9], 512, [false, false, false]),
        case(1, &[0, 2, 3], 1024, [true, true, false]),
        case(1, &[0, 2], 2056, [false, false, false]),
        case(2, &[0, 1, 3], 1480, [true, true, true]),
        case(2, &[0, 1, 5], 96, [true, false, true]),
    ] {
        let (channels, levels) = (case.channels, case.starts.len() - 1);
        let tokens = case.starts[levels];
        let rows = case.batch * tokens;
        let [scale_at, shift_at, stride] =
            if case.aligned { [0, channels, 2 * channels] } else { [1, channels + 2, 2 * channels + 3] };
        let x: Vec<f64> =
            rounded::<T>(&noise(rows * channels, 1).iter().map(|x| 2.0 * x + 0.3).collect::<Vec<_>>());
        let dy = rounded::<T>(&noise(rows * channels, 2));
        let table_rows = if case.apart { case.batch * levels } else { levels };
        let parts = rounded::<f32>(&noise(table_rows * stride, 3));
        let part = |offset: usize| -> Vec<f64> {
            (0..table_rows).flat_map(|row| parts[row * stride + offset..][..channels].to_vec()).collect()
        };
        let expected = layer_norm_reference(&case, &x, &dy, &part(scale_at), &part(shift_at));
        let level_of: Vec<u32> =
            (0..levels).flat_map(|s| vec![s as u32; case.starts[s + 1] - case.starts[s]]).collect();
        let (levels_buffer, parts) = (device.upload(&level_of).unwrap(), upload::<f32>(device, &parts));
        let (x, dy) = (upload::<T>(device, &x), upload::<T>(device, &dy));
        let modulation = ModulationRows {
            parts: &parts,
            samples: case.apart.then_some(case.batch),
            stride,
            scale: scale_at,
            shift: shift_at,
            levels: &levels_buffer,
        };
        let input = LayerNormInput { x: &x, channels, modulation: case.modulated.then_some(modulation) };
        let mut y = device.uninitialised(rows * channels).unwrap();
        let mut statistics = device.uninitialised(2 * rows).unwrap();
        kernels::layer_norm_forward(&mut y, &mut statistics, &input, EPSILON as f32).unwrap();
        close::<T>("layer norm", &y, &expected.y, T::BOUND);
        let mut dx = device.uninitialised(rows * channels).unwrap();
        kernels::layer_norm_backward(&mut dx, &dy, &input, &statistics).unwrap();
        close::<T>("layer norm's gradient", &dx, &expected.dx, T::BOUND);
        let starts: Vec<u32> = case.starts.iter().map(|&start| start as u32).collect();
        let mut d_modulation = device.uninitialised(expected.d_modulation.len()).unwrap();
        let starts = device.upload(&starts).unwrap();
        let sizes = [case.batch, tokens, channels];
        kernels::modulation_backward(&mut d_modulation, &dy, &x, &statistics, &starts, sizes).unwrap();
        close::<f32>("modulation's gradient", &d_modulation, &expected.d_modulation, 1e-5);
    }
}

#[test]
fn layer_norm_and_its_modulation_match_the_reference() {
    in_all_types!(layer_norm_case);
}

fn cross_entropy_case<T: Number>(device: &Device) {
    for (batch, tokens, codes, smoothing) in
        [(1, 1, 1, 0.0), (2, 3, 37, 0.1), (1, 2, 256, 0.0), (2, 1, 4096, 0.2), (1, 2, 4099, 0.1)]
    {
        let rows = batch * tokens;
        let mut logits = rounded::<T>(&noise(rows * codes, 7).iter().map(|z| 6.0 * z).collect::<Vec<_>>());
        // In the last row the last logit is as large as the largest, and is the target's: a later one of equals is not the first.
        let last = &mut logits[(rows - 1) * codes..];
        last[codes - 1] = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let seeds = rounded::<f32>(&noise(batch, 8));
        let (mut targets, mut losses, mut correct, mut gradient) = (vec![], vec![], vec![], vec![]);
        for row in 0..rows {
            let z = &logits[row * codes..][..codes];
            let best = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let first_best = z.iter().position(|&value| value == best).unwrap();
            // Every other target is the largest logit, so that both answers are seen.
            let target = match row {
                _ if row == rows - 1 => codes - 1,
                _ if row % 2 == 0 => first_best,
                _ => (row * 31) % codes,
            };
            let log_sum = best + z.iter().map(|value| (value - best).exp()).sum::<f64>().ln();
            let mean = z.iter().sum::<f64>() / codes as f64;
            targets.push(target as u32);
            losses.push((1.0 - smoothing) * (log_sum - z[target]) + smoothing * (log_sum - mean));
            correct.push(u32::from(first_best == target));
            gradient.extend((0..codes).map(|v| {
                let aim = smoothing / codes as f64 + if v == target { 1.0 - smoothing } else { 0.0 };
                ((z[v] - log_sum).exp() - aim) * seeds[row / tokens]
            }));
        }
        let z = upload::<T>(device, &logits);
        let (targets, seeds) = (device.upload(&targets).unwrap(), upload::<f32>(device, &seeds));
        let (mut loss, mut right) =
            (device.uninitialised(rows).unwrap(), device.uninitialised(rows).unwrap());
        let mut dz = device.uninitialised(rows * codes).unwrap();
        let sizes = [batch, tokens, codes];
        let output =
            CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: Some((&mut dz, &seeds)) };
        kernels::cross_entropy(output, &z, &targets, sizes, smoothing as f32).unwrap();
        close::<f32>("cross-entropy", &loss, &losses, 1e-5);
        close::<T>("cross-entropy's gradient", &dz, &gradient, T::BOUND);
        assert_eq!(right.to_host().unwrap(), correct);
        assert_eq!(correct[rows - 1] == 0, codes > 1);
        let output = CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: None };
        kernels::cross_entropy(output, &z, &targets, sizes, smoothing as f32).unwrap();
        close::<f32>("cross-entropy alone", &loss, &losses, 1e-5);
    }
}

#[test]
fn cross_entropy_and_its_gradient_match_the_reference() {
    in_all_types!(cross_entropy_case);
}

#[test]
fn a_target_that_is_no_code_stops_the_emulator() {
    let device = Device::emulated().unwrap();
    let (z, targets) = (device.upload(&[0.0f32; 8]).unwrap(), device.upload(&[3u32, 4]).unwrap());
    let (mut loss, mut right) = (device.uninitialised(2).unwrap(), device.uninitialised(2).unwrap());
    let output = CrossEntropyOutput { losses: &mut loss, correct: &mut right, d_logits: None };
    let message = kernels::cross_entropy(output, &z, &targets, [1, 2, 4], 0.0).unwrap_err().to_string();
    assert!(
        message.contains("a target is not one of the codes") && message.contains("cross_entropy.cu:"),
        "{message}"
    );
}

#[test]
fn adamw_follows_its_equations_over_several_steps() {
    for device in test_devices() {
        for clip in [None, Some(0.5)] {
            let lengths = [1usize, 37, 8192, 8193];
            let mut values: Vec<Vec<f64>> =
                lengths.iter().map(|&len| rounded::<f32>(&noise(len, 9))).collect();
            let mut moments: Vec<[Vec<f64>; 2]> =
                lengths.iter().map(|&len| [vec![0.0; len], vec![0.0; len]]).collect();
            let mut buffers: Vec<[Buffer<f32>; 4]> = lengths
                .iter()
                .zip(&values)
                .map(|(&len, value)| {
                    let zeros = || device.zeros(len).unwrap();
                    [upload(&device, value), zeros(), zeros(), zeros()]
                })
                .collect();
            let mut copies: Vec<Option<Buffer<bf16>>> = lengths
                .iter()
                .enumerate()
                .map(|(at, &len)| (at % 2 == 1).then(|| device.zeros(len).unwrap()))
                .collect();
            let mut tables = None;
            let (learning_rate, weight_decay, beta1, beta2, epsilon) = (0.01, 0.1, 0.9, 0.95, 1e-8);
            // The third gradient is not finite, and changes nothing; the losses are scaled by 8.
            for number in 1..=4u64 {
                let broken = number == 3;
                let power = i32::try_from(if number > 3 { number - 1 } else { number }).unwrap();
                let mut gradients: Vec<Vec<f64>> =
                    lengths.iter().map(|&len| rounded::<f32>(&noise(len, 10 * number))).collect();
                if broken {
                    gradients[2][8191] = f64::INFINITY;
                }
                for ([_, buffer, ..], gradient) in buffers.iter_mut().zip(&gradients) {
                    buffer.write_from(&gradient.iter().map(|&g| 8.0 * g as f32).collect::<Vec<_>>()).unwrap();
                }
                let mut tensors: Vec<AdamWTensor<'_, bf16>> = buffers
                    .iter_mut()
                    .zip(&mut copies)
                    .enumerate()
                    .map(|(at, ([value, gradient, first, second], copy))| AdamWTensor {
                        value,
                        gradient,
                        first,
                        second,
                        copy: copy.as_mut(),
                        decays: at != 2,
                    })
                    .collect();
                let tables = tables.get_or_insert_with(|| AdamWTables::new(&device, &tensors).unwrap());
                let factors = Factors {
                    inverse_scale: 0.125,
                    most: clip,
                    keep: 1.0 - learning_rate * weight_decay,
                    rate: learning_rate / (1.0 - f64::powi(beta1, power)),
                    rest1: 1.0 - beta1,
                    beta2,
                    root2: (1.0 - f64::powi(beta2, power)).sqrt(),
                    epsilon,
                };
                tables.set(&factors).unwrap();
                kernels::adamw(tables, &mut tensors).unwrap();
                let norm = gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
                if broken {
                    assert!(!tables.global_norm().unwrap().is_finite());
                    continue;
                }
                assert!((f64::from(tables.global_norm().unwrap()) / norm - 1.0).abs() < 1e-6);
                let factor = clip.map_or(1.0, |most: f64| (most / (norm + 1e-6)).min(1.0));
                for (at, gradient) in gradients.iter().enumerate() {
                    let [first, second] = &mut moments[at];
                    let decay = if at == 2 { 0.0 } else { weight_decay };
                    for (i, g) in gradient.iter().enumerate() {
                        let g = g * factor;
                        first[i] += (g - first[i]) * (1.0 - beta1);
                        second[i] = second[i] * beta2 + g * g * (1.0 - beta2);
                        let root = (second[i] / (1.0 - f64::powi(beta2, power))).sqrt() + epsilon;
                        let rate = learning_rate / (1.0 - f64::powi(beta1, power));
                        values[at][i] =
                            values[at][i] * (1.0 - learning_rate * decay) - rate * first[i] / root;
                    }
                }
            }
            for (at, ([value, _, first, second], copy)) in buffers.iter().zip(&copies).enumerate() {
                close::<f32>("the weights", value, &values[at], 1e-6);
                close::<f32>("the first moment", first, &moments[at][0], 1e-5);
                close::<f32>("the second moment", second, &moments[at][1], 1e-5);
                if let Some(copy) = copy {
                    let expected: Vec<bf16> =
                        value.to_host().unwrap().into_iter().map(bf16::from_f32).collect();
                    assert_eq!(copy.to_host().unwrap(), expected);
                }
            }
        }
    }
}

#[test]
fn kernels_give_the_same_bits_on_any_number_of_threads() {
    let device = Device::emulated().unwrap();
    let d = upload::<bf16>(&device, &noise(700 * 40, 11));
    let sums = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut sums = device.uninitialised(40).unwrap();
            kernels::column_sum(&mut sums, &d, Columns { width: 40, first: 0 }, false).unwrap();
            sums.to_host().unwrap()
        })
    };
    assert_eq!(sums(1), sums(2));
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    let input = LayerNormInput { x: &x, channels: 10, modulation: None };
    assert!(kernels::layer_norm_forward(&mut y, &mut short, &input, 1e-6).is_err());
    let levels = device.zeros::<u32>(2).unwrap();
    let modulation =
        ModulationRows { parts: &x, samples: None, stride: 15, scale: 0, shift: 10, levels: &levels };
    let input = LayerNormInput { x: &x, channels: 10, modulation: Some(modulation) };
    let mut statistics = device.zeros::<f32>(6).unwrap();
    assert!(kernels::layer_norm_forward(&mut y, &mut statistics, &input, 1e-6).is_err());
    // Three samples of one token: parts of three fit, of two or of none do not.
    let one = device.zeros::<u32>(1).unwrap();
    let mut refused = |samples: usize| {
        let modulation = ModulationRows {
            parts: &x,
            samples: Some(samples),
            stride: 10,
            scale: 0,
            shift: 0,
            levels: &one,
        };
        let input = LayerNormInput { x: &x, channels: 10, modulation: Some(modulation) };
        kernels::layer_norm_forward(&mut y, &mut statistics, &input, 1e-6).is_err()
    };
    assert_eq!([0, 2, 3].map(&mut refused), [true, true, false]);
}
