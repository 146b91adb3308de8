//! The softmax over keys.

use alchemist_engine::engine::{
    cuda::Device,
    ops::softmax::cuda::{Scores, softmax},
};

use crate::device::{Number, close, noise, rounded, test_devices, upload};

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
