//! The pyramid of codes on a device against the quantizer on the CPU.

use crate::device::{close, noise, pyramids::PYRAMIDS, test_devices};
use crate::left_over::left_over;
use alchemist_engine::engine::{
    Tensor,
    cuda::{Buffer, Device},
    ops::pyramid::{
        PyramidQuantizer, Reach,
        cpu::resample::ResidualConvolution,
        cuda::{PyramidRows, pyramid_input, pyramid_quantize},
    },
};
use half::bf16;

fn floats(count: usize, seed: u64) -> Vec<f32> {
    noise(count, seed).into_iter().map(|value| value as f32).collect()
}

/// A quantizer with a codebook and convolutions of noise.
fn quantizer(
    patch_nums: &[usize],
    vocabulary: usize,
    channels: usize,
    convolutions: usize,
) -> PyramidQuantizer {
    let codebook = Tensor::new(&[vocabulary, channels], floats(vocabulary * channels, 1)).unwrap();
    let convolutions = (0..convolutions)
        .map(|at| {
            let share = 1.0 / (3.0 * (channels as f32).sqrt());
            let weight = floats(channels * channels * 9, 20 + at as u64).iter().map(|w| w * share).collect();
            let weight = Tensor::new(&[channels, channels, 3, 3], weight).unwrap();
            let bias = Tensor::new(&[channels], floats(channels, 30 + at as u64)).unwrap();
            ResidualConvolution::new(&weight, &bias, 0.5).unwrap()
        })
        .collect();
    PyramidQuantizer::new(patch_nums, &codebook, convolutions).unwrap()
}

fn cases() -> Vec<(PyramidQuantizer, usize, bool)> {
    let [odd, smallest, small, released] = PYRAMIDS;
    vec![
        (quantizer(&[1], 1, 1, 0), 2, true),
        (quantizer(odd, 7, 3, 2), 3, true),
        (quantizer(smallest, 128, 16, 0), 2, true),
        (quantizer(small, 512, 16, 0), 2, true),
        (quantizer(&[2, 3, 7], 65, 6, 1), 2, true),
        (quantizer(&[1, 3, 4], 64, 4, 0), 2, true),
        // More than shared memory holds.
        (quantizer(&[1, 2, 16], 9, 160, 0), 2, false),
        (quantizer(released, 4096, 32, 4), 1, true),
    ]
}

#[test]
fn input_rows_match_the_reference() {
    for device in test_devices() {
        let both =
            |case: (PyramidQuantizer, usize, bool)| [(case.clone(), Reach::Before), (case, Reach::Through)];
        for ((quantizer, batch, shared), reach) in cases().into_iter().flat_map(both) {
            let (tokens, channels) = (quantizer.tokens(), quantizer.channels());
            let first = quantizer.patch_nums()[0].pow(2);
            let codes: Vec<u32> = noise(batch * tokens, 2)
                .iter()
                .map(|value| ((value + 1.0) / 2.0 * quantizer.vocabulary() as f64) as u32)
                .collect();
            let expected = quantizer
                .input_reaching(&Tensor::new(&[batch, tokens], codes.clone()).unwrap(), reach)
                .unwrap()
                .to_f64_vec()
                .unwrap();
            let codes = device.upload(&codes).unwrap();
            let mut tables = quantizer.on_device(&device, batch).unwrap();
            assert_eq!(tables.in_shared_memory(), shared);
            let through = reach == Reach::Through;
            let mut wide = device.uninitialized(expected.len()).unwrap();
            let mut rows = device.uninitialized::<bf16>(expected.len()).unwrap();
            let output = PyramidRows { wide: Some(&mut wide), rows: Some(&mut rows), padded: false, through };
            pyramid_input(output, &codes, &mut tables).unwrap();
            close::<f32>("the pyramid's rows", &wide, &expected, 1e-5);
            let rounded: Vec<bf16> = wide.to_host().unwrap().into_iter().map(bf16::from_f32).collect();
            assert_eq!(rows.to_host().unwrap(), rounded);

            let mut padded = device.uninitialized::<f32>(batch * tokens * channels).unwrap();
            let output = PyramidRows { wide: None, rows: Some(&mut padded), padded: true, through };
            pyramid_input(output, &codes, &mut tables).unwrap();
            let wide = wide.to_host().unwrap();
            let count = (tokens - first) * channels;
            for (sample, rows) in padded.to_host().unwrap().chunks(tokens * channels).enumerate() {
                let (head, tail) = rows.split_at(first * channels);
                assert!(head.iter().all(|&value| value == 0.0));
                assert_eq!(tail, &wide[sample * count..][..count]);
            }
        }
    }
}

#[test]
fn codes_match_the_reference_but_for_ties() {
    for device in test_devices() {
        for (quantizer, batch, shared) in cases() {
            let (tokens, channels, side) = (quantizer.tokens(), quantizer.channels(), quantizer.side());
            let map = channels * side * side;
            let values = floats(batch * map, 3);
            let features = Tensor::new(&[batch, channels, side, side], values.clone()).unwrap();
            let expected = quantizer.encode(&features).unwrap();
            let expected = expected.as_slice::<u32>().unwrap();
            let mut tables = quantizer.on_device(&device, batch).unwrap();
            assert_eq!(tables.in_shared_memory(), shared);
            let mut codes = device.uninitialized(batch * tokens).unwrap();
            pyramid_quantize(&mut codes, &device.upload(&values).unwrap(), &mut tables).unwrap();
            let codes = codes.to_host().unwrap();
            let differing = codes.iter().zip(expected).filter(|(code, expected)| code != expected).count();
            // Every code of the device must be as near as the nearest, but for rounding, given the device's own codes
            // at the scales before.
            let codebook = quantizer.codebook().to_f64_vec().unwrap();
            for (sample, codes) in codes.chunks(tokens).enumerate() {
                let rows = left_over(&quantizer, &values[sample * map..][..map], codes).concat();
                for (token, row) in rows.chunks(channels).enumerate() {
                    let distance = |code: &[f64]| -> f64 {
                        code.iter().zip(row).map(|(code, row)| (code - row).powi(2)).sum()
                    };
                    let length: f64 = row.iter().map(|value| value * value).sum();
                    let least = codebook.chunks(channels).map(distance).fold(f64::INFINITY, |a, b| a.min(b));
                    let code = codes[token] as usize;
                    let own = distance(&codebook[code * channels..][..channels]);
                    let bound =
                        8.0 * f64::from(f32::EPSILON) * (length + own + 1.0) * (channels as f64).sqrt();
                    assert!(
                        own - least <= bound,
                        "token {token}: code {code} at {own}, the nearest at {least}"
                    );
                }
            }
            assert!(differing * 100 <= codes.len(), "{differing} of {} codes differ", codes.len());
        }
    }
}

#[test]
fn the_first_of_equal_codes_wins() {
    for device in test_devices() {
        // Each code three times, far apart, so that warps, lanes and both codes of a lane meet.
        let (distinct, channels) = (100, 5);
        let codebook = floats(distinct * channels, 4).repeat(3);
        let codebook = Tensor::new(&[3 * distinct, channels], codebook).unwrap();
        let quantizer = PyramidQuantizer::new(&[1, 3, 4], &codebook, Vec::new()).unwrap();
        let values = floats(2 * channels * 16, 5);
        let features = Tensor::new(&[2, channels, 4, 4], values.clone()).unwrap();
        let mut tables = quantizer.on_device(&device, 2).unwrap();
        let mut codes = device.uninitialized(2 * quantizer.tokens()).unwrap();
        pyramid_quantize(&mut codes, &device.upload(&values).unwrap(), &mut tables).unwrap();
        let codes = codes.to_host().unwrap();
        assert!(codes.iter().all(|&code| (code as usize) < distinct), "{codes:?}");
        assert_eq!(codes, quantizer.encode(&features).unwrap().as_slice::<u32>().unwrap());
        // Neighboring equal codes, which one lane compares.
        let codebook = Tensor::new(&[6, 1], vec![9.0f32, 1.0, 1.0, 1.0, 1.0, 9.0]).unwrap();
        let quantizer = PyramidQuantizer::new(&[2], &codebook, Vec::new()).unwrap();
        let mut tables = quantizer.on_device(&device, 1).unwrap();
        let mut codes = device.uninitialized(4).unwrap();
        pyramid_quantize(&mut codes, &device.upload(&[0.5f32, 1.0, 3.0, 8.0]).unwrap(), &mut tables).unwrap();
        assert_eq!(codes.to_host().unwrap(), [1, 1, 1, 0]);
    }
}

fn output(rows: &mut Buffer<f32>) -> PyramidRows<'_, f32> {
    PyramidRows { wide: None, rows: Some(rows), padded: false, through: false }
}

#[test]
fn what_is_wrong_is_refused() {
    let device = Device::emulated().unwrap();
    let quantizer = quantizer(&[1, 2], 3, 2, 0);
    let mut tables = quantizer.on_device(&device, 1).unwrap();
    let mut rows = device.zeros::<f32>(8).unwrap();
    let codes = device.upload(&[0u32, 1, 2, 3, 0]).unwrap();
    let message = pyramid_input(output(&mut rows), &codes, &mut tables);
    // The last scale's codes are not looked up.
    assert!(message.is_ok(), "{message:?}");
    let codes = device.upload(&[3u32, 1, 2, 0, 0]).unwrap();
    let message = pyramid_input(output(&mut rows), &codes, &mut tables).unwrap_err().to_string();
    assert!(message.contains("a code is not in the codebook"), "{message}");
    let codes = device.upload(&[0u32; 4]).unwrap();
    assert!(pyramid_input(output(&mut rows), &codes, &mut tables).is_err());
    let features = device.upload(&[f32::NAN; 8]).unwrap();
    let mut codes = device.zeros(5).unwrap();
    let message = pyramid_quantize(&mut codes, &features, &mut tables).unwrap_err().to_string();
    assert!(message.contains("a feature is not finite"), "{message}");
    assert!(pyramid_quantize(&mut codes, &device.zeros(9).unwrap(), &mut tables).is_err());
}
