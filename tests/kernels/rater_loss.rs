//! The kernels between the two networks of a step against the CPU reference in f64, with constants that are no numbers among
//! the samples; on the emulator and, where there is one, on a GPU.

use crate::device::{close, noise, rounded, test_devices, upload};
use alchemist_engine::engine::{
    Tensor,
    cuda::Device,
    ops::rater_loss::{cpu, cuda as kernels},
};

/// A single sample, a block and a little, and several turns of one.
const SIZES: [usize; 5] = [1, 3, 255, 257, 700];

/// Constants of which every fifth is no number, in turn not one, infinite and minus infinite.
fn constants(count: usize) -> Vec<f64> {
    let lost = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let of = |(at, value): (usize, f64)| if at % 5 == 3 { lost[at / 5 % 3] } else { 3.0 * value + 1.0 };
    rounded::<f32>(&noise(count, 1)).into_iter().enumerate().map(of).collect()
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::new(shape, values.to_vec()).unwrap()
}

/// What is finite is close, and what is not is of the same kind.
fn alike(device: &Device, what: &str, found: &[f32], expected: &[f64]) {
    let finite = |value: &f64| value.is_finite();
    for (found, expected) in found.iter().zip(expected).filter(|(_, expected)| !finite(expected)) {
        assert!(!found.is_finite(), "{what}: {found} for {expected}");
    }
    let (found, expected): (Vec<f64>, Vec<f64>) = found
        .iter()
        .map(|&value| f64::from(value))
        .zip(expected.iter().copied())
        .filter(|(_, expected)| expected.is_finite())
        .unzip();
    close::<f32>(what, &upload::<f32>(device, &found), &expected, 1e-5);
}

#[test]
fn seeds_match_the_reference() {
    for device in test_devices() {
        for count in SIZES {
            let weights = rounded::<f32>(&noise(count, 2));
            let factors = [1.5, 2.0, 0.5];
            let expected = cpu::seeds(&tensor(&weights, &[count]), &factors).unwrap();
            let mut seeds = device.uninitialized::<f32>(count).unwrap();
            let [of_weights, of_factors] =
                [&weights[..], &factors].map(|values| upload::<f32>(&device, values));
            kernels::rater_loss_seeds(&mut seeds, &of_weights, &of_factors).unwrap();
            close::<f32>("the seeds", &seeds, &expected.to_f64_vec().unwrap(), 1e-5);
        }
    }
}

#[test]
fn weights_gradients_match_the_reference() {
    for device in test_devices() {
        for count in SIZES {
            let constants = constants(count);
            let weights: Vec<f64> = rounded::<f32>(
                &noise(count, 2).iter().map(|value| value.abs().min(0.99)).collect::<Vec<_>>(),
            );
            for entropy in [0.0, 0.5] {
                let factors = [1.5, 2.0, entropy];
                let expected =
                    cpu::d_weights(&tensor(&constants, &[count]), &tensor(&weights, &[count]), &factors)
                        .unwrap();
                let mut d = device.uninitialized::<f32>(count).unwrap();
                let [of_constants, of_weights, of_factors] =
                    [&constants[..], &weights, &factors].map(|values| upload::<f32>(&device, values));
                kernels::rater_loss_backward(&mut d, &of_constants, &of_weights, &of_factors).unwrap();
                close::<f32>("the gradient of weights", &d, &expected.to_f64_vec().unwrap(), 2e-5);
            }
        }
    }
}

#[test]
fn a_batch_is_standardized_over_its_numbers() {
    for device in test_devices() {
        for count in SIZES {
            let same: Vec<f64> = vec![0.75; count];
            for (values, deviation) in
                [(constants(count), false), (constants(count), true), (same.clone(), true), (same, false)]
            {
                let expected = cpu::standardize(&tensor(&values, &[count]), deviation).unwrap();
                let mut to = device.uninitialized::<f32>(count).unwrap();
                kernels::rater_loss_standardize(&mut to, &upload::<f32>(&device, &values), deviation)
                    .unwrap();
                alike(&device, "standardized", &to.to_host().unwrap(), &expected.to_f64_vec().unwrap());
            }
        }
    }
}

#[test]
fn regression_matches_the_reference() {
    for device in test_devices() {
        for count in SIZES {
            let (constants, logits) = (constants(count), rounded::<f32>(&noise(count, 3)));
            let averages = rounded::<f32>(&noise(2 * count, 4));
            let corpus = [0.25, 2.0, 0.125];
            let [d, targets] = cpu::d_logits(
                &tensor(&logits, &[count, 1]),
                &tensor(&constants, &[count]),
                &averages,
                &corpus,
            )
            .unwrap();
            let [mut of_logits, mut of_targets] =
                [(); 2].map(|()| device.uninitialized::<f32>(count).unwrap());
            kernels::rater_loss_regression(
                [&mut of_logits, &mut of_targets],
                &upload(&device, &logits),
                &upload(&device, &constants),
                &upload(&device, &averages),
                &upload(&device, &corpus),
            )
            .unwrap();
            close::<f32>("the gradient of logits", &of_logits, &d.to_f64_vec().unwrap(), 1e-5);
            alike(&device, "targets", &of_targets.to_host().unwrap(), &targets.to_f64_vec().unwrap());
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    for device in test_devices() {
        let [mut two, mut other] = [(); 2].map(|()| device.zeros::<f32>(2).unwrap());
        let [three, pair] = [3, 2].map(|count| device.zeros::<f32>(count).unwrap());
        assert!(kernels::rater_loss_seeds(&mut two, &three, &three).is_err());
        assert!(kernels::rater_loss_backward(&mut two, &three, &pair, &three).is_err());
        assert!(kernels::rater_loss_standardize(&mut two, &three, true).is_err());
        assert!(
            kernels::rater_loss_regression([&mut two, &mut other], &pair, &pair, &three, &three).is_err()
        );
        assert!(
            kernels::rater_loss_regression([&mut two, &mut other], &pair, &three, &pair, &three).is_err()
        );
    }
}
