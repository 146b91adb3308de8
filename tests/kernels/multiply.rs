//! Products number by number.

use alchemist_engine::engine::{cuda::Device, ops::multiply::cuda as kernels};

use crate::device::{Number, close, noise, rounded, upload};

fn multiply_case<T: Number>(device: &Device) {
    for count in [1, 37, 1024, 2051] {
        let [x, z] = [8, 9].map(|seed| rounded::<T>(&noise(count, seed)));
        let expected: Vec<f64> = x.iter().zip(&z).map(|(x, z)| x * z).collect();
        let (x, z) = (upload::<T>(device, &x), upload::<T>(device, &z));
        let mut out = device.uninitialized::<T>(count).unwrap();
        kernels::multiply(&mut out, &x, &z).unwrap();
        close::<T>("x z", &out, &expected, T::BOUND);
    }
}

#[test]
fn products_match_plain_loops() {
    in_all_types!(multiply_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let (x, z) = (device.zeros::<f32>(30).unwrap(), device.zeros::<f32>(29).unwrap());
    let mut y = device.zeros::<f32>(30).unwrap();
    assert!(kernels::multiply(&mut y, &x, &z).is_err());
}
