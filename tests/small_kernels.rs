//! The kernels around the large ones (activations, residuals, pooling, accumulation) against the crate's CPU reference in f64,
//! on the emulator and, where there is one, on a GPU.

#[macro_use]
mod device;

use alchemist_engine::{
    Result,
    engine::{
        Ignore, Parameters, Tape, Tensor, Var,
        autograd::contributions::cuda::{Columns, GatherIndex},
        cuda::Device,
        ops::{
            activation::{Activation, activate, cuda as activation},
            layer_norm::{
                cuda::{LayerNormInput, ModulationRows, ResidualBranch, ResidualGradients},
                layer_norm,
            },
            pooling::{self, cuda as pooling_kernels},
            residual::{self, cuda as residual_kernels},
        },
    },
};
use device::{Number, close, noise, rounded, test_devices, upload};

/// Launchers of other files.
mod kernels {
    pub(crate) use alchemist_engine::engine::{autograd::contributions::cuda::*, ops::layer_norm::cuda::*};
}

/// An op of the CPU reference in f64: its result, and the gradients of all inputs.
fn reference(
    inputs: &[(&[usize], &[f64])],
    d_output: &[f64],
    op: impl FnOnce(&mut Tape<'_>, &[Var]) -> Result<Var>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let parameters = Parameters::default();
    let mut tape = Tape::new(&parameters);
    let leaves: Vec<Var> = inputs
        .iter()
        .map(|(shape, values)| tape.leaf(Tensor::new(shape, values.to_vec()).unwrap()))
        .collect();
    let y = op(&mut tape, &leaves).unwrap();
    let d_output = Tensor::new(y.value().shape(), d_output.to_vec()).unwrap();
    let gradients =
        tape.backward(vec![(&y, d_output)], &leaves.iter().collect::<Vec<_>>(), &mut Ignore).unwrap();
    (
        y.value().to_f64_vec().unwrap(),
        gradients.into_iter().map(|gradient| gradient.unwrap().to_f64_vec().unwrap()).collect(),
    )
}

fn activation_case<T: Number>(device: &Device) {
    let kinds = [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Sigmoid,
    ];
    for (rows, channels, biased) in
        [(1, 1, false), (3, 37, true), (5, 64, true), (2, 520, false), (70, 24, true)]
    {
        for kind in kinds {
            let x = rounded::<T>(&noise(rows * channels, 4).iter().map(|x| 6.0 * x).collect::<Vec<_>>());
            let dy = rounded::<T>(&noise(rows * channels, 5));
            let bias = rounded::<f32>(&noise(channels, 6));
            let shifted: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(at, x)| x + if biased { bias[at % channels] } else { 0.0 })
                .collect();
            let (y, d) =
                reference(&[(&[rows, channels], &shifted)], &dy, |tape, x| activate(tape, &x[0], kind));
            let (x, dy) = (upload::<T>(device, &x), upload::<T>(device, &dy));
            let bias = upload::<f32>(device, &bias);
            let bias = biased.then_some(&bias);
            let mut out = device.uninitialised(rows * channels).unwrap();
            activation::activation_forward(kind, &mut out, &x, bias, channels).unwrap();
            close::<T>(&format!("{kind:?}"), &out, &y, T::BOUND);
            activation::activation_backward(kind, &mut out, &dy, &x, bias, channels).unwrap();
            close::<T>(&format!("{kind:?}'s gradient"), &out, &d[0], T::BOUND);
        }
    }
}

#[test]
fn activations_match_the_reference() {
    in_all_types!(activation_case);
}

/// Far below 0 each value is compared with itself, not with the largest.
#[test]
fn the_f32_activations_keep_their_digits_in_the_tail() {
    for device in test_devices() {
        let x: Vec<f64> = (0..80).map(|step| f64::from(-0.1f32 * step as f32)).collect();
        for kind in [Activation::GeluTanh, Activation::GeluErf, Activation::Silu, Activation::Sigmoid] {
            let (y, _) =
                reference(&[(&[1, x.len()], &x)], &vec![1.0; x.len()], |tape, x| activate(tape, &x[0], kind));
            let mut out = device.uninitialised(x.len()).unwrap();
            activation::activation_forward(kind, &mut out, &upload::<f32>(&device, &x), None, x.len())
                .unwrap();
            for ((x, y), value) in x.iter().zip(&y).zip(out.to_host().unwrap()) {
                // One rounding of the exponent's argument, which is up to 60, is 4e-6 of the result.
                let error = (f64::from(value) - y).abs() / y.abs().max(1e-30);
                assert!(error <= 1e-5 || *x == 0.0, "{kind:?} at {x}: {value}, expected {y}");
            }
        }
    }
}

fn residual_case<T: Number>(device: &Device) {
    for (batch, share, dropped) in [(1, 1, false), (3, 37, true), (2, 2056, true), (4, 64, false)] {
        let count = batch * share;
        let (x, branch) = (rounded::<T>(&noise(count, 1)), rounded::<T>(&noise(count, 2)));
        let d = rounded::<T>(&noise(count, 3));
        let keep: Vec<f64> = (0..batch).map(|sample| if sample % 2 == 1 { 0.0 } else { 1.25 }).collect();
        let shape = [batch, share];
        let (y, gradients) = reference(&[(&shape, &x), (&shape, &branch)], &d, |tape, inputs| {
            residual::residual(
                tape,
                &inputs[0],
                &inputs[1],
                dropped.then(|| Tensor::new(&[batch], keep.clone()).unwrap()),
            )
        });
        let addend = &branch[..share];
        let (all, all_gradients) = reference(&[(&shape, &x), (&[1, share], addend)], &d, |tape, inputs| {
            residual::add_to_all(tape, &inputs[0], &inputs[1])
        });
        let addend = upload::<T>(device, addend);
        let mut branch = branch;
        if dropped {
            // A branch that is dropped may hold anything.
            for value in branch.chunks_mut(share).skip(1).step_by(2).flatten() {
                *value = f64::NAN;
            }
        }
        let keep = upload::<f32>(device, &keep);
        let keep = dropped.then_some(&keep);
        let [x, branch, d] = [&x, &branch, &d].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialised(count).unwrap();
        kernels::residual_forward(&mut out, Some(&x), &branch, keep).unwrap();
        close::<T>("residual", &out, &y, T::BOUND);
        kernels::scale(&mut out, Some(&x), 1.0).unwrap();
        kernels::residual_forward(&mut out, None, &branch, keep).unwrap();
        close::<T>("residual in place", &out, &y, T::BOUND);
        if let Some(keep) = keep {
            residual_kernels::residual_backward(&mut out, Some(&d), keep).unwrap();
            close::<T>("the branch's gradient", &out, &gradients[1], T::BOUND);
        }
        residual_kernels::add_to_all(&mut out, Some(&x), &addend).unwrap();
        close::<T>("add to all", &out, &all, T::BOUND);
        let mut d_addend = device.uninitialised(share).unwrap();
        residual_kernels::add_to_all_backward(&mut d_addend, &d).unwrap();
        close::<T>("the addend's gradient", &d_addend, &all_gradients[1], T::BOUND);
        let mut first = device.uninitialised(share).unwrap();
        residual_kernels::first_sample_forward(&mut first, &x).unwrap();
        assert_eq!(first.to_host().unwrap(), x.to_host().unwrap()[..share]);
        residual_kernels::first_sample_backward(&mut out, &first).unwrap();
        let mut expected = vec![T::default(); count];
        expected[..share].copy_from_slice(&first.to_host().unwrap());
        assert_eq!(out.to_host().unwrap(), expected);
    }
}

#[test]
fn residuals_match_the_reference() {
    in_all_types!(residual_case);
}

struct FusedCase {
    batch: usize,
    tokens: usize,
    channels: usize,
    modulated: bool,
    /// Whether each sample has scales and shifts of its own.
    apart: bool,
    dropped: bool,
}

fn residual_layer_norm_case<T: Number>(device: &Device) {
    const EPSILON: f64 = 1e-6;
    for case in [
        FusedCase { batch: 1, tokens: 1, channels: 3, modulated: false, apart: false, dropped: false },
        FusedCase { batch: 3, tokens: 5, channels: 37, modulated: true, apart: false, dropped: true },
        FusedCase { batch: 3, tokens: 5, channels: 37, modulated: true, apart: true, dropped: true },
        FusedCase { batch: 2, tokens: 3, channels: 64, modulated: true, apart: false, dropped: false },
        FusedCase { batch: 3, tokens: 3, channels: 64, modulated: true, apart: true, dropped: false },
        FusedCase { batch: 2, tokens: 2, channels: 1024, modulated: false, apart: false, dropped: true },
        FusedCase { batch: 1, tokens: 2, channels: 2056, modulated: true, apart: false, dropped: true },
    ] {
        let FusedCase { batch, tokens, channels, .. } = case;
        let rows = batch * tokens;
        let shape = [batch, tokens, channels];
        let [x, branch, dy, d_residual] =
            [1, 2, 3, 4].map(|seed| rounded::<T>(&noise(rows * channels, seed)));
        let keep: Vec<f64> = (0..batch).map(|sample| if sample == 1 { 0.0 } else { 1.25 }).collect();
        // Two levels: the first token, and the others.
        let level_of: Vec<u32> = (0..tokens).map(|token| u32::from(token > 0)).collect();
        let samples = case.apart.then_some(batch);
        let parts = rounded::<f32>(&noise(samples.unwrap_or(1) * 2 * 2 * channels, 5));
        let part = |row: usize, offset: usize, c: usize| {
            let own = if case.apart { row / tokens * 2 } else { 0 } + level_of[row % tokens] as usize;
            if case.modulated { parts[own * 2 * channels + offset * channels + c] } else { 0.0 }
        };
        // The reference normalises the sum as it is stored.
        let (sum, _) = reference(&[(&shape, &x), (&shape, &branch)], &dy, |tape, inputs| {
            residual::residual(
                tape,
                &inputs[0],
                &inputs[1],
                case.dropped.then(|| Tensor::new(&[batch], keep.clone()).unwrap()),
            )
        });
        let stored = rounded::<T>(&sum);
        let scaled = |values: &[f64]| -> Vec<f64> {
            (0..rows * channels)
                .map(|at| values[at] * (1.0 + part(at / channels, 0, at % channels)))
                .collect()
        };
        let (normed, gradients) =
            reference(&[(&shape, &stored)], &scaled(&dy), |tape, x| layer_norm(tape, &x[0], EPSILON, None));
        let mut y = scaled(&normed);
        for (at, y) in y.iter_mut().enumerate() {
            *y += part(at / channels, 1, at % channels);
        }
        let dx: Vec<f64> = gradients[0].iter().zip(&d_residual).map(|(d, residual)| d + residual).collect();
        let d_branch: Vec<f64> = dx
            .iter()
            .enumerate()
            .map(|(at, d)| d * if case.dropped { keep[at / channels / tokens] } else { 1.0 })
            .collect();

        let (parts, levels) = (upload::<f32>(device, &parts), device.upload(&level_of).unwrap());
        let modulation = case.modulated.then_some(ModulationRows {
            parts: &parts,
            samples,
            stride: 2 * channels,
            scale: 0,
            shift: channels,
            levels: &levels,
        });
        let keep = upload::<f32>(device, &keep);
        let keep = case.dropped.then_some(&keep);
        let [before, branch, dy, d_residual] =
            [&x, &branch, &dy, &d_residual].map(|values| upload::<T>(device, values));
        let [mut joint, mut out, mut d_out] =
            [(); 3].map(|()| device.uninitialised::<T>(rows * channels).unwrap());
        let mut statistics = device.uninitialised(2 * rows).unwrap();
        let branch = ResidualBranch { before: &before, branch: &branch, keep };
        kernels::residual_layer_norm_forward(
            &mut joint,
            &mut out,
            &mut statistics,
            &branch,
            channels,
            modulation,
            EPSILON as f32,
        )
        .unwrap();
        close::<T>("the residual's sum", &joint, &sum, T::BOUND);
        close::<T>("its layer norm", &out, &y, T::BOUND);
        let input = LayerNormInput { x: &joint, channels, modulation };
        let gradients = ResidualGradients {
            dx: &mut out,
            d_residual: Some(&d_residual),
            d_branch: keep.is_some().then_some(&mut d_out),
        };
        kernels::residual_layer_norm_backward(gradients, &dy, &input, &statistics, keep).unwrap();
        close::<T>("the gradient of the residual", &out, &dx, T::BOUND);
        if case.dropped {
            close::<T>("the gradient of the branch", &d_out, &d_branch, T::BOUND);
        }
        kernels::scale(&mut d_out, Some(&d_residual), 1.0).unwrap();
        let gradients = ResidualGradients { dx: &mut d_out, d_residual: None, d_branch: None };
        kernels::residual_layer_norm_backward(gradients, &dy, &input, &statistics, keep).unwrap();
        assert_eq!(d_out.to_host().unwrap(), out.to_host().unwrap(), "in place");
    }
}

#[test]
fn a_residual_with_its_layer_norm_matches_the_reference() {
    in_all_types!(residual_layer_norm_case);
}

fn pooling_case<T: Number>(device: &Device) {
    for (batch, tokens, channels) in [(1, 1, 1), (3, 14, 37), (2, 67, 64)] {
        let x = rounded::<T>(&noise(batch * tokens * channels, 1));
        let dy = rounded::<T>(&noise(batch * channels, 2));
        let (y, d) =
            reference(&[(&[batch, tokens, channels], &x)], &dy, |tape, x| pooling::mean_tokens(tape, &x[0]));
        let sizes = [batch, tokens, channels];
        let x = upload::<T>(device, &x);
        let (narrow, wide) = (upload::<T>(device, &dy), upload::<f32>(device, &dy));
        let mut mean = device.uninitialised::<T>(batch * channels).unwrap();
        let mut wide_mean = device.uninitialised::<f32>(batch * channels).unwrap();
        let mut dx = device.uninitialised::<T>(batch * tokens * channels).unwrap();
        pooling_kernels::mean_tokens_forward(&mut mean, &x, sizes).unwrap();
        close::<T>("the mean over tokens", &mean, &y, T::BOUND);
        pooling_kernels::mean_tokens_forward(&mut wide_mean, &x, sizes).unwrap();
        close::<f32>("the mean over tokens in f32", &wide_mean, &y, 1e-5);
        pooling_kernels::mean_tokens_backward(&mut dx, &narrow, sizes).unwrap();
        close::<T>("the mean's gradient", &dx, &d[0], T::BOUND);
        pooling_kernels::mean_tokens_backward(&mut dx, &wide, sizes).unwrap();
        close::<T>("the mean's gradient from f32", &dx, &d[0], T::BOUND);
    }
    for (batch, channels) in [(1, 1), (5, 37), (64, 300)] {
        // Away from 0, where a variance that is a difference of squares would lose its digits.
        let x = noise(batch * channels, 3).iter().map(|x| x + 20.0).collect::<Vec<_>>();
        let (x, dy) = (rounded::<T>(&x), rounded::<T>(&noise(2 * channels, 4)));
        let (y, d) =
            reference(&[(&[batch, channels], &x)], &dy, |tape, x| pooling::batch_statistics(tape, &x[0]));
        let (x, dy) = (upload::<T>(device, &x), upload::<T>(device, &dy));
        let mut statistics = device.uninitialised::<T>(2 * channels).unwrap();
        pooling_kernels::batch_statistics_forward(&mut statistics, &x, [batch, channels]).unwrap();
        close::<T>("the statistics of the batch", &statistics, &y, T::BOUND);
        let mut dx = device.uninitialised::<T>(batch * channels).unwrap();
        pooling_kernels::batch_statistics_backward(&mut dx, &dy, &x, [batch, channels]).unwrap();
        close::<T>("the statistics' gradient", &dx, &d[0], T::BOUND);
    }
}

#[test]
fn pooling_matches_the_reference() {
    in_all_types!(pooling_case);
}

fn batch_case<T: Number>(device: &Device) {
    for (batch, temperature) in [(1, 1.0), (7, 0.5), (64, 2.0), (300, 1.0)] {
        let (x, dy) = (rounded::<T>(&noise(batch, 1)), rounded::<T>(&noise(batch, 2)));
        let factor = rounded::<T>(&[0.7]);
        let shape = [batch, 1];
        let (y, _) =
            reference(&[(&shape, &x)], &dy, |tape, x| pooling::batch_softmax(tape, &x[0], temperature));
        let (scaled, scaled_gradients) =
            reference(&[(&shape, &x), (&[1, 1], &factor)], &dy, |tape, inputs| {
                pooling::scale_all(tape, &inputs[0], &inputs[1])
            });
        // The backward takes the weights as they are stored.
        let stored = rounded::<T>(&y);
        let total: f64 = stored.iter().sum();
        let mean = stored.iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>() / total;
        let d: Vec<f64> = stored.iter().zip(&dy).map(|(y, d)| y * (d - mean) / temperature).collect();
        let [x, dy, weights, factor] = [&x, &dy, &stored, &factor].map(|values| upload::<T>(device, values));
        let mut out = device.uninitialised::<T>(batch).unwrap();
        pooling_kernels::batch_softmax_forward(&mut out, &x, temperature as f32).unwrap();
        close::<T>("the softmax over the batch", &out, &y, T::BOUND);
        pooling_kernels::batch_softmax_backward(&mut out, &dy, &weights, temperature as f32).unwrap();
        close::<T>("the softmax's gradient", &out, &d, T::BOUND);
        pooling_kernels::scale_all_forward(&mut out, &x, &factor).unwrap();
        close::<T>("scale all", &out, &scaled, T::BOUND);
        let mut d_factor = device.uninitialised::<T>(1).unwrap();
        pooling_kernels::scale_all_backward(&mut out, &mut d_factor, &dy, &x, &factor).unwrap();
        close::<T>("scale all's gradient", &out, &scaled_gradients[0], T::BOUND);
        close::<T>("the scale's gradient", &d_factor, &scaled_gradients[1], T::BOUND);
    }
}

#[test]
fn what_works_on_the_batch_matches_the_reference() {
    in_all_types!(batch_case);
}

fn accumulate_case<T: Number>(device: &Device) {
    for (rows, width, first, count) in
        [(1, 1, 0, 1), (5, 40, 3, 33), (512, 8, 0, 8), (513, 9, 1, 5), (1100, 6, 0, 6)]
    {
        let (d, held) = (rounded::<T>(&noise(rows * width, 1)), rounded::<f32>(&noise(count, 2)));
        let sums: Vec<f64> =
            (0..count).map(|c| d.iter().skip(first + c).step_by(width).sum::<f64>()).collect();
        let d = upload::<T>(device, &d);
        let mut total = device.uninitialised(count).unwrap();
        kernels::column_sum(&mut total, &d, Columns { width, first }, false).unwrap();
        close::<f32>("sums of columns", &total, &sums, 1e-5);
        let mut total = upload::<f32>(device, &held);
        kernels::column_sum(&mut total, &d, Columns { width, first }, true).unwrap();
        let sums: Vec<f64> = sums.iter().zip(&held).map(|(sum, held)| sum + held).collect();
        close::<f32>("sums of columns, added", &total, &sums, 1e-5);
    }
    for (samples, index, rows, columns) in [
        (1, vec![0], 1, 1),
        (3, vec![0, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3], 4, 37),
        (2, vec![u32::MAX, 2, 0, 2, u32::MAX], 3, 64),
    ] {
        let d = rounded::<T>(&noise(samples * index.len() * columns, 3));
        let mut expected = rounded::<f32>(&noise(rows * columns, 4));
        let mut table = upload::<f32>(device, &expected);
        for (row, d) in d.chunks(columns).enumerate() {
            let at = index[row % index.len()];
            if at != u32::MAX {
                for (sum, d) in expected[at as usize * columns..][..columns].iter_mut().zip(d) {
                    *sum += d;
                }
            }
        }
        let index = GatherIndex::new(device, &index, rows).unwrap();
        kernels::gather_sum(&mut table, &upload::<T>(device, &d), &index).unwrap();
        close::<f32>("the gradient of a table", &table, &expected, 1e-5);
    }
    for (samples, stride, count) in [(1, 1, 1), (5, 37, 37), (3, 64, 64), (3, 64, 20), (4, 41, 7)] {
        let (d, weights) = (rounded::<T>(&noise(samples * stride, 5)), rounded::<f32>(&noise(samples, 6)));
        let held = rounded::<f32>(&noise(count, 7));
        let sum = |weighted: bool, start: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..count)
                .map(|at| {
                    let each =
                        (0..samples).map(|s| d[s * stride + at] * if weighted { weights[s] } else { 1.0 });
                    start(at) + each.sum::<f64>()
                })
                .collect()
        };
        let (plain, weighted) = (sum(false, &|_| 0.0), sum(true, &|at| held[at]));
        let scaled: Vec<f64> = d.iter().enumerate().map(|(at, d)| d * weights[at / stride]).collect();
        let (d, weights) = (upload::<T>(device, &d), upload::<f32>(device, &weights));
        let mut same = device.uninitialised::<T>(count).unwrap();
        kernels::sum_samples(&mut same, &d, None, stride, false).unwrap();
        close::<T>("the sum of samples", &same, &plain, T::BOUND);
        let mut wide = upload::<f32>(device, &held);
        kernels::sum_samples(&mut wide, &d, Some(&weights), stride, true).unwrap();
        close::<f32>("the weighted sum of samples", &wide, &weighted, 1e-5);
        let mut out = device.uninitialised::<T>(samples * stride).unwrap();
        kernels::scale_samples(&mut out, Some(&d), &weights).unwrap();
        close::<T>("weighted samples", &out, &scaled, T::BOUND);
    }
    for count in [1, 37, 1024, 2051] {
        let [x, z] = [8, 9].map(|seed| rounded::<T>(&noise(count, seed)));
        let held = rounded::<f32>(&noise(count, 10));
        let of = |value: &dyn Fn(usize) -> f64| (0..count).map(value).collect::<Vec<f64>>();
        let [wide_x, wide_z] = [&x, &z];
        let (x, z, mut sum) =
            (upload::<T>(device, wide_x), upload::<T>(device, wide_z), upload::<f32>(device, &held));
        kernels::add_scaled(&mut sum, &x, -0.5).unwrap();
        close::<f32>("y += a x", &sum, &of(&|at| held[at] - 0.5 * wide_x[at]), 1e-5);
        let mut out = device.uninitialised::<T>(count).unwrap();
        kernels::multiply(&mut out, &x, &z).unwrap();
        close::<T>("x z", &out, &of(&|at| wide_x[at] * wide_z[at]), T::BOUND);
        kernels::scale(&mut out, Some(&x), 3.0).unwrap();
        kernels::scale(&mut out, None, 0.5).unwrap();
        close::<T>("a x", &out, &of(&|at| 1.5 * wide_x[at]), T::BOUND);
        kernels::fill(&mut out, 0.25).unwrap();
        assert_eq!(out.to_host().unwrap(), vec![T::round(0.25); count]);
    }
}

#[test]
fn accumulation_matches_the_reference() {
    in_all_types!(accumulate_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    let bias = device.zeros::<f32>(9).unwrap();
    let four = device.zeros::<f32>(4).unwrap();
    let kind = Activation::Silu;
    assert!(activation::activation_forward(kind, &mut short, &x, None, 10).is_err());
    assert!(activation::activation_forward(kind, &mut y, &x, Some(&bias), 10).is_err());
    assert!(activation::activation_forward(kind, &mut y, &x, None, 7).is_err());
    assert!(kernels::column_sum(&mut short, &x, Columns { width: 29, first: 0 }, false).is_err());
    assert!(kernels::column_sum(&mut short, &x, Columns { width: 30, first: 2 }, false).is_err());
    assert!(kernels::sum_samples(&mut y, &x, None, 15, false).is_err());
    assert!(kernels::scale_samples(&mut y, Some(&x), &four).is_err());
    assert!(GatherIndex::new(&device, &[0, 3], 3).is_err());
    assert!(kernels::residual_forward(&mut y, None, &x, Some(&four)).is_err());
    assert!(residual_kernels::first_sample_forward(&mut y, &four).is_err());
    assert!(pooling_kernels::mean_tokens_forward(&mut short, &x, [3, 2, 5]).is_err());
    assert!(pooling_kernels::batch_softmax_forward(&mut y, &x, 0.0).is_err());
}
