//! Activations.

use alchemist_engine::engine::{
    cuda::Device,
    ops::activation::{Activation, activate, cuda as activation},
};

use crate::{
    device::{Number, close, noise, rounded, test_devices, upload},
    reference::reference,
};

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
            let mut out = device.uninitialized(rows * channels).unwrap();
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
            let mut out = device.uninitialized(x.len()).unwrap();
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

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    let bias = device.zeros::<f32>(9).unwrap();
    let kind = Activation::Silu;
    assert!(activation::activation_forward(kind, &mut short, &x, None, 10).is_err());
    assert!(activation::activation_forward(kind, &mut y, &x, Some(&bias), 10).is_err());
    assert!(activation::activation_forward(kind, &mut y, &x, None, 7).is_err());
}
