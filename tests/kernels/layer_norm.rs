//! Layer norm with its modulation, alone and after a residual.

use alchemist_engine::engine::{
    Tensor,
    autograd::contributions::cuda::scale,
    cuda::Device,
    ops::{
        layer_norm::{
            cuda::{self as kernels, LayerNormInput, ModulationRows, ResidualBranch, ResidualGradients},
            layer_norm,
        },
        modulation::cuda::modulation_backward,
        residual::residual,
    },
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

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
        let mut y = device.uninitialized(rows * channels).unwrap();
        let mut statistics = device.uninitialized(2 * rows).unwrap();
        kernels::layer_norm_forward(&mut y, &mut statistics, &input, EPSILON as f32).unwrap();
        close::<T>("layer norm", &y, &expected.y, T::BOUND);
        let mut dx = device.uninitialized(rows * channels).unwrap();
        kernels::layer_norm_backward(&mut dx, &dy, &input, &statistics).unwrap();
        close::<T>("layer norm's gradient", &dx, &expected.dx, T::BOUND);
        let starts: Vec<u32> = case.starts.iter().map(|&start| start as u32).collect();
        let mut d_modulation = device.uninitialized(expected.d_modulation.len()).unwrap();
        let starts = device.upload(&starts).unwrap();
        let sizes = [case.batch, tokens, channels];
        modulation_backward(&mut d_modulation, &dy, &x, &statistics, &starts, sizes).unwrap();
        close::<f32>("modulation's gradient", &d_modulation, &expected.d_modulation, 1e-5);
    }
}

#[test]
fn layer_norm_and_its_modulation_match_the_reference() {
    in_all_types!(layer_norm_case);
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
        // The reference normalizes the sum as it is stored.
        let (sum, _) = reference(&[(&shape, &x), (&shape, &branch)], &dy, |tape, inputs| {
            residual(
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
            [(); 3].map(|()| device.uninitialized::<T>(rows * channels).unwrap());
        let mut statistics = device.uninitialized(2 * rows).unwrap();
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
        scale(&mut d_out, Some(&d_residual), 1.0).unwrap();
        let gradients = ResidualGradients { dx: &mut d_out, d_residual: None, d_branch: None };
        kernels::residual_layer_norm_backward(gradients, &dy, &input, &statistics, keep).unwrap();
        assert_eq!(d_out.to_host().unwrap(), out.to_host().unwrap(), "in place");
    }
}

#[test]
fn a_residual_with_its_layer_norm_matches_the_reference() {
    in_all_types!(residual_layer_norm_case);
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
