//! Group norm.

use alchemist_engine::engine::{
    cuda::Device,
    ops::group_norm::cuda::{DeviceGroupNorm, group_norm},
};

use crate::device::{Number, close, noise, rounded, test_devices, upload};

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
            let norm = DeviceGroupNorm {
                groups,
                scale: &scale,
                shift: &shift,
                epsilon: EPSILON as f32,
                silu: with_silu,
            };
            let mut y = device.uninitialized::<f32>(x.len()).unwrap();
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
