//! What the tests of kernels share: devices, numbers of three types, and the bound on their errors.
//!
//! Inputs are rounded to the kernel's type before the reference sees them. Bounds are relative to the root mean square of
//! the reference: f32 1e-5, bf16 2e-2, f16 3e-3. `ALCHEMIST_REQUIRE_GPU=1` tests on the GPU alone: no GPU is an error.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses its own part")]

pub mod pyramids;

use alchemist_engine::engine::cuda::{Buffer, Device, device::Factor};
use half::{bf16, f16};

/// A type that kernels store numbers in, with the bound on its error.
pub trait Number: Factor {
    const BOUND: f64;
    fn round(value: f64) -> Self;
    fn wide(self) -> f64;
}
impl Number for f32 {
    const BOUND: f64 = 1e-5;
    fn round(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}
impl Number for bf16 {
    const BOUND: f64 = 2e-2;
    fn round(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}
impl Number for f16 {
    const BOUND: f64 = 3e-3;
    fn round(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

/// The devices to test on.
pub fn test_devices() -> Vec<Device> {
    if std::env::var("ALCHEMIST_REQUIRE_GPU").is_ok_and(|value| value == "1") {
        return vec![Device::cuda(0).unwrap_or_else(|reason| panic!("a GPU is required, but {reason}"))];
    }
    let mut found = vec![Device::emulated().expect("the emulator")];
    found.extend(Device::cuda(0));
    found
}

/// Runs a case in all three types on all devices.
#[allow(unused_macros, reason = "each test binary uses its own part")]
macro_rules! in_all_types {
    ($case:ident) => {
        for device in $crate::device::test_devices() {
            $case::<f32>(&device);
            $case::<half::bf16>(&device);
            $case::<half::f16>(&device);
        }
    };
}

/// Numbers between -1 and 1, the same on every run.
pub fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub fn rounded<T: Number>(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&value| T::round(value).wide()).collect()
}

pub fn upload<T: Number>(device: &Device, values: &[f64]) -> Buffer<T> {
    device.upload(&values.iter().map(|&value| T::round(value)).collect::<Vec<_>>()).unwrap()
}

#[track_caller]
pub fn close<T: Number>(what: &str, buffer: &Buffer<T>, expected: &[f64], bound: f64) {
    let values = buffer.to_host().unwrap();
    assert_eq!(values.len(), expected.len(), "{what}");
    let rms = (expected.iter().map(|value| value * value).sum::<f64>() / expected.len() as f64).sqrt();
    for (at, (value, expected)) in values.iter().zip(expected).enumerate() {
        let (value, expected) = (value.wide(), *expected);
        let error = (value - expected).abs() / (expected.abs() + rms).max(1e-30);
        assert!(error <= bound, "{what} in {}, number {at}: {value}, expected {expected}", T::SUFFIX);
    }
}
