//! Mean and variance over the batch.

use alchemist_engine::engine::{
    cuda::Device,
    ops::batch_statistics::{batch_statistics, cuda as kernels},
};

use crate::{
    device::{Number, close, noise, rounded, upload},
    reference::reference,
};

fn batch_statistics_case<T: Number>(device: &Device) {
    for (batch, channels) in [(1, 1), (5, 37), (64, 300)] {
        // Away from 0, where a variance that is a difference of squares would lose its digits.
        let x = noise(batch * channels, 3).iter().map(|x| x + 20.0).collect::<Vec<_>>();
        let (x, dy) = (rounded::<T>(&x), rounded::<T>(&noise(2 * channels, 4)));
        let (y, d) = reference(&[(&[batch, channels], &x)], &dy, |tape, x| batch_statistics(tape, &x[0]));
        let (x, dy) = (upload::<T>(device, &x), upload::<T>(device, &dy));
        let mut statistics = device.uninitialized::<T>(2 * channels).unwrap();
        kernels::batch_statistics_forward(&mut statistics, &x, [batch, channels]).unwrap();
        close::<T>("the statistics of the batch", &statistics, &y, T::BOUND);
        let mut dx = device.uninitialized::<T>(batch * channels).unwrap();
        kernels::batch_statistics_backward(&mut dx, &dy, &x, [batch, channels]).unwrap();
        close::<T>("the statistics' gradient", &dx, &d[0], T::BOUND);
    }
}

#[test]
fn statistics_match_the_reference() {
    in_all_types!(batch_statistics_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    let x = device.zeros::<f32>(30).unwrap();
    let mut short = device.zeros::<f32>(29).unwrap();
    assert!(kernels::batch_statistics_forward(&mut short, &x, [2, 15]).is_err());
}
