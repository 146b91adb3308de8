//! Casts.

use alchemist_engine::engine::ops::cast::cuda as kernels;
use half::{bf16, f16};

use crate::device::{noise, test_devices};

#[test]
fn casts_round_to_nearest_even() {
    for device in test_devices() {
        for count in [1, 7, 8, 255, 2048, 4099] {
            let mut values: Vec<f32> = noise(count, 3).iter().map(|&value| (value * 1e3) as f32).collect();
            values[0] = 1.0 + 2f32.powi(-8);
            let from = device.upload(&values).unwrap();
            let mut brain = device.uninitialized::<bf16>(count).unwrap();
            let mut half = device.uninitialized::<f16>(count).unwrap();
            kernels::narrow(&mut brain, &from).unwrap();
            kernels::narrow(&mut half, &from).unwrap();
            let expected: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            assert_eq!(brain.to_host().unwrap(), expected);
            let expected: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            assert_eq!(half.to_host().unwrap(), expected);
            let mut back = device.uninitialized::<f32>(count).unwrap();
            kernels::widen(&mut back, &half).unwrap();
            assert_eq!(
                back.to_host().unwrap(),
                expected.iter().map(|value| value.to_f32()).collect::<Vec<_>>()
            );
        }
    }
}
