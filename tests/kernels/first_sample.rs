//! The first sample of a batch.

use alchemist_engine::engine::{cuda::Device, ops::first_sample::cuda as kernels};

use crate::device::{Number, noise, rounded, upload};

fn first_sample_case<T: Number>(device: &Device) {
    for (batch, share) in [(1, 1), (3, 37), (2, 2056), (4, 64)] {
        let x = upload::<T>(device, &rounded::<T>(&noise(batch * share, 1)));
        let mut first = device.uninitialized(share).unwrap();
        kernels::first_sample_forward(&mut first, &x).unwrap();
        assert_eq!(first.to_host().unwrap(), x.to_host().unwrap()[..share]);
        let mut dx = device.uninitialized(batch * share).unwrap();
        kernels::first_sample_backward(&mut dx, &first).unwrap();
        let mut expected = vec![T::default(); batch * share];
        expected[..share].copy_from_slice(&first.to_host().unwrap());
        assert_eq!(dx.to_host().unwrap(), expected);
    }
}

#[test]
fn first_samples_are_copied_and_their_gradient_is_zero_elsewhere() {
    in_all_types!(first_sample_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let four = device.zeros::<f32>(4).unwrap();
    let mut y = device.zeros::<f32>(30).unwrap();
    assert!(kernels::first_sample_forward(&mut y, &four).is_err());
}
