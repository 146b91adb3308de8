//! AdamW.

use alchemist_engine::engine::{
    cuda::Buffer,
    ops::adamw::{
        Factors,
        cuda::{self as kernels, AdamWTables, AdamWTensor},
    },
};
use half::bf16;

use crate::device::{close, noise, rounded, test_devices, upload};

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
