//! Norms with a learned factor per channel.

use alchemist_engine::engine::ops::affine_norm::cuda::affine_norm;

use crate::device::{Number, close, noise, rounded, test_devices, upload};

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
                let mut y = device.uninitialized::<f32>(x.len()).unwrap();
                let bias = with_bias.then_some(&bias_of);
                affine_norm(&mut y, &placed, &weight_of, bias, EPSILON as f32).unwrap();
                close::<f32>("an affine norm", &y, &expected, f32::BOUND);
            }
        }
    }
}
